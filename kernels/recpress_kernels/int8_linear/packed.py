"""``torch.ops.recpress.int8_linear_packed``: the op on a buffer of formats/packed.py, for the CPU."""

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.packed import unpack, widths
from recpress_kernels.int8_linear import cpu
from recpress_kernels.int8_linear.op import FLOATS, check_pair_values, out_dtype, pair_problem, rows_of
from recpress_kernels.library import LIBRARY

LIBRARY.define(
    "int8_linear_packed(Tensor x, Tensor packed, int out_features, Tensor? x_scale=None, Tensor? x_zero_point=None, "
    "Tensor? out_scale=None, Tensor? out_zero_point=None) -> Tensor"
)


def int8_linear_packed(
    x: Tensor,
    packed: Tensor,
    out_features: int,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    """:func:`int8_linear` with weights, scales, bias and activation in one buffer: the same bits, faster.

    Args:
        x: as for int8_linear, on the CPU.
        packed: uint8 of one dimension, made by :func:`recpress_kernels.formats.packed.pack` on this format version.
        out_features: N, which shapes alone must tell while a graph is traced.
        x_scale, x_zero_point, out_scale, out_zero_point: as for int8_linear.

    Raises:
        KernelInputError: an operand has another dtype, shape or value, or packed is of another format.
    """
    return torch.ops.recpress.int8_linear_packed(
        x, packed, out_features, x_scale, x_zero_point, out_scale, out_zero_point
    )


def check_packed(op: str, x: Tensor, packed: Tensor, out_features: int, *, quantised: bool = False) -> None:
    """Check dtypes and shapes of the two; the kernel checks the buffer's headers.

    Raises:
        KernelInputError: names the operand.
    """
    if x.dtype not in FLOATS and not (quantised and x.dtype == torch.uint8):
        more = ", or uint8 together with x_scale and x_zero_point" if op == "int8_linear_packed" else ""
        raise KernelInputError(f"{op}: x is {x.dtype}; give float32, float16 or bfloat16{more}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise KernelInputError(f"{op}: x has shape {tuple(x.shape)}; give [..., K], K >= 1")
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not packed.is_contiguous():
        given = f"{packed.dtype} of shape {tuple(packed.shape)}"
        raise KernelInputError(f"{op}: packed is {given}; give the uint8 buffer that pack() made, contiguous")
    if out_features < 1:
        raise KernelInputError(f"{op}: out_features is {out_features}; give the N of the last packed layer")


@torch.library.impl(LIBRARY, "int8_linear_packed", "CPU")
def _cpu(
    x: Tensor,
    packed: Tensor,
    out_features: int,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    op = "int8_linear_packed"
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    check_packed(op, x, packed, out_features, quantised=x_scale is not None)
    for name, scale, zero_point in (("x", x_scale, x_zero_point), ("out", out_scale, out_zero_point)):
        if problem := pair_problem(name, scale, zero_point):
            raise KernelInputError(f"{op}: {problem}")
        check_pair_values(op, name, scale, zero_point)
    if native.linear is None:
        y = _unpacked(rows_of(x), packed, out_features, pairs)
    else:
        arguments = native.LinearArguments(packed=packed.data_ptr(), packed_bytes=packed.numel())
        try:
            y = cpu.run(op, rows_of(x), out_features, arguments, *pairs)
        except KernelInputError:
            check_features(op, x, packed, out_features)
            raise
    return y.view(*x.shape[:-1], out_features)


def _unpacked(x: Tensor, packed: Tensor, out_features: int, pairs: tuple) -> Tensor:
    layers = unpack(packed)
    check_features("int8_linear_packed", x, packed, out_features)
    layer = layers[0]
    if len(layers) != 1:
        native.check("int8_linear_packed", -10)
    return cpu.int8_linear(x, layer.weight, layer.weight_scale, layer.bias, layer.activation, *pairs)


def check_features(op: str, x: Tensor, packed: Tensor, out_features: int) -> None:
    """Check x and y against the buffer's layers: without the native kernels, or to say what they refused.

    Raises:
        KernelInputError: K or N differs, or the buffer is not intact.
    """
    k, *_, n = layers = widths(packed)
    if x.shape[-1] != k or out_features != n:
        given = f"x has K = {x.shape[-1]} and out_features is {out_features}"
        raise KernelInputError(f"{op}: {given}; packed holds layers of {'-'.join(map(str, layers))} features")


@torch.library.register_fake("recpress::int8_linear_packed", lib=LIBRARY)
def _fake(
    x: Tensor,
    packed: Tensor,
    out_features: int,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    check_packed("int8_linear_packed", x, packed, out_features, quantised=x_scale is not None)
    return x.new_empty(*x.shape[:-1], out_features, dtype=out_dtype(x, out_scale))
