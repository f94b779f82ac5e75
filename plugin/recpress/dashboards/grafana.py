"""Grafana's JSON of the dashboards, built with its own SDK: ``python -m recpress.dashboards.grafana FOLDER``."""

import json
import sys
from itertools import count
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from recpress.dashboards.panels import BOARDS, Board, Panel

HEIGHT = 8
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def text_of(board: Board) -> str:
    """The dashboard as JSON."""
    made = Dashboard(board.title).uid(board.uid).tags(["recpress"]).refresh("30s").time("now-1h", "now")
    made.with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, query in (
        ("model", "label_values(recpress_model_info, model)"),
        ("version", 'label_values(recpress_model_info{model=~"$model"}, version)'),
    ):
        variable = QueryVariable(name).label(name.capitalize()).datasource(_SOURCE).query(query)
        made.with_variable(variable.include_all(True).all_value(".*").multi(True))
    numbers = count(1)
    for y, row in enumerate(board.rows):
        x = 0
        for panel in row:
            made.with_panel(_built(panel).id(next(numbers)).grid_pos(GridPos(HEIGHT, panel.width, x, y * HEIGHT)))
            x += panel.width
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _built(panel: Panel) -> Lines | Heatmap:
    heatmap = panel.kind == "heatmap"
    built = (Heatmap().calculate(False) if heatmap else Lines()).title(panel.title).datasource(_SOURCE).unit(panel.unit)
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        target = Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(_SOURCE)
        built.with_target(target.format(PromQueryFormat.HEATMAP) if heatmap else target)
    return built


def write(folder: Path) -> None:
    """Write each dashboard into ``folder``."""
    for board in BOARDS:
        (folder / f"{board.uid}.json").write_text(text_of(board), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
