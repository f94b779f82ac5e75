"""Learnt rounding and corrected biases: less error than before, of what they are meant for."""

import pytest
import torch
from torch import nn

import recpress
from recpress.bench.ptq import fake_weight
from recpress.errors import CalibrationError, RecipeError
from recpress.quantize import adaround
from recpress_kernels.formats.affine import quantize_symmetric, symmetric
from recpress_kernels.formats.int8 import quantize_per_channel


def related(rows: int, columns: int) -> torch.Tensor:
    """Inputs whose columns go together, as those behind a ReLU do."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(rows, 3, generator=generator) @ torch.randn(3, columns, generator=generator)
    return (base + 0.1 * torch.randn(rows, columns, generator=generator)).relu()


def errors(q: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return ((q.double() * scale - weight) @ x.double().T).square().mean(dim=1)


@pytest.mark.parametrize("largest", [127, 7])
def test_every_output_is_as_good_as_any_one_change_makes_it(largest):
    torch.manual_seed(0)
    weight, x = torch.randn(6, 9), related(200, 9)
    weight[2, 4] = 0
    weight[5] = 0
    scale = symmetric(weight.abs().amax(dim=1), largest)[:, None]
    nearest = quantize_symmetric(weight, scale, largest)
    q = adaround.learn(weight, scale, largest, x)
    assert q.dtype == torch.int8 and bool((q.abs() <= largest).all()) and bool((q[weight == 0] == 0).all())
    assert bool(((q * scale - weight).abs() < scale * 1.0001).all()), "one of the two levels around the weight"
    found, plain = errors(q, scale, weight, x), errors(nearest, scale, weight, x)
    assert bool((found <= plain).all()) and float((found / plain)[:5].mean()) < 0.7
    down = torch.floor(weight / scale).clamp(-largest, largest)
    up = (down + 1).clamp(-largest, largest)
    for column in range(9):
        changed = q.double()
        changed[:, column] = torch.where(q[:, column] > down[:, column], down[:, column], up[:, column])
        changed[weight == 0] = 0
        assert bool((errors(changed, scale, weight, x) >= found * (1 - 1e-5)).all())


def test_without_rows_it_is_the_nearest():
    weight = torch.randn(4, 6)
    q, scale = quantize_per_channel(weight)
    assert torch.equal(adaround.learn(weight, scale[:, None], 127, torch.empty(0, 6)), q)


@pytest.mark.parametrize("scheme", ["int8", "int8-24", "int8-weights"])
def test_a_recipe_learns_the_rounding_of_what_smoothing_left(scheme):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)), related(300, 12)
    x[:, :2] *= 100
    with torch.no_grad():
        model[0].weight[:, :2] /= 100
        for layer in model[::2]:
            layer.weight[:, 2::4] = layer.weight[:, 3::4] = 0
    plain, learnt = (
        recpress.compress(model, recpress.Recipe(linear=scheme, rounding=rounding), calibration=[x])
        for rounding in ("nearest", "adaround")
    )
    assert all(row.status == "compressed" for row in learnt.report.rows)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(plain.model.buffers(), learnt.model.buffers(), strict=True)
        if a.dim() == 2
    ]
    assert any(changed)
    if scheme == "int8-weights":  # inputs are not quantised, so that the error of the weights is all there is
        assert all(a.sqnr_db >= b.sqnr_db for a, b in zip(learnt.report.rows, plain.report.rows, strict=True))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    "recipe", [{"linear": "int8"}, {"linear": "int8-weights"}, {"activations": "static", "observer": "mse"}], ids=str
)
def test_a_corrected_bias_leaves_no_mean_error(recipe, with_bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 8, bias=with_bias), related(300, 40)
    plain, corrected = (
        recpress.compress(linear, recpress.Recipe(**recipe, bias_correction=on), calibration=[x]).model
        for on in (False, True)
    )
    means = [(layer(x).double() - linear(x).double()).mean(dim=0).abs().max() for layer in (plain, corrected)]
    assert means[1] < 1e-6 < 1e-4 < means[0]
    assert torch.equal(plain.weight, corrected.weight) and corrected.bias.dtype == torch.float32
    assert (plain.bias is None) is not with_bias


@pytest.mark.parametrize(
    "field", [{"bias_correction": True}, {"rounding": "adaround"}, {"activations": "static"}], ids=str
)
def test_what_needs_calibration_says_so(field):
    with pytest.raises(CalibrationError, match=f"has {next(iter(field))}: .* found on calibration inputs; give"):
        recpress.compress(nn.Linear(4, 2), recpress.Recipe(**field))


@pytest.mark.parametrize("field", [{"bias_correction": True}, {"rounding": "adaround"}], ids=str)
def test_training_does_without(field):
    with pytest.raises(RecipeError, match="which training overwrites; leave them away"):
        recpress.prepare(nn.Linear(4, 2), recpress.Recipe(**field), calibration=[torch.ones(3, 4)])


def test_fewer_bits_err_more_and_smaller_groups_and_learning_less():
    torch.manual_seed(0)
    weight, x = torch.randn(8, 64) * torch.logspace(-1, 0, 64), related(500, 64)

    def error(bits: int, group: int = 0, learnt: bool = False) -> float:
        new = fake_weight(weight, bits, group, x if learnt else x[:0])
        return float(((new - weight) @ x.T).square().mean())

    assert error(8) < error(7) / 2 < error(4) / 20
    assert error(4, 8) < error(4)
    assert error(4, learnt=True) < 0.2 * error(4)
