"""The committed JSON is what the code makes; Grafana's own models read it, and it refers to what is there."""

import json
import re
from pathlib import Path

import pytest
import yaml

from recpress.dashboards.panels import BOARDS

grafana = pytest.importorskip("recpress.dashboards.grafana", reason="no grafana-foundation-sdk (extra dev)")
FOLDER = Path(__file__).parents[3] / "deploy" / "grafana"


@pytest.fixture(params=BOARDS, ids=lambda board: board.uid)
def board(request):
    return request.param


@pytest.fixture
def committed(board):
    return json.loads((FOLDER / "dashboards" / f"{board.uid}.json").read_text())


def without_empty(value):
    """Fields that are empty are left out by Grafana's models as they are written."""
    if isinstance(value, dict):
        return {name: without_empty(inner) for name, inner in value.items() if inner != {}}
    return [without_empty(inner) for inner in value] if isinstance(value, list) else value


def test_it_is_what_the_code_makes(board):
    text = (FOLDER / "dashboards" / f"{board.uid}.json").read_text()
    remedy = "write it with: python -m recpress.dashboards.grafana deploy/grafana/dashboards"
    assert text == grafana.text_of(board), remedy


def test_it_has_the_panels_and_queries_of_the_pictures(board, committed):
    panels = committed["panels"]
    assert [(panel["title"], [t["expr"] for t in panel["targets"]]) for panel in panels] == [
        (panel.title, [query.expr for query in panel.queries]) for panel in board.panels
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)


def test_panels_have_places_of_their_own(committed):
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in committed["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_grafana_s_own_models_read_it_and_keep_all_of_it(committed):
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    read = Dashboard.from_json(committed)
    again = json.loads(json.dumps(read, cls=JSONEncoder))
    assert without_empty(again) == without_empty(committed) and read.schema_version >= 39
    assert {type(target).__module__.rpartition(".")[2] for panel in read.panels for target in panel.targets} == {
        "prometheus"
    }


def test_variables_are_defined_used_and_filled_when_it_is_opened(committed):
    variables = {variable["name"]: variable for variable in committed["templating"]["list"]}
    used = set(
        re.findall(r"\$\{?(\w+)", json.dumps({**committed, "templating": [v["query"] for v in variables.values()]}))
    )
    assert used == set(variables) == {"datasource", "model", "version"}
    for name in ("model", "version"):
        assert variables[name]["refresh"] == 2 and variables[name]["current"]["value"] == "$__all"


def test_all_data_comes_from_the_source_that_is_provisioned(committed):
    (source,) = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    chosen = {v["name"]: v.get("current") for v in committed["templating"]["list"]}["datasource"]
    assert (chosen["text"], chosen["value"]) == (source["name"], source["uid"]) and source["type"] == "prometheus"
    asking = [*committed["panels"], *(target for panel in committed["panels"] for target in panel["targets"])]
    asking += [variable for variable in committed["templating"]["list"] if variable["type"] == "query"]
    assert len(asking) > 2 * len(committed["panels"])
    assert all(one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in asking)


def test_a_panel_may_ask_more_than_four_things(board):
    from recpress.dashboards.panels import Board, Panel, Query

    many = Board("x", "x", (Panel("x", "s", tuple(Query(f"a{i}", "") for i in range(6))),))
    (panel,) = json.loads(grafana.text_of(many))["panels"]
    assert [target["expr"] for target in panel["targets"]] == [f"a{i}" for i in range(6)]
