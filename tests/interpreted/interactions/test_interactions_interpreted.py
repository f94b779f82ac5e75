"""The GPU kernels of interactions under triton's interpreter; bfloat16 it cannot multiply, tests/ptx does."""

import pytest
import torch
from support.interaction_oracle import PAIR, SHAPES, dots, quantized, second_order, whole_numbers

from recpress_kernels.dot_interaction import cuda as dot_cuda
from recpress_kernels.dot_interaction.launch import Config
from recpress_kernels.fm_interaction import cuda as fm_cuda


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_to_the_bit(dtype, shape):
    for front, own in ((0, False), (5, False), (70, True)):
        vectors, given = whole_numbers(*shape, front, dtype)
        want = dots(vectors, given, own)
        same(dot_cuda.dot_interaction(vectors, given, own), want.to(dtype))
        same(dot_cuda.dot_interaction(vectors, given, own, *PAIR), quantized(want))
    same(fm_cuda.fm_interaction(vectors), second_order(vectors).to(dtype))


def test_no_rows_one_vector_and_operands_that_lie_apart():
    vectors, front = whole_numbers(4, 9, 16, 8)
    apart = torch.full((8, 20, 18), 9.0)
    apart[::2, 1:19:2, 1:17] = vectors
    wide = torch.full((4, 20), 9.0)
    wide[:, 3:11] = front
    for view in (apart[::2, 1:19:2, 1:17], vectors.transpose(1, 2).contiguous().transpose(1, 2)):
        same(dot_cuda.dot_interaction(view, wide[:, 3:11], config=Config(32, 16, 1)), dots(vectors, front).float())
        same(fm_cuda.fm_interaction(view), second_order(vectors).float())
    assert dot_cuda.dot_interaction(vectors[:0], front[:0]).shape == (0, 44)
    assert dot_cuda.dot_interaction(vectors[:, :1]).shape == (4, 0)
    assert fm_cuda.fm_interaction(vectors[:0]).shape == (0, 1)
