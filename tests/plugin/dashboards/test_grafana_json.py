"""The committed JSON is what the code makes, and panels have places and numbers of their own."""

import json
from pathlib import Path

import pytest

from recpress.dashboards.panels import BOARDS

grafana = pytest.importorskip("recpress.dashboards.grafana", reason="no grafana-foundation-sdk (extra dev)")
FOLDER = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboards"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_committed_json(board):
    text = (FOLDER / f"{board.uid}.json").read_text()
    assert text == grafana.text_of(board), (
        "write it with: python -m recpress.dashboards.grafana deploy/grafana/dashboards"
    )
    made = json.loads(text)
    panels = made["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(board.panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    assert [variable["name"] for variable in made["templating"]["list"]] == ["datasource", "model", "version"]
    assert all(target["expr"] for panel in panels for target in panel["targets"])
