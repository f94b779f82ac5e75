"""The epilogue of a cross layer in int8_linear's kernels, under triton's interpreter: the reference's bits."""

from dataclasses import replace

import pytest
import torch
from support.cross_oracle import cross_operands
from support.int8_linear_oracle import AWKWARD_K, AWKWARD_M

from recpress_kernels.int8_cross import cuda, reference
from recpress_kernels.int8_linear.cuda import pad_rows
from recpress_kernels.int8_linear.launch import Config

ROUTES = {
    "fused": Config("fused", 16, 16, 64, 4, 3),
    "halves": Config("gemm", 16, 32, 64, 4, 3, halves=2),
    "tma": Config("tma", 32, 32, 128, 4, 3),
    "split": Config("fused", 16, 16, 64, 4, 3, splits=3),
}


def check(operands: tuple, config: Config) -> None:
    given = cuda.int8_cross(*operands, config=config)
    assert given.dtype == operands[1].dtype
    torch.testing.assert_close(given, reference.int8_cross(*operands), rtol=0, atol=0, equal_nan=True)


def padded(operands: tuple) -> tuple:
    return tuple(pad_rows(o) if isinstance(o, torch.Tensor) and o.dtype == torch.int8 else o for o in operands)


@pytest.mark.parametrize("m", AWKWARD_M)
@pytest.mark.parametrize("k", AWKWARD_K[:-1])
def test_full_rank_to_the_bit(m, k):
    operands = cross_operands(m, k)
    check(operands, ROUTES["fused"])
    check(operands, ROUTES["halves"])


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_low_rank_to_the_bit(route, dtype):
    """In float16 y is rounded to it before it is combined."""
    check(padded(cross_operands(17, 130, 24, dtype)), ROUTES[route])


@pytest.mark.parametrize("route", ROUTES)
def test_rows_that_are_not_finite_and_operands_that_lie_apart(route):
    x0, x, *weights = padded(cross_operands(5, 64))
    x[1, 3], x0[2, 5] = float("nan"), float("inf")
    wide = torch.full((5, 300), torch.nan)
    wide[:, 3:67], wide[:, 100:164] = x0, x
    check((wide[:, 3:67], wide[:, 100:164], *weights), ROUTES[route])


def test_no_rows_and_no_bias():
    x0, x, weight, scale, *_ = cross_operands(3, 13)
    check((x0, x, weight, scale), ROUTES["fused"])
    assert cuda.int8_cross(x0[:0], x[:0], weight, scale).shape == (0, 13)


def test_a_low_rank_that_splits_k():
    check(cross_operands(3, 200, 7), replace(ROUTES["split"], splits=2))
