"""Evening out columns: the same function, less error, and nothing where nothing is gained."""

import pytest
import torch
from torch import nn

import recpress
from recpress.artifact.lower import lower
from recpress.errors import CalibrationError
from recpress.layers import Inputs, Int8Linear
from recpress.quantize import capture, smooth
from recpress_kernels import int8_mlp_packed


def uneven(rows: int = 512) -> torch.Tensor:
    """Ten columns of which two are a hundred times the others, as DLRM's top MLP is given."""
    x = torch.randn(rows, 10, generator=torch.Generator().manual_seed(0))
    x[:, :2] *= 100
    return x


def test_a_multiplier_is_exact_and_lessens_the_error():
    torch.manual_seed(0)
    linear, x = nn.Linear(10, 7), uneven()
    with torch.no_grad():
        linear.weight[:, :2] /= 100
    found = smooth.search(linear, x)
    assert found.error_left < 0.1
    assert (torch.frexp(found.multiplier).mantissa == 0.5).all(), "powers of two"
    weight = linear.weight.detach()
    assert torch.equal(
        (x * found.multiplier).double() @ (weight / found.multiplier).double().T, x.double() @ weight.double().T
    )
    plain, even = (Int8Linear.from_linear(linear, Inputs(m)) for m in (None, found.multiplier))
    error = [float((layer(x) - linear(x)).detach().square().mean()) for layer in (plain, even)]
    assert error[1] == pytest.approx(error[0] * found.error_left, rel=1e-3)


def test_what_is_even_already_is_left_alone():
    torch.manual_seed(0)
    assert smooth.search(nn.Linear(10, 7), torch.randn(512, 10)) is None
    assert smooth.search(nn.Linear(10, 7).half(), uneven().half()) is None
    assert smooth.search(nn.Linear(10, 7), uneven()[:0]) is None


def test_columns_of_zeros_and_weights_of_zeros_keep_their_places():
    torch.manual_seed(0)
    linear, x = nn.Linear(10, 7), uneven()
    x[:, 4] = 0
    with torch.no_grad():
        linear.weight[:, 5] = 0
        linear.weight[:, :2] /= 100
    found = smooth.search(linear, x)
    assert found.multiplier[4] == found.multiplier[5] == 1
    zeros = nn.Linear(10, 7)
    nn.init.zeros_(zeros.weight)
    assert smooth.search(zeros, x) is None and smooth.search(linear, torch.zeros(9, 10)) is None


class Wide(nn.Module):
    """Layers whose inputs are uneven: those of the model, and those that a ReLU hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
        with torch.no_grad():
            self.layers[0].weight[:4] *= 300
            self.layers[2].weight[:, :4] /= 300

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("recipe", ["int8", "int8-static", recpress.Recipe(smooth=False)], ids=str)
def test_in_a_chain_it_goes_into_the_layer_before_without_changing_a_bit(recipe):
    torch.manual_seed(0)
    compressed = recpress.compress(Wide(), recipe, calibration=[uneven() / 100])
    hidden = compressed.model.layers[2]
    assert (hidden.multiplier is not None) is isinstance(recipe, str)
    rows = {row.names[0]: row for row in compressed.report.rows}
    assert ("evened out" in rows["layers.2"].scheme) is isinstance(recipe, str)
    assert (rows["layers.2"].sqnr_db > 30) is isinstance(recipe, str)
    module = torch.export.export(compressed.model, (uneven(8),), dynamic_shapes=({0: torch.export.Dim("b")},)).module()
    lower(module)
    assert sum(node.target is int8_mlp_packed for node in module.graph.nodes) == 1
    # That of the first layer's inputs has no layer before it.
    assert sum(node.target is torch.ops.aten.mul.Tensor for node in module.graph.nodes) == isinstance(recipe, str)
    for batch in (1, 7, 64):
        x = uneven(batch) / 50
        assert torch.equal(module(x), compressed.model(x))


def test_the_error_of_a_layer_is_reported_in_decibels():
    torch.manual_seed(0)
    compressed = recpress.compress(nn.Linear(64, 32), "int8", calibration=[torch.randn(100, 64)])
    (row,) = compressed.report.rows
    assert 35 < row.sqnr_db < 50
    assert recpress.compress(nn.Linear(64, 32), "int8").report.rows[0].sqnr_db is None


def test_what_calibration_keeps():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 1))
    x = torch.randn(3, capture.ROWS // 3, 4)
    kept = capture.capture(model, [x[:, :8], x])
    assert kept.inputs[id(shared)].shape == (capture.ROWS, 4)
    assert torch.equal(kept.inputs[id(shared)][:24], x[:, :8].reshape(-1, 4))
    assert kept.reached == {id(module) for module in model.modules()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_place(value):
    x = torch.zeros(5, 4)
    x[3, 2] = value
    with pytest.raises(
        CalibrationError, match=f"gives layer '0' {value} in row 3, column 2; give inputs that are finite"
    ):
        recpress.compress(nn.Sequential(nn.Linear(4, 2)), calibration=[x])


def test_an_activation_that_is_not_linear_keeps_the_multiplication_behind_it():
    torch.manual_seed(0)
    model = Wide()
    model.layers[1] = nn.Sigmoid()
    compressed = recpress.compress(model, "int8", calibration=[uneven() / 100])
    assert compressed.model.layers[2].multiplier is not None
    module = torch.export.export(compressed.model, (uneven(8),), dynamic_shapes=({0: torch.export.Dim("b")},)).module()
    lower(module)
    assert sum(node.target is int8_mlp_packed for node in module.graph.nodes) == 2
    assert torch.equal(module(uneven(7)), compressed.model(uneven(7)))
