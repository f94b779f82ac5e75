"""Grafana's JSON of the dashboards, built with its own SDK: ``python -m recpress.dashboards.grafana FOLDER``."""

import json
import sys
from itertools import count
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.heatmap import YAxisConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    GridPos,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from recpress.dashboards.panels import BOARDS, Board, Panel

HEIGHT = 8
PROVISIONED = VariableOption(True, "Prometheus", "recpress-prometheus")
"""The data source of deploy/grafana/provisioning, its name and uid; the variable ``datasource`` takes others."""
_ALL = VariableOption(True, "All", "$__all")
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def text_of(board: Board) -> str:
    """The dashboard as JSON."""
    made = Dashboard(board.title).uid(board.uid).tags(["recpress"]).refresh("30s").time("now-1h", "now")
    source = DatasourceVariable("datasource").label("Data source").type("prometheus").current(PROVISIONED)
    made.with_variable(source)
    for name, query in (
        ("model", "label_values(recpress_model_info, model)"),
        ("version", 'label_values(recpress_model_info{model=~"$model"}, version)'),
    ):
        variable = QueryVariable(name).label(name.capitalize()).datasource(_SOURCE).query(query)
        # Versions come while a dashboard is open.
        variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.NATURAL_ASC)
        made.with_variable(variable.include_all(True).all_value(".*").multi(True).current(_ALL))
    numbers = count(1)
    for y, row in enumerate(board.rows):
        x = 0
        for panel in row:
            made.with_panel(_built(panel).id(next(numbers)).grid_pos(GridPos(HEIGHT, panel.width, x, y * HEIGHT)))
            x += panel.width
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _built(panel: Panel) -> Lines | Heatmap:
    heatmap = panel.kind == "heatmap"
    if heatmap:
        built = Heatmap().calculate(False).y_axis(YAxisConfig().unit(panel.unit))
    else:
        built = Lines().unit(panel.unit).axis_soft_min(0)
    built.title(panel.title).datasource(_SOURCE)
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
