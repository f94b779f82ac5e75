"""weight_only_linear's GPU kernel under triton's interpreter; bfloat16 it cannot multiply, tests/ptx does."""

import pytest
import torch
from support.int8_linear_oracle import AWKWARD_K, AWKWARD_M, AWKWARD_N
from support.weight_only_oracle import expected, whole_numbers

from recpress_kernels.weight_only_linear import cuda
from recpress_kernels.weight_only_linear.launch import Config

TILE = Config(16, 32, 64, 4, 3)
SHAPES = [(m, k, AWKWARD_N[(i + j) % 4]) for i, m in enumerate(AWKWARD_M) for j, k in enumerate(AWKWARD_K)]


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_to_the_bit(dtype, m, k, n):
    x, weight, scale, bias = whole_numbers(m, k, n, dtype)
    y = cuda.weight_only_linear(x, weight, scale, bias, "relu", config=TILE)
    torch.testing.assert_close(y, expected(x, weight, scale, bias), rtol=0, atol=0)


def test_no_bias_no_rows_and_rows_that_lie_apart():
    x, weight, scale, _ = whole_numbers(5, 130, 17)
    wide = torch.zeros(5, 200)
    wide[:, :130] = x
    y = cuda.weight_only_linear(wide[:, :130], weight, scale, None, "relu", config=TILE)
    torch.testing.assert_close(y, expected(x, weight, scale, None), rtol=0, atol=0)
    assert cuda.weight_only_linear(x[:0], weight, scale).shape == (0, 17)
