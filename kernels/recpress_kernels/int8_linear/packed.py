"""``torch.ops.recpress.int8_linear_packed``: the op on a buffer of formats/packed.py, for the CPU."""

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.affine import pair_problem
from recpress_kernels.formats.packed import PackedLayer, unpack, widths
from recpress_kernels.int8_linear import cpu
from recpress_kernels.int8_linear.op import FLOATS, check_pair_values, out_dtype, rows_of
from recpress_kernels.library import LIBRARY, direct
from recpress_kernels.weight_only_linear.reference import weight_only_linear as weight_only

_OP = "int8_linear_packed"
_FLOAT_CODES = {dtype: native.DTYPES[dtype] for dtype in FLOATS}

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
    if x_scale is None and x_zero_point is None and out_scale is None and out_zero_point is None and direct(x):
        return dynamic(_OP, x, packed, out_features, 1)
    return torch.ops.recpress.int8_linear_packed(
        x, packed, out_features, x_scale, x_zero_point, out_scale, out_zero_point
    )


def check_packed(op: str, x: Tensor, packed: Tensor, out_features: int, *, quantised: bool = False) -> None:
    """Check dtypes and shapes of the two; the kernel checks the buffer's headers.

    Raises:
        KernelInputError: names the operand.
    """
    if x.dtype not in FLOATS and not (quantised and x.dtype == torch.uint8):
        more = ", or uint8 together with x_scale and x_zero_point" if op == _OP else ""
        raise KernelInputError(f"{op}: x is {x.dtype}; give float32, float16 or bfloat16{more}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise KernelInputError(f"{op}: x has shape {tuple(x.shape)}; give [..., K], K >= 1")
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not packed.is_contiguous():
        given = f"{packed.dtype} of shape {tuple(packed.shape)}"
        raise KernelInputError(f"{op}: packed is {given}; give the uint8 buffer that pack() made, contiguous")
    if out_features < 1:
        raise KernelInputError(f"{op}: out_features is {out_features}; give the N of the last packed layer")


def dynamic(op: str, x: Tensor, packed: Tensor, out_features: int, most: int) -> Tensor:
    """Layers of ``packed``, at most ``most`` of them, each quantising its rows by their own range."""
    # The usual case first: each attribute of a tensor costs 0.1 us, an output 1 us, the foreign call 1.5 us.
    shape, dtype = x.shape, _FLOAT_CODES.get(x.dtype)
    if native.mlp is None or dtype is None or len(shape) != 2 or not x.is_contiguous():
        return _general(op, x, packed, out_features, most)
    if packed.dtype is not torch.uint8 or packed.dim() != 1 or not packed.is_contiguous() or out_features < 1:
        check_packed(op, x, packed, out_features)
    m, k = shape
    y = x.new_empty(m, out_features)
    code = native.mlp(
        x.data_ptr(), m, k, k, dtype, packed.data_ptr(), packed.numel(), y.data_ptr(), out_features, most, native.isa
    )
    if code:
        refused(op, code, x, packed, out_features)
    return y


def _general(op: str, x: Tensor, packed: Tensor, out_features: int, most: int) -> Tensor:
    check_packed(op, x, packed, out_features)
    rows = rows_of(x)
    if native.mlp is not None and rows.is_contiguous():
        y = dynamic(op, rows, packed, out_features, most)
    elif native.mlp is not None:
        y = x.new_empty(rows.shape[0], out_features)
        code = native.mlp(
            rows.data_ptr(),
            *rows.shape,
            rows.stride(0),
            _FLOAT_CODES[x.dtype],
            packed.data_ptr(),
            packed.numel(),
            y.data_ptr(),
            out_features,
            most,
            native.isa,
        )
        if code:
            refused(op, code, x, packed, out_features)
    else:
        y = rows
        for layer in _layers(op, x, packed, out_features, most):
            operands = (layer.dense_weight, layer.weight_scale, layer.bias, layer.activation)
            if layer.keeps_floats:
                y = weight_only(y, *operands)
            else:
                y = cpu.int8_linear(y, *operands, *(layer.x_pair or (None, None)), None, None)
    return y.view(*x.shape[:-1], out_features)


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
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    if all(part is None for part in pairs):
        return dynamic(_OP, x, packed, out_features, 1)
    check_packed(_OP, x, packed, out_features, quantised=x_scale is not None)
    for name, scale, zero_point in (("x", x_scale, x_zero_point), ("out", out_scale, out_zero_point)):
        if problem := pair_problem(name, scale, zero_point):
            raise KernelInputError(f"{_OP}: {problem}")
        check_pair_values(_OP, name, scale, zero_point)
    rows = rows_of(x)
    if native.linear is None:
        (layer,) = _layers(_OP, x, packed, out_features, 1)
        if layer.keeps_floats:
            native.check(_OP, native.FLOAT_INPUTS)
        operands = (layer.dense_weight, layer.weight_scale, layer.bias, layer.activation)
        x_pair = (x_scale, x_zero_point) if x_scale is not None else layer.x_pair or (None, None)
        y = cpu.int8_linear(rows, *operands, *x_pair, out_scale, out_zero_point)
    else:
        arguments = native.LinearArguments(packed=packed.data_ptr(), packed_bytes=packed.numel())
        y, code = cpu.run(rows, out_features, arguments, *pairs)
        if code:
            refused(_OP, code, x, packed, out_features)
    return y.view(*x.shape[:-1], out_features)


def _layers(op: str, x: Tensor, packed: Tensor, out_features: int, most: int) -> list[PackedLayer]:
    """What the native kernels check of a buffer, and its layers, for the path without them."""
    layers = unpack(packed)
    if len(layers) > most:
        native.check(op, native.STACK)
    check_features(op, x, packed, out_features)
    return layers


def refused(op: str, code: int, x: Tensor, packed: Tensor, out_features: int) -> None:
    """Raise for a code that the native kernels returned."""
    if code in native.FEATURES:
        check_features(op, x, packed, out_features)
    native.check(op, code)


def check_features(op: str, x: Tensor, packed: Tensor, out_features: int) -> None:
    """Check x and y against the buffer's layers.

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
    check_packed(_OP, x, packed, out_features, quantised=x_scale is not None)
    return x.new_empty(*x.shape[:-1], out_features, dtype=out_dtype(x, out_scale))
