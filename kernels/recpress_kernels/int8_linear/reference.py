"""Linear layer on int8 weights with dynamic 7-bit activations, in plain torch: the truth for every device.

For a row x of K values (float32; float16 and bfloat16 are widened first) and int8 weights w ``[N, K]``::

    lo      = min(0, min_k x[k])           hi = max(0, max_k x[k])
    scale   = (hi - lo) / 127              1 where that is 0
    zero    = clamp(rne(-lo / scale), 0, 127)
    q[k]    = clamp(rne(x[k] / scale) + zero, 0, 127)
    acc[n]  = sum_k (q[k] - zero) * w[n, k]                          int32, exact
    y[n]    = (acc[n] * scale) * weight_scale[n] + bias[n]           float32, then to the dtype of x

``/`` is IEEE division in float32 and ``rne`` rounds half to even. q, zero and acc are the same bits on every
device; y may differ in its last bits, since a device may fuse the multiplication with the addition.

Why 7 bits and a zero point: q - zero lies in [-127, 127], which an s8 tensor core takes as it is; q lies in
[0, 127], on which the CPU's ``vpmaddubsw`` cannot saturate (2 * 127 * 127 < 2^15); and after a ReLU, where
zero = 0, there are as many levels as symmetric int8 has. A row that holds NaN or infinity, or whose range
overflows float32, gives NaN in all its outputs.
"""

import torch
from torch import Tensor

ACTIVATION_QMAX = 127


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row of ``x`` ``[M, K]`` (float): ``(q - zero) int8 [M, K]`` and ``scale float32 [M]``.

    A row that is not finite has scale NaN and zeros for its values.
    """
    x = x.float()
    zero_column = x.new_zeros(x.shape[0], 1)
    padded = torch.cat([x, zero_column], dim=1)
    lo, hi = padded.amin(dim=1), padded.amax(dim=1)
    span = hi - lo
    finite = torch.isfinite(span)
    scale = span / ACTIVATION_QMAX
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    safe = torch.where(finite, scale, torch.ones_like(scale))[:, None]
    x = torch.where(finite[:, None], x, torch.zeros_like(x))
    lo = torch.where(finite, lo, torch.zeros_like(lo))[:, None]
    zero = torch.round(-lo / safe).clamp(0, ACTIVATION_QMAX)
    q = (torch.round(x / safe) + zero).clamp(0, ACTIVATION_QMAX)
    scale = torch.where(finite, scale, torch.full_like(scale, torch.nan))
    return (q - zero).to(torch.int8), scale


def accumulate(q: Tensor, weight: Tensor) -> Tensor:
    """``sum_k q[m, k] * weight[n, k]`` of int8 operands as int32 ``[M, N]``."""
    return q.to(torch.int32) @ weight.to(torch.int32).T


def epilogue(acc: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """``(acc * scale) * weight_scale + bias`` in float32: ``[M, N]`` from int32 ``[M, N]``, ``[M]``, ``[N]``."""
    y = acc.float() * scale[:, None] * weight_scale
    return y if bias is None else y + bias.float()


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The op on ``x`` ``[M, K]``, by the formula on top of this file: ``[M, N]`` in the dtype of x."""
    q, scale = quantize_activations(x)
    return epilogue(accumulate(q, weight), scale, weight_scale, bias).to(x.dtype)
