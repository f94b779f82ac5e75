"""int8_linear on a CPU through torch's float32 matmul, with exact integers.

A product of two values in [-127, 127] summed at most 1040 times stays below 2^24, where float32 holds every
integer: such a block of K is summed exactly, in any order, fused or not, and blocks are added as int32. It runs
at about the speed of a float32 layer, less the conversion of the weights.
"""

import torch
from torch import Tensor

from recpress_kernels.int8_linear.reference import epilogue, quantize_activations

EXACT_BLOCK = 2**24 // 127**2
"""The longest sum of such products that float32 holds exactly: 1040."""


def accumulate(q: Tensor, weight: Tensor) -> Tensor:
    """Bit-equal to :func:`recpress_kernels.int8_linear.reference.accumulate`: int32 ``[M, N]``."""
    acc = None
    for q_block, w_block in zip(q.split(EXACT_BLOCK, dim=1), weight.split(EXACT_BLOCK, dim=1), strict=True):
        block = torch.mm(q_block.float(), w_block.float().T).to(torch.int32)
        acc = block if acc is None else acc + block
    return acc


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The op on ``x`` ``[M, K]``: ``[M, N]`` in the dtype of x."""
    q, scale = quantize_activations(x)
    return epilogue(accumulate(q, weight), scale, weight_scale, bias).to(x.dtype)
