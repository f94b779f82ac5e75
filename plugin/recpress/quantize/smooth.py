"""Even out the columns of a linear layer's inputs before they are quantised (SmoothQuant).

A row is quantised to 128 steps over its own range, so that one column with large values takes the steps of all the
others: in DLRM the bottom MLP's outputs stand beside dot products that are a hundredth of them. The layer is the same
with its inputs multiplied, and its weights divided, column by column::

    y = (x * m) @ (W / m).T,      1 / m[j] = max_i |x[i, j]|^alpha / max_o |W[o, j]|^(1 - alpha)

G. Xiao et al., "SmoothQuant", 2022, arXiv 2211.10438. Here m is rounded to powers of two, which costs nothing
measurable and makes the multiplication exact: where the inputs come from another layer, it can be moved into that
layer's scales without changing a bit. alpha is searched, by the error of the layer's outputs on its calibration
inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recpress.quantize.observers import calibrate
from recpress_kernels import int8_linear
from recpress_kernels.formats.int8 import quantize_per_channel

ALPHAS = tuple(i / 10 for i in range(11))
WORTH = 0.7
"""A multiplier is kept where the squared error falls to this share: what gains less is left as it is."""
MAX_EXPONENT = 16


@dataclass(frozen=True)
class Smoothing:
    """``multiplier`` float32 ``[in]``, powers of two; the ``alpha`` that was found, and the share of error left."""

    multiplier: Tensor
    alpha: float
    error_left: float


def search(linear: nn.Linear, inputs: Tensor, observer: str | None = None) -> Smoothing | None:
    """The multiplier with which int8 ``linear`` errs least on ``inputs`` ``[rows, in]``; None where it is not worth it.

    With an ``observer`` activations are quantised by the range that it finds, else a row at a time. Layers of other
    dtypes than float32 are left alone: their inputs could leave their range.
    """
    if linear.weight.dtype != torch.float32 or len(inputs) == 0:
        return None
    weight = linear.weight.detach()
    truth = inputs @ weight.T
    plain = squared_error(weight, inputs, truth, observer)
    best = None
    for alpha in ALPHAS:
        m = _multiplier(weight, inputs, alpha)
        error = squared_error(weight / m, inputs * m, truth, observer)
        if error < WORTH * plain and (best is None or error < best.error_left * plain):
            best = Smoothing(m, alpha, error / plain)
    return best


def squared_error(weight: Tensor, inputs: Tensor, truth: Tensor, observer: str | None) -> float:
    """Mean squared error of ``inputs @ weight.T`` on int8 weights and 7-bit activations."""
    pair = () if observer is None else calibrate(inputs, observer)
    y = int8_linear(inputs, *quantize_per_channel(weight), None, "none", *pair)
    return float((y - truth).square().mean())


def _multiplier(weight: Tensor, inputs: Tensor, alpha: float) -> Tensor:
    x, w = inputs.abs().amax(dim=0), weight.abs().amax(dim=0)
    used = (x > 0) & (w > 0)
    exponents = (1 - alpha) * torch.log2(w) - alpha * torch.log2(x)
    exponents = torch.where(used, exponents, torch.zeros_like(exponents))
    # A common factor changes nothing; without it the exponents stay small.
    centre = exponents[used].median() if used.any() else exponents.new_zeros(())
    exponents = torch.where(used, exponents - centre, exponents).round().clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.exp2(exponents)
