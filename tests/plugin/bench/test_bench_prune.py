"""The benchmark of what pruning brings: it times the whole dense part, and says what misses its target."""

import json

import pytest
import torch
from torch import nn

from recpress.bench import prune, quantize
from recpress.bench.clicks import MODELS
from recpress.pipeline import compress

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 60


@pytest.mark.parametrize("case", [prune.BIG, *MODELS])
def test_the_dense_part_is_every_linear_layer_on_what_the_model_gives_it(case):
    model = prune._model(case)
    parts = prune.dense_part(model)
    linears = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]
    assert sorted(map(id, linears)) == sorted(id(m) for m in model.modules() if isinstance(m, nn.Linear))
    inputs = prune._inputs(case, 5, 0)
    given = prune._given(model, inputs)
    with torch.no_grad():
        found = dict(zip(parts, prune._in_turn(parts)(*given), strict=True))
        truth = model(*inputs)
        model_again = {"dlrm": "top", prune.BIG: "top"}.get(case)
        if model_again:
            torch.testing.assert_close(found[getattr(model, model_again)].squeeze(1), truth)
    assert all(len(y) == 5 for y in found.values())


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prune, "SPEEDUP", 1000.0)
    given = ["--seconds", "0.01", "--batches", "2", "--cases", "dlrm", "--rows", str(ROWS)]
    prune.main([*given, "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["what"], row["case"]): row for row in result["rows"]}
    recipes = list(prune.COMBINED)
    assert list(rows) == [("structured", "dlrm"), *(("bytes", r) for r in recipes), *(("combined", r) for r in recipes)]
    structured = rows["structured", "dlrm"]
    assert structured["ratio"] == structured["before_s"] / structured["after_s"]
    assert 0.7 < structured["parameters_gone"] < 0.75, "half of the units are three quarters of a square layer"
    model = quantize.dlrm(ROWS)
    for recipe in recipes:
        report = compress(model, recipe).report
        assert rows["bytes", recipe]["ratio"] == pytest.approx(report.bytes_after / report.bytes_before)
        assert rows["combined", recipe]["ratio"] > 0
    out = capsys.readouterr().out
    assert "structured dlrm                   batch    2" in out and "MISSES 1000.0x" in out


def test_what_misses_is_said_and_what_does_not_is_not():
    size = {"what": "bytes", "case": "prune-24-int8", "target": 0.27}
    assert prune.line(size | {"ratio": 0.2701}).endswith("MISSES 27%") and "MISSES" not in prune.line(
        size | {"ratio": 0.27}
    )
    time = {"what": "combined", "case": "prune-24-int8", "batch": 1, "before_s": 1e-6, "after_s": 2e-6, "target": 1.0}
    assert prune.line(time | {"ratio": 0.5}).endswith("0.50x  MISSES 1.0x")
    assert "MISSES" not in prune.line(time | {"ratio": 1.0})
