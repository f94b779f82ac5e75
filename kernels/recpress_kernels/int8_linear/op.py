"""``torch.ops.recpress.int8_linear``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.int8 import MAX_IN_FEATURES
from recpress_kernels.int8_linear import cpu
from recpress_kernels.library import LIBRARY
from recpress_kernels.support import Support

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

LIBRARY.define("int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None) -> Tensor")


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ (weight_scale * weight).T + bias`` on int8, the rows of x quantised to 7 bits as they come.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``.
        weight: int8 ``[N, K]``, K from 1 to 133,144 (beyond, an int32 could not hold the sums).
        weight_scale: float32 ``[N]``.
        bias: float32 ``[N]``, or None.

    Returns:
        ``[..., N]`` in the dtype of x. The formula and every rounding stand in reference.py. A row of x that
        is not finite gives a row of NaN.

    Raises:
        KernelInputError: an operand has another dtype, shape or device.
    """
    return torch.ops.recpress.int8_linear(x, weight, weight_scale, bias)


def supports(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Support:
    """Whether the op takes these operands, and the path that runs them."""
    if x.dtype not in _FLOATS:
        return Support(False, f"x is {x.dtype}; give float32, float16 or bfloat16")
    if weight.dtype != torch.int8 or weight.dim() != 2:
        return Support(False, f"weight is {weight.dtype} of shape {tuple(weight.shape)}; give int8 [N, K]")
    n, k = weight.shape
    if x.dim() == 0 or x.shape[-1] != k:
        return Support(False, f"x has shape {tuple(x.shape)} and weight {(n, k)}; the last dimensions must agree")
    if not 1 <= k <= MAX_IN_FEATURES:
        return Support(False, f"K is {k}; allowed are 1 to {MAX_IN_FEATURES}, what an int32 sum is sure to hold")
    for name, vector in (("weight_scale", weight_scale), ("bias", bias)):
        if vector is not None and (vector.dtype != torch.float32 or vector.shape != (n,)):
            given = f"{vector.dtype} of shape {tuple(vector.shape)}"
            return Support(False, f"{name} is {given}; give float32 [{n}], one value an output")
    devices = {t.device for t in (x, weight, weight_scale, bias) if t is not None}
    if len(devices) > 1:
        named = ", ".join(sorted(str(d) for d in devices))
        return Support(False, f"operands lie on {named}; move them to one device")
    return Support(
        True, "exact integers through float32 matmul" if x.device.type == "cpu" else "Triton-language kernel"
    )


def _checked(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
    support = supports(x, weight, weight_scale, bias)
    if not support:
        raise KernelInputError(f"int8_linear: {support.reason}")


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


@torch.library.impl(LIBRARY, "int8_linear", "CPU")
def _cpu(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    _checked(x, weight, weight_scale, bias)
    y = cpu.int8_linear(_rows(x), weight, weight_scale, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


@torch.library.impl(LIBRARY, "int8_linear", "CUDA")
def _cuda(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    from recpress_kernels.int8_linear import cuda  # on first use: triton exists on Linux alone

    _checked(x, weight, weight_scale, bias)
    with torch.cuda.device(x.device):
        y = cuda.int8_linear(
            _rows(x), _rows(weight), weight_scale.contiguous(), None if bias is None else bias.contiguous()
        )
    return y.view(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("recpress::int8_linear", lib=LIBRARY)
def _fake(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    _checked(x, weight, weight_scale, bias)
    return x.new_empty(*x.shape[:-1], weight.shape[0])
