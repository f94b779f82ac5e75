"""int8_linear on a CPU: through the native kernels where they are built, else through torch's float32 matmul.

Without native kernels: a product of two values in [-128, 127] and [-127, 127] summed at most 1032 times stays below
2^24, where float32 holds every integer: such a block of K is summed exactly, in any order, fused or not, and blocks
are added as int32. It runs at about the speed of a float32 layer, less the conversion of the weights.
"""

import ctypes

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.formats.packed import ACTIVATIONS
from recpress_kernels.int8_linear import reference

EXACT_BLOCK = 2**24 // (127 * 128)
"""The longest sum of such products that float32 holds exactly: 1032."""


def accumulate(q: Tensor, weight: Tensor) -> Tensor:
    """Bit-equal to :func:`recpress_kernels.int8_linear.reference.accumulate`: int32 ``[M, N]``."""
    acc = None
    for q_block, w_block in zip(q.split(EXACT_BLOCK, dim=1), weight.split(EXACT_BLOCK, dim=1), strict=True):
        block = torch.mm(q_block.float(), w_block.float().T).to(torch.int32)
        acc = block if acc is None else acc + block
    return acc


def int8_linear(x: Tensor, weight: Tensor, *operands) -> Tensor:
    """The op on ``x`` ``[M, K]``: ``[M, N]``. The operands are those of the reference."""
    if native.linear is None:
        return reference.int8_linear(x, weight, *operands, accumulate=accumulate)
    return canonical("int8_linear", x, weight, *operands)


def canonical(
    op: str,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str,
    *pairs: Tensor | None,
    keeps_floats: bool = False,
) -> Tensor:
    """The native kernel on canonical weights, each panel of which it packs on the way.

    ``keeps_floats``: x is not quantised, as in weight_only_linear.
    """
    weight, weight_scale = weight.contiguous(), weight_scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    arguments = native.LinearArguments(
        canonical=weight.data_ptr(),
        scales=weight_scale.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        activation=ACTIVATIONS.index(activation),
        keeps_floats=keeps_floats,
    )
    y, code = run(x, weight.shape[0], arguments, *pairs)
    native.check(op, code)
    return y


def run(
    x: Tensor,
    out_features: int,
    arguments: native.LinearArguments,
    x_scale: Tensor | None,
    x_zero_point: Tensor | None,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
) -> tuple[Tensor, int]:
    """Call ``recpress_linear`` on ``x`` ``[M, K]``, the weights being in ``arguments``: ``[M, N]`` and the code."""
    dtype = torch.uint8 if out_scale is not None else torch.float32 if x.dtype == torch.uint8 else x.dtype
    y = torch.empty(x.shape[0], out_features, dtype=dtype)
    if y.numel() == 0:
        return y, 0
    a = arguments
    a.x, a.y, a.isa = x.data_ptr(), y.data_ptr(), native.isa
    a.rows, a.k, a.x_stride, a.n = *x.shape, x.stride(0), out_features
    a.x_dtype, a.y_dtype = native.DTYPES[x.dtype], native.DTYPES[dtype]
    if x_scale is not None:
        a.x_scale, a.x_zero_point = x_scale.item(), x_zero_point.item()
    if out_scale is not None:
        a.y_scale, a.y_zero_point = out_scale.item(), out_zero_point.item()
    return y, native.linear(ctypes.byref(a))
