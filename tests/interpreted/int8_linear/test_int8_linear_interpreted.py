import pytest
import torch

from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.int8_linear import reference
from recpress_kernels.int8_linear.launch import Tile, launch

TILE = Tile(16, 32, 64, 4, 1)


def operands(m, n, k, dtype=torch.float32):
    generator = torch.Generator().manual_seed(m * 10007 + n * 101 + k)
    x = torch.randn(m, k, generator=generator) * 3
    weight, scale = quantize_per_channel(torch.randn(n, k, generator=generator))
    return x.to(dtype), weight, scale, torch.randn(n, generator=generator)


def expected_in_float64(x, weight, scale, bias):
    q, x_scale = reference.quantize_activations(x)
    y = reference.accumulate(q, weight).double() * x_scale.double()[:, None] * scale.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (1, 7, 13), (3, 64, 64), (17, 33, 130), (33, 7, 479)])
def test_integers_are_those_of_the_reference(m, n, k):
    x, weight, _, _ = operands(m, n, k)
    # With weight_scale 1 and rows whose scale is a power of two, the output is the accumulator, scaled exactly.
    x = x.clamp(-8, 8)
    x[:, 0] = 127 / 16
    x = x.clamp(0, 127 / 16)
    y = launch(x, weight, torch.ones(n), None, tile=TILE)
    q, x_scale = reference.quantize_activations(x)
    assert torch.equal(x_scale, torch.full((m,), 1 / 16))
    assert torch.equal(y * 16, reference.accumulate(q, weight).float())


@pytest.mark.parametrize("m, n, k", [(1, 7, 13), (17, 33, 130), (33, 7, 479)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_scores(m, n, k, with_bias):
    x, weight, scale, bias = operands(m, n, k)
    bias = bias if with_bias else None
    truth = expected_in_float64(x, weight, scale, bias)
    y = launch(x, weight, scale, bias, tile=TILE)
    # Three roundings of float32; the reference's own error is of the same size.
    assert bool(((y - truth).abs() <= 3e-7 * (1 + truth.abs()) * 4).all())


@pytest.mark.parametrize("dtype", [torch.float16])
def test_half_precision(dtype):
    x, weight, scale, bias = operands(5, 9, 40, dtype)
    y = launch(x, weight, scale, bias, tile=TILE)
    assert y.dtype == dtype
    assert torch.allclose(y.double(), expected_in_float64(x, weight, scale, bias), rtol=1e-3, atol=1e-3)


def test_rows_apart_in_memory():
    x, weight, scale, bias = operands(5, 9, 40)
    wide = torch.full((5, 64), float("nan"))
    wide[:, :40] = x
    assert torch.equal(launch(wide[:, :40], weight, scale, bias, tile=TILE), launch(x, weight, scale, bias, tile=TILE))


def test_a_bad_row_is_nan_and_its_neighbours_are_not():
    x, weight, scale, bias = operands(4, 9, 40)
    good = launch(x, weight, scale, bias, tile=TILE)
    x[1, 3], x[2, 39] = float("nan"), -float("inf")
    y = launch(x, weight, scale, bias, tile=TILE)
    assert y[1:3].isnan().all() and torch.equal(y[[0, 3]], good[[0, 3]])


def test_zeros_give_the_bias_and_no_rows_give_none():
    _, weight, scale, bias = operands(1, 9, 40)
    assert torch.equal(launch(torch.zeros(2, 40), weight, scale, bias, tile=TILE), bias.expand(2, 9))
    assert launch(torch.zeros(0, 40), weight, scale, bias).shape == (0, 9)
