"""Which range a row of codes spans: all of its values, or the part of them that costs the least squared error."""

import torch
from torch import Tensor

from recpress_kernels.formats.affine import dequantize_offset, quantize_offset, step

BINS, MOST = 200, 0.16
"""The greedy search moves an end by the 200th part of a row's range and stops when 16 % of it are cut off."""
_GAIN = 1 - 1e-6
"""An error must be smaller by more than the rounding of its sum to count as smaller."""
_SUMS = 8


def range_pair(chunk: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and bias float16 ``[rows]`` that hold every value of ``chunk`` float32 ``[rows, dim]``.

    Adding 0 takes -0 to 0, of which a minimum might return either.
    """
    return _pair(chunk.amin(dim=1) + 0.0, chunk.amax(dim=1) + 0.0, levels)


def greedy_pair(chunk: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and bias float16 ``[rows]`` by the greedy search of Guan et al. 2019 (arXiv 1911.02079).

    From the whole range, the end that costs less squared error when it moves inwards by a bin is moved, until
    ``MOST`` of the range are cut off; the best pair on the way is taken. Errors are those of the pair as stored in
    float16, and the whole range is the first on the way, so that no row gets worse than by :func:`range_pair`.
    """
    low, high = chunk.amin(dim=1) + 0.0, chunk.amax(dim=1) + 0.0
    bin_width = (high - low) / BINS
    scale, bias = _pair(low, high, levels)
    best = _squared_error(chunk, scale, bias, levels)
    for _ in range(round(BINS * MOST)):
        raised, lowered = _pair(low + bin_width, high, levels), _pair(low, high - bin_width, levels)
        raised_error = _squared_error(chunk, *raised, levels)
        lowered_error = _squared_error(chunk, *lowered, levels)
        raise_low = raised_error < lowered_error
        low, high = torch.where(raise_low, low + bin_width, low), torch.where(raise_low, high, high - bin_width)
        error = torch.where(raise_low, raised_error, lowered_error)
        better = error < best * _GAIN
        best = torch.where(better, error, best)
        scale = torch.where(better, torch.where(raise_low, raised[0], lowered[0]), scale)
        bias = torch.where(better, torch.where(raise_low, raised[1], lowered[1]), bias)
    return scale, bias


def _pair(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    bias = _to_float16(low, toward=-float("inf"))
    return _to_float16(step(bias.float(), high, levels), toward=float("inf")), bias


def _to_float16(x: Tensor, *, toward: float) -> Tensor:
    """Round float32 ``x`` to float16, up or down as ``toward`` is +inf or -inf."""
    nearest = x.to(torch.float16)
    stepped = torch.nextafter(nearest, torch.full_like(nearest, toward))
    wrong_side = nearest.float() < x if toward > 0 else nearest.float() > x
    return torch.where(wrong_side, stepped, nearest)


def _squared_error(chunk: Tensor, scale: Tensor, bias: Tensor, levels: int) -> Tensor:
    """float64 ``[rows]``.

    The squares mostly add up exactly. Where they do not the order counts between ends that cost the same: every eighth
    value, then halves of the eight sums, on all devices.
    """
    scale, bias = scale.float()[:, None], bias.float()[:, None]
    codes = quantize_offset(chunk, scale, bias, levels)
    squares = dequantize_offset(codes, scale, bias).sub_(chunk).square_()
    sums = chunk.new_zeros(len(chunk), _SUMS, dtype=torch.float64)
    for begin in range(0, chunk.shape[1], _SUMS):
        eighth = squares[:, begin : begin + _SUMS]
        sums[:, : eighth.shape[1]] += eighth
    while sums.shape[1] > 1:
        sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
    return sums[:, 0]
