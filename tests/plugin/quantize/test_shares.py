"""Where a compressed model's error comes from: what each layer by itself does to the outputs."""

import copy

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress.quantize import capture
from recpress.quantize.shares import error_shares
from recpress.report.tables import layers_table


def test_shares_are_what_an_override_would_give_back():
    model, inputs = small_model(), small_inputs(200)
    result = recpress.compress(model, "int8", calibration=[inputs])
    shares = {row.names[0]: row.error_share for row in result.report.rows}
    assert shares.pop("norm") is None
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    alone = {}
    for name in shares:
        others = {other: "keep" for other in shares if other != name}
        new = recpress.compress(model, recpress.Recipe(overrides=others), calibration=[inputs]).model
        alone[name] = float((new(*inputs) - model(*inputs)).detach().double().square().sum())
    assert shares == pytest.approx({name: error / sum(alone.values()) for name, error in alone.items()}, rel=1e-3)
    assert not any(module._forward_hooks for module in model.modules())


class Doubtful(nn.Module):
    """A layer that the outputs are full of, one that they hardly hold, and one that they do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small, self.unused = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict:
        self.unused(x)
        return {"scores": (self.large(x), 1e-2 * self.small(x)), "ids": torch.arange(len(x))}


def test_outputs_of_any_form_and_a_layer_without_a_part_in_them():
    torch.manual_seed(0)
    result = recpress.compress(Doubtful(), "int8", calibration=[torch.randn(50, 4)])
    large, small, unused = (row.error_share for row in result.report.rows)
    assert large > 0.99 and 0 < small < 1e-3 and unused == 0
    table = layers_table(result.report.rows)
    assert list(table.columns[6].cells) == ["100.0%", "0.0%", "0.0%"]


def test_nothing_is_said_where_nothing_is_known():
    torch.manual_seed(0)
    linear = nn.Linear(4, 2)
    (row,) = recpress.compress(linear).report.rows
    assert row.error_share is None
    new = {id(linear): recpress.compress(linear).model}
    assert (
        error_shares(linear, new, []) == {}
        and error_shares(linear, {id(linear): copy.deepcopy(linear)}, [torch.ones(1, 4)]) == {}
    )
    wild = nn.Sequential(linear, nn.Threshold(100.0, float("inf")))
    assert error_shares(wild, new, [torch.ones(1, 4)]) == {}


def test_inputs_are_kept_until_there_are_rows_enough():
    model = nn.Linear(4, 2)
    batches = [{"input": torch.randn(capture.EXAMPLE_ROWS // 2, 4)} for _ in range(3)]
    assert capture.capture(model, batches).examples == tuple(batches[:2])
    assert len(capture.capture(model, [torch.randn(5000, 4), torch.randn(5, 4)]).examples) == 1
