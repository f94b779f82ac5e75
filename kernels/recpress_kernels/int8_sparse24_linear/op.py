"""``torch.ops.recpress.int8_sparse24_linear``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import sparse24
from recpress_kernels.formats.affine import pair_problem
from recpress_kernels.formats.int8 import layer_problem
from recpress_kernels.formats.sparse24 import Sparse24
from recpress_kernels.int8_linear.op import (
    activation_problem,
    check_pair_values,
    cpu_path,
    device_problem,
    int8_linear,
    out_dtype,
    rows_of,
    x_problem,
)
from recpress_kernels.int8_sparse24_linear import cpu
from recpress_kernels.library import LIBRARY
from recpress_kernels.support import Support

_OP = "int8_sparse24_linear"

LIBRARY.define(
    "int8_sparse24_linear(Tensor x, Tensor values, Tensor indices, Tensor weight_scale, Tensor? bias=None, "
    "str activation='none', Tensor? x_scale=None, Tensor? x_zero_point=None, Tensor? out_scale=None, "
    "Tensor? out_zero_point=None) -> Tensor"
)


def int8_sparse24_linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    """:func:`int8_linear` on a 2:4 weight in the canonical form of formats/sparse24.py: the same bits.

    Args:
        x: as for int8_linear, ``[..., K]``. K need not be a multiple of 4.
        values: int8 ``[N, ceil(K / 4) * 2]``, the kept values.
        indices: uint8 ``[N, ceil(K / 8)]``, their places.
        weight_scale, bias, activation, x_scale, x_zero_point, out_scale, out_zero_point: as for int8_linear.

    Returns:
        As int8_linear.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value. A GPU, which is not waited for, takes
            the indices as they are.
    """
    return torch.ops.recpress.int8_sparse24_linear(
        x, values, indices, weight_scale, bias, activation, x_scale, x_zero_point, out_scale, out_zero_point
    )


def supports(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Support:
    """Whether the op takes these operands, and the path that runs them."""
    problem = (
        x_problem(x, x_scale)
        or (f"x has shape {tuple(x.shape)}; give [..., K], K >= 1" if x.dim() == 0 or x.shape[-1] == 0 else "")
        or (f"values is {values.dtype}; give int8" if values.dtype != torch.int8 else "")
        or _form_problem(x.shape[-1], values, indices)
        or layer_problem(values.shape[0], x.shape[-1], weight_scale, bias)
        or activation_problem(activation)
        or pair_problem("x", x_scale, x_zero_point)
        or pair_problem("out", out_scale, out_zero_point)
        or device_problem(
            *(x, values, indices, weight_scale, bias),
            *(x_scale, x_zero_point, out_scale, out_zero_point),
        )
    )
    if problem:
        return Support(False, problem)
    if x.device.type != "cpu":
        return Support(True, "decompressed, then the Triton-language kernels of int8_linear")
    return Support(True, f"decompressed, then int8_linear: {cpu_path()}")


def _form_problem(k: int, values: Tensor, indices: Tensor) -> str:
    if values.dim() == 2 and values.shape[1] != -(-k // 4) * 2:
        return (
            f"x has {k} features and values shape {tuple(values.shape)}; give two values a group of four features, "
            f"{-(-k // 4) * 2} an output"
        )
    return sparse24.form_problem(values, indices, k)


def _checked(*operands) -> None:
    support = supports(*operands)
    if not support:
        raise KernelInputError(f"{_OP}: {support.reason}")


@torch.library.impl(LIBRARY, _OP, "CPU")
def _cpu(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    _checked(x, values, indices, weight_scale, bias, activation, *pairs)
    if problem := sparse24.problem(values, indices, x.shape[-1]):
        raise KernelInputError(f"{_OP}: {problem}")
    check_pair_values(_OP, "x", x_scale, x_zero_point)
    check_pair_values(_OP, "out", out_scale, out_zero_point)
    y = cpu.int8_sparse24_linear(rows_of(x), values, indices, weight_scale, bias, activation, *pairs)
    return y.view(*x.shape[:-1], values.shape[0])


@torch.library.impl(LIBRARY, _OP, "CUDA")
def _cuda(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    _checked(x, values, indices, weight_scale, bias, activation, *pairs)
    weight = sparse24.decompress(Sparse24(values, indices, x.shape[-1]))
    return int8_linear(x, weight, weight_scale, bias, activation, *pairs)


@torch.library.register_fake(f"recpress::{_OP}", lib=LIBRARY)
def _fake(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    _checked(x, values, indices, weight_scale, bias, activation, *pairs)
    return x.new_empty(*x.shape[:-1], values.shape[0], dtype=out_dtype(x, out_scale))
