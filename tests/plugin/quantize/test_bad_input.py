"""What compression makes of models and calibration inputs that are not as they should be: an error, or what is said."""

import copy

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress import Recipe
from recpress.errors import CalibrationError, UnsupportedLayerError

NAN, INF = float("nan"), float("inf")
ALL = Recipe(activations="static", observer="min-max", bias_correction=True, rounding="adaround")
"""All that calibration is used for, with the observer that takes least time."""


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def rows_by_name(result):
    return {row.names[0]: row for row in result.report.rows}


def scales(model: nn.Module) -> list[torch.Tensor]:
    return [t for name, t in model.named_buffers() if name.endswith(("weight_scale", "x_scale"))]


@pytest.mark.parametrize(
    ("calibration", "says"),
    [
        ([], "holds no inputs; give at least one"),
        (iter(()), "holds no inputs"),
        ([torch.empty(0, 4)], "hold no rows; give some thousand"),
        (torch.ones(3, 4), "calibration is one Tensor; give a list of inputs"),
        ({"input": torch.ones(3, 4)}, "calibration is one dict; give a list of inputs"),
        ([torch.ones(3, 5)], "the model fails on calibration input 0"),
        ([torch.ones(3, 4), "row"], "the model fails on calibration input 1"),
        ([torch.tensor([[0.0, 1.0, NAN, 0.0]])], "gives layer '0' nan in row 0, column 2"),
        ([torch.ones(2, 4), torch.tensor([[0.0, -INF, 1.0, 0.0]])], "gives layer '0' -inf in row 2, column 1"),
        ([torch.full((1, 4), 3e38)], "gives layer '0' 3.* of at most 1.7e"),
    ],
)
@pytest.mark.parametrize("recipe", ["int8", ALL], ids=["int8", "all"])
def test_calibration_that_tells_nothing_is_an_error(calibration, says, recipe):
    calibration = list(calibration) if not isinstance(calibration, torch.Tensor | dict) else calibration
    with pytest.raises(CalibrationError, match=says):
        recpress.compress(mlp(), recipe, calibration=calibration)


def test_the_layer_at_which_numbers_cease_to_be_finite_is_named():
    model = mlp()
    with torch.no_grad():
        model[0].bias[5] = INF
    with pytest.raises(CalibrationError, match="gives layer '2' inf in row 0, column 5"):
        recpress.compress(model, calibration=[torch.ones(2, 4)])


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-44])
@pytest.mark.parametrize("recipe", ["int8", ALL], ids=["int8", "all"])
def test_constant_activations_come_back(value, recipe):
    model, x = mlp(), torch.full((20, 4), value)
    result = recpress.compress(model, recipe, calibration=[x])
    assert all(bool((s > 0).all() & torch.isfinite(s).all()) for s in scales(result.model))
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=0.03)


def test_zeros_alone_tell_no_range():
    model = mlp()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    result = recpress.compress(model, ALL, calibration=[torch.randn(20, 4)])
    assert "calibrated" in rows_by_name(result)["0"].scheme
    assert "7-bit activations a row" in rows_by_name(result)["2"].scheme and result.model[2].x_scale is None
    x = torch.randn(20, 8)
    assert (result.model[2](x) - model[2](x)).abs().max() < 0.05


class Branches(nn.Module):
    """One layer for rows of the first kind and one for others; given by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        out = x.new_zeros(len(x), 2)
        out[kind == 0] = self.first(input=x[kind == 0])
        out[kind == 1] = self.second(input=x[kind == 1])
        return out


def test_a_layer_that_no_row_reaches_is_left_alone():
    x = torch.randn(20, 4)
    result = recpress.compress(Branches(), ALL, calibration=[(x, torch.zeros(20))])
    first, second = rows_by_name(result).values()
    assert (first.status, second.status) == ("compressed", "unreachable") and second.error_share is None
    assert result.model.first.x_scale is not None, "inputs by keyword are seen too"
    assert "no calibration input ran through it" in second.reason and type(result.model.second) is nn.Linear


@pytest.mark.parametrize(
    "recipe", ["int8", Recipe(linear="int8-24"), Recipe(linear="int8-weights"), "tables4"], ids=str
)
def test_weights_of_zeros_give_zeros(recipe):
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 3, bias=False))
    for p in model.parameters():
        nn.init.zeros_(p)
    for calibration in (None, [torch.arange(5)]):
        result = recpress.compress(model, recipe, calibration=calibration)
        assert torch.equal(result.model(torch.arange(5)), torch.zeros(5, 3))
        assert all(bool((s == 1).all()) for s in scales(result.model))
        assert all(row.error_share is None and row.sqnr_db is None for row in result.report.rows)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("name", "recipe", "says"),
    [
        ("top.0", "int8", "weight holds NaN or infinity"),
        ("top.0", "int8-weights", "weight holds NaN or infinity"),
        ("tables.1", "int8", "row 3 holds NaN, infinity"),
        ("tables.1", "tables4", "row 3 holds NaN, infinity"),
        ("bag", "int8", "row 3 holds NaN, infinity"),
    ],
)
def test_weights_that_are_not_finite_name_their_layer(name, recipe, says, value):
    model = small_model()
    with torch.no_grad():
        model.get_submodule(name).weight[3, 2] = value
    with pytest.raises(UnsupportedLayerError, match=f"layer '{name}' .*{says}.*'{name}': 'keep'"):
        recpress.compress(model, recipe)
    kept = recpress.compress(model, Recipe(overrides={name: "keep"}))
    assert rows_by_name(kept)[name].status == "kept"


def test_the_last_layers_weights_name_it_with_calibration_too():
    model = small_model()
    with torch.no_grad():
        model.top[2].weight[0, 3] = NAN
    with pytest.raises(UnsupportedLayerError, match="layer 'top.2' .*weight holds NaN or infinity"):
        recpress.compress(model, calibration=[small_inputs(50)])


def test_a_bias_that_masks_an_output_stays():
    model, x = nn.Linear(4, 3), torch.randn(30, 4)
    with torch.no_grad():
        model.bias[1] = -INF
    new = recpress.compress(model, ALL, calibration=[x]).model
    assert new.bias[1] == -INF and torch.equal(torch.isfinite(new(x)), torch.isfinite(model(x)))


def test_what_is_compressed_already_is_left_as_it_is():
    inputs = small_inputs(50)
    first = recpress.compress(small_model(), "int8", calibration=[inputs])
    again = recpress.compress(first.model, Recipe(), calibration=[inputs])
    rows = rows_by_name(again)
    assert {row.reason for name, row in rows.items() if name != "norm"} == {"it is compressed already"}
    assert again.report.bytes_before == again.report.bytes_after == first.report.bytes_after
    assert torch.equal(again.model(*inputs), first.model(*inputs))


def test_a_model_in_training_is_calibrated_as_it_will_run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    x = torch.randn(200, 4)
    before = copy.deepcopy(model.state_dict())
    a, b = (recpress.compress(m, ALL, calibration=[x]) for m in (model, copy.deepcopy(model).eval()))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training and not a.model.training and torch.equal(a.model(x), b.model(x))


def test_shared_weights_stay_shared():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.out.weight = self.items.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.items(ids))

    result = recpress.compress(Tied(), ALL, calibration=[torch.arange(6)])
    assert [row.status for row in result.report.rows] == ["kept", "kept"]
    assert "its weights are shared with" in result.report.rows[0].reason
    assert result.model.out.weight is result.model.items.weight
