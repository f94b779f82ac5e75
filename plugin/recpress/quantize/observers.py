"""Which range of a layer's inputs is represented: five observers of the rows that calibration kept.

A wider range clips less and has coarser steps. Each observer takes ``x`` float32 ``[rows, columns]`` and returns the
range ``(low, high)`` as floats with ``low <= 0 <= high``, to be given to ``recpress_kernels.formats.affine.affine``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recpress.errors import CalibrationError
from recpress_kernels.formats.affine import ACTIVATION_LEVELS, affine, dequantize_affine, quantize_affine

Range = tuple[float, float]
_BATCH = 256
_SHARES = tuple(i / 32 for i in range(32, 5, -1))  # of an extreme: 1 down to 0.19
_BINS = 2048


def min_max(x: Tensor) -> Range:
    """The smallest and the largest value: nothing of the calibration rows is clipped."""
    return min(float(x.min()), 0.0), max(float(x.max()), 0.0)


def moving_average(x: Tensor, *, momentum: float = 0.9) -> Range:
    """Averages of the extremes of batches of 256 rows, each batch weighing ``1 - momentum`` (Jacob et al. 2018)."""
    low = high = None
    for batch in x.split(_BATCH):
        new = min_max(batch)
        if low is None:
            low, high = new
        else:
            low, high = momentum * low + (1 - momentum) * new[0], momentum * high + (1 - momentum) * new[1]
    return low, high


def percentile(x: Tensor, *, share: float = 0.9999) -> Range:
    """Between them lie all values but a share of ``1 - share``, half of it at either end."""
    values = x.reshape(-1).sort().values
    cut = int((1 - share) / 2 * len(values))
    return min(float(values[cut]), 0.0), max(float(values[-1 - cut]), 0.0)


def mse(x: Tensor) -> Range:
    """The ends at which the squared error of quantised values, clipped ones included, is least; from a histogram."""
    return _best(x, _squared_error)


def entropy(x: Tensor) -> Range:
    """The ends at which the distribution of quantised values tells most of the original one's (Kullback-Leibler).

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017, for a range of two ends: the original counts what lies beyond
    the range in its outermost bins; the quantised one, without it, spreads each level evenly over its bins that are not
    empty.
    """
    return _best(x, _divergence)


OBSERVERS: dict[str, Callable[[Tensor], Range]] = {
    "min-max": min_max,
    "moving-average": moving_average,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def calibrate(x: Tensor, observer: str) -> tuple[Tensor, Tensor]:
    """Scale float32 ``[1]`` and zero point int32 ``[1]`` of 7 bits for inputs like ``x``.

    Raises:
        CalibrationError: there are no rows, or an unknown observer.
    """
    if observer not in OBSERVERS:
        raise CalibrationError(f"observer is {observer!r}; allowed are {', '.join(OBSERVERS)}")
    if not x.numel():
        raise CalibrationError("no rows to observe; give calibration inputs that reach the layer")
    low, high = OBSERVERS[observer](x.float())
    return affine(torch.tensor([low]), torch.tensor([high]), ACTIVATION_LEVELS)


def _best(x: Tensor, error: Callable[[Tensor, Tensor, float, float], float]) -> Range:
    """The pair of ends, each a share of the extreme, with the least ``error(centres, counts, low, high)``."""
    low, high = min_max(x)
    if low == high:
        return low, high
    # Zeros, of which a ReLU makes many, are exact whatever the range: they say nothing about it.
    counts = torch.histc(x[x != 0].float(), _BINS, low, high)
    centres = low + (torch.arange(_BINS) + 0.5) * ((high - low) / _BINS)
    lows = [share * low for share in _SHARES] if low < 0 else [0.0]
    highs = [share * high for share in _SHARES] if high > 0 else [0.0]
    return min(((a, b) for a in lows for b in highs), key=lambda ends: error(centres, counts, *ends))


def _levels(centres: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero = affine(torch.tensor(low), torch.tensor(high), ACTIVATION_LEVELS)
    return quantize_affine(centres, scale, zero, ACTIVATION_LEVELS), scale, zero


def _squared_error(centres: Tensor, counts: Tensor, low: float, high: float) -> float:
    back = dequantize_affine(*_levels(centres, low, high))
    return float(((back - centres).square() * counts).sum())


def _divergence(centres: Tensor, counts: Tensor, low: float, high: float) -> float:
    inside = (centres >= low) & (centres <= high)
    kept = counts[inside]
    full = kept > 0
    if not full.any():
        return float("inf")
    levels = _levels(centres[inside], low, high)[0].long()
    total = torch.zeros(ACTIVATION_LEVELS).index_add_(0, levels, kept)
    bins = torch.zeros(ACTIVATION_LEVELS).index_add_(0, levels, full.float())
    q = (total[levels] / bins[levels].clamp(min=1))[full]
    p = kept[full]
    p[0] += counts[centres < low].sum()
    p[-1] += counts[centres > high].sum()
    p, q = p / p.sum(), q / q.sum()
    return float((p * (p / q).log()).sum())
