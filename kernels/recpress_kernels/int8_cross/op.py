"""``torch.ops.recpress.int8_cross`` and ``int8_cross_packed``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.packed import MAX_LAYERS
from recpress_kernels.int8_cross.reference import combine
from recpress_kernels.int8_linear import op as linear_op
from recpress_kernels.int8_linear.op import FLOATS, int8_linear, rows_of
from recpress_kernels.int8_linear.packed import check_packed, dynamic, refused
from recpress_kernels.library import LIBRARY, direct
from recpress_kernels.support import Support

LIBRARY.define(
    "int8_cross(Tensor x0, Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, Tensor? low=None, "
    "Tensor? low_scale=None) -> Tensor"
)
LIBRARY.define("int8_cross_packed(Tensor x0, Tensor x, Tensor packed) -> Tensor")


def int8_cross(
    x0: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    low_scale: Tensor | None = None,
) -> Tensor:
    """``x0 * (W x + b) + x``, W on int8: the cross layer of DCN-v2, of full rank, or ``W = weight @ low``.

    Args:
        x0, x: float32, float16 or bfloat16 ``[..., K]`` of one shape: the network's input, and this layer's.
        weight, weight_scale, bias: as for int8_linear, int8 ``[K, K]``; ``[K, R]`` with ``low``.
        low, low_scale: int8 ``[R, K]`` and float32 ``[R]``, or None.

    Returns:
        ``[..., K]`` in the dtype of x. The formula and every rounding stand in reference.py.

    Raises:
        KernelInputError: an operand has another dtype, shape or device.
    """
    return torch.ops.recpress.int8_cross(x0, x, weight, weight_scale, bias, low, low_scale)


def int8_cross_packed(x0: Tensor, x: Tensor, packed: Tensor) -> Tensor:
    """:func:`int8_cross` on one buffer of ``pack_stack``, of one layer or of two (low, weight): the same bits, faster.

    Args:
        x0, x: as for int8_cross, on the CPU.
        packed: uint8 of one dimension; a stack of any layers that takes K features and gives K.

    Raises:
        KernelInputError: an operand has another dtype or shape, or packed is of another format.
    """
    if direct(x) and direct(x0):
        return _packed(x0, x, packed)
    return torch.ops.recpress.int8_cross_packed(x0, x, packed)


def supports(
    x0: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    low_scale: Tensor | None = None,
) -> Support:
    """Whether the op takes these operands, and the path that runs them."""
    if problem := _inputs_problem(x0, x):
        return Support(False, problem)
    if (low is None) != (low_scale is None):
        return Support(False, "low and low_scale belong together; give both or neither")
    if low is not None:
        if not (first := linear_op.supports(x, low, low_scale)):
            return Support(False, f"low: {first.reason}")
        x = x.new_empty(1).expand(*x.shape[:-1], low.shape[0])
    if weight.dim() == 2 and weight.shape[0] != x0.shape[-1]:
        return Support(False, f"weight has shape {tuple(weight.shape)}; it must give K = {x0.shape[-1]} outputs, as x")
    return linear_op.supports(x, weight, weight_scale, bias)


def _inputs_problem(x0: Tensor, x: Tensor) -> str:
    if x.dtype not in FLOATS or x.dim() == 0:
        return f"x is {x.dtype} of shape {tuple(x.shape)}; give float32, float16 or bfloat16 [..., K]"
    if x0.dtype != x.dtype or x0.shape != x.shape or x0.device != x.device:
        given = f"{x0.dtype} of shape {tuple(x0.shape)} on {x0.device}"
        return f"x0 is {given}; give {x.dtype} of shape {tuple(x.shape)} on {x.device}, as x"
    return ""


def _checked(*operands) -> None:
    if not (support := supports(*operands)):
        raise KernelInputError(f"int8_cross: {support.reason}")


@torch.library.impl(LIBRARY, "int8_cross", "CPU")
def _cpu(
    x0: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    low_scale: Tensor | None = None,
) -> Tensor:
    _checked(x0, x, weight, weight_scale, bias, low, low_scale)
    y = x if low is None else int8_linear(x, low, low_scale)
    return combine(x0, x, int8_linear(y, weight, weight_scale, bias))


@torch.library.impl(LIBRARY, "int8_cross", "CUDA")
def _cuda(
    x0: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    low_scale: Tensor | None = None,
) -> Tensor:
    from recpress_kernels.int8_cross import cuda  # on first use: triton exists on Linux alone

    _checked(x0, x, weight, weight_scale, bias, low, low_scale)
    bias = None if bias is None else bias.contiguous()
    first = () if low is None else (rows_of(low), low_scale.contiguous())
    with torch.cuda.device(x.device):
        # rows_of keeps the padding that pad_rows gives to a weight's rows.
        scale = weight_scale.contiguous()
        y = cuda.int8_cross(x0.reshape(-1, x0.shape[-1]), rows_of(x), rows_of(weight), scale, bias, *first)
    return y.view(x.shape)


@torch.library.register_fake("recpress::int8_cross", lib=LIBRARY)
def _fake(
    x0: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    low_scale: Tensor | None = None,
) -> Tensor:
    _checked(x0, x, weight, weight_scale, bias, low, low_scale)
    return x.new_empty(x.shape)


@torch.library.impl(LIBRARY, "int8_cross_packed", "CPU")
def _packed(x0: Tensor, x: Tensor, packed: Tensor) -> Tensor:
    shape = x.shape
    # The usual case first, as in int8_linear/packed.py: one call, the combination while a chunk is in the cache.
    plain = native.cross is not None and x.dtype is x0.dtype is torch.float32 and len(shape) == 2 and x0.shape == shape
    if not plain or not x.is_contiguous() or not x0.is_contiguous() or 0 in shape or packed.dtype is not torch.uint8:
        return _packed_general(x0, x, packed)
    if packed.dim() != 1 or not packed.is_contiguous():
        return _packed_general(x0, x, packed)
    m, k = shape
    y = x.new_empty(m, k)
    code = native.cross(
        x0.data_ptr(), k, x.data_ptr(), m, k, k, packed.data_ptr(), packed.numel(), y.data_ptr(), native.isa
    )
    if code:
        refused("int8_cross_packed", code, x, packed, k)
    return y


def _packed_general(x0: Tensor, x: Tensor, packed: Tensor) -> Tensor:
    """Other dtypes and strides, and faults: a call of the stack, then the combination."""
    op = "int8_cross_packed"
    if problem := _inputs_problem(x0, x):
        raise KernelInputError(f"{op}: {problem}")
    check_packed(op, x, packed, x.shape[-1])
    return combine(x0, x, dynamic(op, x, packed, x.shape[-1], MAX_LAYERS))


@torch.library.register_fake("recpress::int8_cross_packed", lib=LIBRARY)
def _packed_fake(x0: Tensor, x: Tensor, packed: Tensor) -> Tensor:
    if problem := _inputs_problem(x0, x):
        raise KernelInputError(f"int8_cross_packed: {problem}")
    check_packed("int8_cross_packed", x, packed, x.shape[-1])
    return x.new_empty(x.shape)
