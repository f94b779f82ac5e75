"""Dense weights as int8 ``[out, in]`` with one float32 scale an output channel.

The symmetric quantiser of affine.py, a channel at a time, on levels -127 to 127 (-63 to 63 with weights of 7 bits):
``w ~ scale[o] * q[o, i]``. A channel of zeros gets scale 1.
The operands of ``torch.ops.recpress.int8_linear`` are in this form.
"""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.affine import dequantize_symmetric, extremes, largest_level, quantize_symmetric, symmetric

QMAX = largest_level(8)
MAX_IN_FEATURES = (2**31 - 1) // (QMAX * QMAX)
"""The longest sum of products of two values in [-127, 127] that an int32 is sure to hold: 133,144."""
_MAX_WITH_128 = (2**31 - 1) // (QMAX * 128)


def quantize_per_channel(weight: Tensor, *, weight_bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantise ``weight`` ``[out, in]`` (float) to ``(q int8 [out, in], scale float32 [out])``.

    With ``weight_bits=7`` q lies in [-63, 63]: the CPU kernels then add four products in 16 bits before they widen
    them, where most 8-bit weights allow two; 7 to 10 % less time at batches of 16 and more, none at batch 1.

    Raises:
        KernelInputError: not a 2-D float tensor, NaN or infinity in it, or weight_bits other than 7 and 8.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise KernelInputError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)}; give a float tensor [out, in]"
        )
    if weight_bits not in (7, 8):
        raise KernelInputError(f"weight_bits is {weight_bits!r}; allowed are 7 and 8")
    largest = largest_level(weight_bits)
    w = weight.detach().float()
    if not torch.isfinite(w).all():
        raise KernelInputError("weight holds NaN or infinity; find where training diverged before compressing")
    low, high = extremes(w)
    scale = symmetric(torch.maximum(-low, high), largest)
    return quantize_symmetric(w, scale[:, None], largest), scale


def dequantize_per_channel(q: Tensor, scale: Tensor) -> Tensor:
    """``scale[o] * q[o, i]`` as float32 ``[out, in]``."""
    return dequantize_symmetric(q, scale[:, None])


def weight_problem(
    weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *, most_inputs: int = MAX_IN_FEATURES
) -> str:
    """What keeps the operands from being a layer in this form, by dtype and shape; empty where nothing does.

    ``most_inputs`` is what the sums are sure to hold: by default int32 ones.
    """
    if weight.dtype != torch.int8 or weight.dim() != 2:
        return f"weight is {weight.dtype} of shape {tuple(weight.shape)}; give int8 [N, K]"
    return layer_problem(*weight.shape, weight_scale, bias, most_inputs=most_inputs)


def layer_problem(
    n: int, k: int, weight_scale: Tensor, bias: Tensor | None, *, most_inputs: int = MAX_IN_FEATURES
) -> str:
    """What :func:`weight_problem` finds of a weight ``[n, k]`` in whatever form."""
    if not 1 <= k <= most_inputs:
        return f"K is {k}; allowed are 1 to {most_inputs}, what the sums are sure to hold"
    for name, vector in (("weight_scale", weight_scale), ("bias", bias)):
        if vector is not None and (vector.dtype != torch.float32 or vector.shape != (n,)):
            given = f"{vector.dtype} of shape {tuple(vector.shape)}"
            return f"{name} is {given}; give float32 [{n}], one value an output"
    return ""


def sum_problem(weight: Tensor) -> str:
    """Why an int32 may not hold the sums over a weight of so many columns that has -128; empty where it does."""
    k = weight.shape[1]
    if k <= _MAX_WITH_128 or not weight.numel() or int(weight.amin()) > -128:
        return ""
    return (
        f"weight holds -128 and K is {k}; an int32 sum is sure to hold K up to {_MAX_WITH_128} with -128 and "
        f"{MAX_IN_FEATURES} without: clamp the weights to -127"
    )
