"""``torch.ops.recpress.int8_sparse24_linear_fragments``: int8 2:4 on a weight packed for sparse tensor cores."""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import sparse24_gpu as order
from recpress_kernels.formats.affine import pair_problem
from recpress_kernels.formats.int8 import layer_problem
from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.formats.sparse24_gpu import FragmentWeight
from recpress_kernels.int8_linear.op import (
    activation_problem,
    device_problem,
    out_dtype,
    rows_of,
    x_problem,
)
from recpress_kernels.int8_sparse24_linear.launch import supports as device_supports
from recpress_kernels.library import LIBRARY
from recpress_kernels.sparse24_linear.fragments import described, form, fragments_problem, padded_k
from recpress_kernels.support import Support

_OP = "int8_sparse24_linear_fragments"

LIBRARY.define(
    "int8_sparse24_linear_fragments(Tensor x, Tensor values, Tensor metadata, Tensor sums, int out_features, "
    "Tensor weight_scale, Tensor? bias=None, str activation='none', Tensor? x_scale=None, "
    "Tensor? x_zero_point=None, Tensor? out_scale=None, Tensor? out_zero_point=None) -> Tensor"
)


def int8_sparse24_linear_fragments(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    sums: Tensor,
    out_features: int,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    """:func:`int8_linear` on ``formats.sparse24_gpu.pack(values, indices).operands()``: the bits of the dense weight.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``; or uint8 of 0 to 127, quantised already, with ``x_scale``.
        values: int32 ``[S, T, 32, 4]`` with S = ceil(K / 64) and T = ceil(N / 16), contiguous.
        metadata: int32 ``[S, T, 32]``, contiguous.
        sums: int32 ``[N]``, what each output's weights add up to.
        out_features: N, which padding hides.
        weight_scale, bias, activation, x_scale, x_zero_point, out_scale, out_zero_point: as for int8_linear.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or order in memory.
    """
    return torch.ops.recpress.int8_sparse24_linear_fragments(
        x,
        values,
        metadata,
        sums,
        out_features,
        weight_scale,
        bias,
        activation,
        x_scale,
        x_zero_point,
        out_scale,
        out_zero_point,
    )


def supports(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    sums: Tensor,
    out_features: int,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Support:
    """Whether the op takes these operands, and the form that runs them: sparse, or unpacked and dense, and why."""
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    weight = (values, metadata, sums, out_features)
    found = _problem(x, weight, weight_scale, bias, activation, pairs)
    return Support(False, found) if found else described(x.device, device_supports)


def _problem(x: Tensor, weight: tuple, weight_scale: Tensor, bias: Tensor | None, activation: str, pairs: tuple) -> str:
    x_scale, x_zero_point, out_scale, out_zero_point = pairs
    if found := x_problem(x, x_scale):
        return found
    if x.dim() == 0:
        return f"x has shape {tuple(x.shape)}; give [..., K]"
    return (
        fragments_problem(x, _weight(x, *weight))
        or layer_problem(weight[-1], x.shape[-1], weight_scale, bias)
        or activation_problem(activation)
        or pair_problem("x", x_scale, x_zero_point)
        or pair_problem("out", out_scale, out_zero_point)
        or device_problem(x, *weight[:-1], weight_scale, bias, *pairs)
    )


def _weight(x: Tensor, values: Tensor, metadata: Tensor, sums: Tensor, out_features: int) -> FragmentWeight:
    return FragmentWeight(values, metadata, sums, out_features, padded_k(x), torch.int8)


def _checked(x: Tensor, weight: tuple, *rest) -> FragmentWeight:
    if found := _problem(x, weight, *rest):
        raise KernelInputError(f"{_OP}: {found}")
    return _weight(x, *weight)


@torch.library.impl(LIBRARY, "int8_sparse24_linear_fragments", "CPU")
def _unpacked(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    sums: Tensor,
    out_features: int,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    weight = _checked(x, (values, metadata, sums, out_features), weight_scale, bias, activation, pairs)
    dense = decompress(Sparse24(*order.unpack(weight), x.shape[-1]))
    return torch.ops.recpress.int8_linear(x, dense, weight_scale, bias, activation, *pairs)


@torch.library.impl(LIBRARY, "int8_sparse24_linear_fragments", "CUDA")
def _cuda(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    sums: Tensor,
    out_features: int,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    operands = (values, metadata, sums, out_features)
    if not form(x.device, device_supports):
        return _unpacked(x, *operands, weight_scale, bias, activation, *pairs)
    from recpress_kernels.int8_sparse24_linear import cuda  # on first use: triton exists on Linux alone

    weight = _checked(x, operands, weight_scale, bias, activation, pairs)
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        y = cuda.int8_sparse24_linear(rows_of(x), weight, weight_scale.contiguous(), bias, activation, *pairs)
    return y.view(*x.shape[:-1], out_features)


@torch.library.register_fake("recpress::int8_sparse24_linear_fragments", lib=LIBRARY)
def _fake(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    sums: Tensor,
    out_features: int,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    _checked(x, (values, metadata, sums, out_features), weight_scale, bias, activation, pairs)
    return x.new_empty(*x.shape[:-1], out_features, dtype=out_dtype(x, out_scale))
