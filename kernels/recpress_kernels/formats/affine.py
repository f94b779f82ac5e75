"""The mathematics of quantisation, in one place: what a scale is, how a number is rounded, and what comes back.

A quantiser maps real numbers to N whole ones and back. Affine, for N levels 0 to N - 1 over a range that holds zero::

    alpha = (max - min) / (N - 1)         the step, or scale; 1 where max = min = 0
    z     = clamp(rne(-min / alpha), 0, N - 1)
    Q(x)  = clamp(rne(x / alpha) + z, 0, N - 1)
    x'    = alpha * (Q(x) - z)

Symmetric, for levels -L to L, which spends one level of 2^b less and needs no zero point::

    alpha = max |x| / L                   1 where that is 0
    Q(x)  = clamp(rne(x / alpha), -L, L)
    x'    = alpha * Q(x)

``rne`` rounds half to even, ``/`` is IEEE division in float32, and what lies beyond the range is clamped to its ends.
What shares a scale is the granularity: a tensor, a channel (an output of a layer), a group of inputs, a row.

B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
arXiv 1712.05877; M. Nagel et al., "A White Paper on Neural Network Quantization", 2021, arXiv 2106.08295.
"""

import torch
from torch import Tensor

ACTIVATION_LEVELS = 128
"""0 to 127: seven bits, on which the CPU's ``vpmaddubsw`` cannot saturate and which an s8 tensor core takes."""


def affine(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32 and int32 of the shape of ``low``, for numbers between ``low`` and ``high``.

    The range is widened to hold zero, so that zero is represented exactly: padding and ReLU make many of them.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = (high - low) / (levels - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, torch.round(-low / scale).clamp(0, levels - 1).to(torch.int32)


def quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    """``Q(x)`` as int32; ``scale`` and ``zero_point`` broadcast to x."""
    return (torch.round(x.float() / scale) + zero_point).clamp(0, levels - 1).to(torch.int32)


def dequantize_affine(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``alpha * (q - z)``, float32."""
    return (q - zero_point).float() * scale


def symmetric(magnitude: Tensor, largest: int) -> Tensor:
    """The scale, float32, for numbers up to ``magnitude`` on levels ``-largest`` to ``largest``.

    1 where ``magnitude`` is 0, or so small that the scale would be: what is stored is zeros then.
    """
    scale = magnitude.float() / largest
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def quantize_symmetric(x: Tensor, scale: Tensor, largest: int) -> Tensor:
    """``Q(x)`` as int8; ``scale`` broadcasts to x."""
    return torch.round(x.float() / scale).clamp_(-largest, largest).to(torch.int8)


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
