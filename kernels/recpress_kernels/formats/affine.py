"""The mathematics of quantisation, in one place: what a scale is, how a number is rounded, and what comes back.

A quantiser maps real numbers to N whole ones and back. Affine, for the N levels from ``lowest`` up, over a range that
holds zero::

    alpha = (max - min) / (N - 1)                         the step, or scale; 1 where it is 0
    z     = lowest + clamp(rne(-min / alpha), 0, N - 1)
    Q(x)  = clamp(rne(x / alpha) + z, lowest, lowest + N - 1)
    x'    = alpha * (Q(x) - z)

N is 256 (0 to 255, or -128 to 127), 128 for activations of 7 bits, 16 for 4 bits; ``lowest`` is 0 or -N / 2.
Symmetric, for levels -L to L, which spends one level of 2^b less and needs no zero point; L is 127, 63 or 7::

    alpha = max |x| / L                                   1 where it is 0
    Q(x)  = clamp(rne(x / alpha), -L, L)
    x'    = alpha * Q(x)

With a real offset in place of the whole zero point, so that a range need not hold zero (rows of tables)::

    alpha = (max - min) / (N - 1)
    Q(x)  = clamp(rne((x - offset) / alpha), 0, N - 1)    alpha 1 where it is 0
    x'    = alpha * Q(x) + offset

``rne`` rounds half to even, ``/`` is IEEE division in float32, and what lies beyond the range is clamped to its ends.
What shares a scale is the granularity, by :func:`share`: a tensor, a channel (an output of a layer), a group of
inputs of a channel, a row (of activations or of a table).

B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
arXiv 1712.05877; M. Nagel et al., "A White Paper on Neural Network Quantization", 2021, arXiv 2106.08295.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError

ACTIVATION_LEVELS = 128
"""0 to 127: seven bits, on which the CPU's ``vpmaddubsw`` cannot saturate and which an s8 tensor core takes."""
Granularity = Literal["tensor", "channel", "row", "group"]


def largest_level(bits: int) -> int:
    """L of the symmetric quantiser of ``bits``: 127 of 8, 63 of 7, 7 of 4."""
    return 2 ** (bits - 1) - 1


def share(x: Tensor, granularity: Granularity, group: int = 0) -> Tensor:
    """``x`` ``[rows, columns]`` as ``[scales, values]``: in a row of it stands what shares a scale.

    One scale a "tensor"; one a "channel" or "row", which is the first dimension; one a "group" of ``group`` columns of
    a row, the last group of each row filled up with zeros, which every range holds. :func:`unshare` is the inverse.

    Raises:
        KernelInputError: x is not 2-D, an unknown granularity, or a group of less than one column.
    """
    if x.dim() != 2 or granularity not in ("tensor", "channel", "row", "group"):
        raise KernelInputError(
            f"x has shape {tuple(x.shape)} and granularity is {granularity!r}; give [rows, columns] and 'tensor', "
            "'channel', 'row' or 'group'"
        )
    if granularity == "tensor":
        return x.reshape(1, -1)
    if granularity != "group":
        return x
    if group < 1:
        raise KernelInputError(f"group is {group!r}; give how many columns share a scale, at least 1")
    return torch.nn.functional.pad(x, (0, -x.shape[1] % group)).reshape(-1, group)


def unshare(values: Tensor, shape: Sequence[int]) -> Tensor:
    """What :func:`share` made of a tensor of ``shape`` in that shape again."""
    rows, columns = shape
    return values.reshape(rows, -1)[:, :columns]


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of each row of ``values`` ``[..., n]`` and zero; NaN where it holds one."""
    if not values.shape[-1]:
        nothing = values.new_zeros(values.shape[:-1])
        return nothing, nothing
    low, high = torch.aminmax(values, dim=-1)
    return low.clamp(max=0.0), high.clamp(min=0.0)


def step(low: Tensor, high: Tensor, levels: int) -> Tensor:
    """``(high - low) / (levels - 1)``, not yet 1 where it is 0."""
    return (high - low) / (levels - 1)


def divisor(scale: Tensor) -> Tensor:
    """``scale`` as float32, 1 where it is 0: what shares it is all equal, or too close to tell, and has one code."""
    return torch.where(scale == 0, 1.0, scale.float())


def affine(low: Tensor, high: Tensor, levels: int, lowest: int = 0) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32 and int32 of the shape of ``low``, for numbers between ``low`` and ``high``.

    The range is widened to hold zero, so that zero is represented exactly: padding and ReLU make many of them.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = divisor(step(low, high, levels))
    return scale, torch.round(-low / scale).clamp(0, levels - 1).to(torch.int32) + lowest


def quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, levels: int, lowest: int = 0) -> Tensor:
    """``Q(x)`` as int32; ``scale`` and ``zero_point`` broadcast to x."""
    return (torch.round(x.float() / scale) + zero_point).clamp(lowest, lowest + levels - 1).to(torch.int32)


def dequantize_affine(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``alpha * (q - z)``, float32."""
    return (q - zero_point).float() * scale


def symmetric(magnitude: Tensor, largest: int) -> Tensor:
    """The scale, float32, for numbers up to ``magnitude`` on levels ``-largest`` to ``largest``.

    1 where ``magnitude`` is 0, or so small that the scale would be: what is stored is zeros then.
    """
    return divisor(magnitude.float() / largest)


def quantize_symmetric(x: Tensor, scale: Tensor, largest: int) -> Tensor:
    """``Q(x)`` as int8; ``scale`` broadcasts to x."""
    return torch.round(x.float() / scale).clamp_(-largest, largest).to(torch.int8)


def dequantize_symmetric(q: Tensor, scale: Tensor) -> Tensor:
    """``alpha * q``, float32."""
    return q.float() * scale


def quantize_offset(x: Tensor, scale: Tensor, offset: Tensor, levels: int) -> Tensor:
    """``Q(x)`` by a real offset, whole numbers as float32; ``scale`` and ``offset`` are float32 and broadcast to x."""
    return (x - offset).div_(divisor(scale)).round_().clamp_(0, levels - 1)


def dequantize_offset(q: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """``alpha * q + offset`` in float32, one multiplication and one addition."""
    return (q.float() * scale).add_(offset)


def pair_problem(name: str, scale: Tensor | None, zero_point: Tensor | None) -> str:
    """What keeps ``{name}_scale`` and ``{name}_zero_point`` from being a pair, by dtype and shape."""
    if (scale is None) != (zero_point is None):
        return f"{name}_scale and {name}_zero_point belong together; give both or neither"
    for part, tensor, dtype in (("scale", scale, torch.float32), ("zero_point", zero_point, torch.int32)):
        if tensor is not None and (tensor.dtype != dtype or tensor.numel() != 1):
            given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            return f"{name}_{part} is {given}; give {dtype} of one element"
    return ""


def pair_value_problem(name: str, scale: Tensor | None, zero_point: Tensor | None) -> str:
    """What keeps the values of a pair of 7-bit activations from being one; empty too where there is none."""
    if scale is None:
        return ""
    if not 0.0 < scale.item() < float("inf"):
        return f"{name}_scale is {scale.item()}; give a positive finite number"
    if not 0 <= zero_point.item() < ACTIVATION_LEVELS:
        return f"{name}_zero_point is {zero_point.item()}; allowed are 0 to {ACTIVATION_LEVELS - 1}"
    return ""
