"""Embedding tables as rows of uint8 that carry their own scale and bias.

A row of ``dim`` values takes ``dim + 4`` bytes: ``dim`` codes, then the scale and the bias as
little-endian float16. Value ``i`` of the row is ``scale * code[i] + bias`` (asymmetric, 256 levels).
The layout follows the row-wise quantised tables of FBGEMM, with its 4-bit rows' float16 pair.

The bias is rounded down and the scale rounded up to float16 before the codes are chosen, so that
the row lies inside the range that is stored and no value is clipped; the codes are then the nearest to
the values under the stored pair. A row of equal values representable in float16 is exact.
"""

import sys

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError

LEVELS = 255
TAIL_BYTES = 4
FLOAT16_MAX = torch.finfo(torch.float16).max
CHUNK_ROWS = 1 << 16

if sys.byteorder != "little":  # pragma: no cover
    raise KernelInputError("tables of quantised rows are little-endian; this machine is not")


def quantize_rows_int8(table: Tensor) -> Tensor:
    """Quantise ``table`` ``[rows, dim]`` (float) to uint8 ``[rows, dim + 4]``.

    Works in chunks of rows, so that the extra memory does not grow with the table.

    Raises:
        KernelInputError: not a 2-D float tensor of at least one column, NaN or infinity in it, or a
            value beyond float16's range (65504) in it.
    """
    if table.dim() != 2 or not table.is_floating_point() or table.shape[1] == 0:
        raise KernelInputError(
            f"table is {table.dtype} of shape {tuple(table.shape)}; give a float tensor [rows, dim], dim >= 1"
        )
    packed = torch.empty(table.shape[0], table.shape[1] + TAIL_BYTES, dtype=torch.uint8, device=table.device)
    for begin in range(0, table.shape[0], CHUNK_ROWS):
        chunk = table.detach()[begin : begin + CHUNK_ROWS].float()
        _check_values(chunk, begin)
        _quantize_chunk(chunk, packed[begin : begin + CHUNK_ROWS])
    return packed


def _check_values(chunk: Tensor, begin: int) -> None:
    bad = ~(chunk.abs() <= FLOAT16_MAX).all(dim=1)
    if bad.any():
        row = begin + int(bad.nonzero()[0])
        raise KernelInputError(
            f"row {row} holds NaN, infinity or a value beyond {FLOAT16_MAX:.0f}, which float16 scale and bias "
            "cannot describe; keep this table in float, or find where training diverged"
        )


def _quantize_chunk(chunk: Tensor, out: Tensor) -> None:
    dim = chunk.shape[1]
    low, high = chunk.amin(dim=1), chunk.amax(dim=1)
    bias = _to_float16(low, toward=-float("inf"))
    scale = _to_float16((high - bias.float()) / LEVELS, toward=float("inf"))
    step = torch.where(scale > 0, scale.float(), torch.ones_like(low))
    codes = torch.round((chunk - bias.float()[:, None]) / step[:, None]).clamp_(0, LEVELS)
    out[:, :dim] = codes.to(torch.uint8)
    out[:, dim:] = torch.stack([scale, bias], dim=1).view(torch.uint8)


def _to_float16(x: Tensor, *, toward: float) -> Tensor:
    """Round float32 ``x`` to float16, up or down as ``toward`` is +inf or -inf."""
    nearest = x.to(torch.float16)
    stepped = torch.nextafter(nearest, torch.full_like(nearest, toward))
    wrong_side = nearest.float() < x if toward > 0 else nearest.float() > x
    return torch.where(wrong_side, stepped, nearest)


def split_rows_int8(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``packed`` uint8 ``[rows, dim + 4]`` as codes ``[rows, dim]`` (a view), scale and bias float16 ``[rows]``."""
    dim = packed.shape[1] - TAIL_BYTES
    # A copy, even of one row: in a row of odd width the pair is not aligned.
    tail = packed[:, dim:].clone(memory_format=torch.contiguous_format).view(torch.float16)
    return packed[:, :dim], tail[:, 0], tail[:, 1]


def dequantize_rows_int8(packed: Tensor) -> Tensor:
    """The table as float32 ``[rows, dim]``: ``scale * code + bias``, one multiplication and one addition."""
    codes, scale, bias = split_rows_int8(packed)
    return codes.float() * scale.float()[:, None] + bias.float()[:, None]
