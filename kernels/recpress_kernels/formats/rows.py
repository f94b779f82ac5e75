"""Embedding tables as rows of 8-bit or 4-bit codes that carry their own scale and bias.

A row of ``dim`` values takes ``dim + 4`` bytes (int8) or ``ceil(dim / 2) + 4`` (int4): the codes, then the scale and
the bias as little-endian float16. Two int4 codes share a byte, the even value in its low half; the last high half of
an odd row is 0. Value ``i`` of the row is ``scale * code[i] + bias`` (asymmetric, 256 or 16 levels). The layout
follows the row-wise quantised tables of FBGEMM, with its 4-bit rows' float16 pair.

It is the quantiser with a real offset of affine.py, a row at a time, the pair rounded outwards to float16 before the
codes are chosen: ``bias`` is the least value rounded down, ``scale`` the step from there to the largest value rounded
up. So the row lies inside the range that is stored and no value is clipped; the codes are the nearest under that pair.
A row of equal values representable in float16 is exact.

Tables larger than memory: give a memory-mapped ``table`` and ``out`` (``torch.from_file``, ``torch.from_numpy`` of a
``np.memmap``), or the table as it comes to :func:`quantize_chunks`. The extra memory is that of one chunk of rows.
"""

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.affine import dequantize_offset, quantize_offset
from recpress_kernels.formats.rows_search import greedy_pair, range_pair

TAIL_BYTES = 4
LEVELS = {8: 256, 4: 16}
"""How many codes there are, by the bits of a code."""
SEARCHES = ("range", "greedy")
FLOAT16_MAX = torch.finfo(torch.float16).max
CHUNK_ROWS = {"range": 1 << 16, "greedy": 1 << 11}
"""In torch the greedy search goes over a chunk 65 times: one that stays in the second-level cache."""

if sys.byteorder != "little":  # pragma: no cover
    raise KernelInputError("tables of quantised rows are little-endian; this machine is not")


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of a row of ``dim`` codes of 8 or 4 bits."""
    return (dim * bits + 7) // 8 + TAIL_BYTES


def bits_of(row: int, dim: int) -> int | None:
    """Bits of a code in rows of ``row`` bytes and ``dim`` values, or None where no form has such rows.

    One value takes 5 bytes either way: 8 is told, and an int4 row of one value reads the same as int8.
    """
    codes = row - TAIL_BYTES  # spelt out: each call of the op asks for each of its tables
    if dim < 1:
        return None
    return 8 if codes == dim else 4 if codes == (dim + 1) // 2 else None


def quantize_rows_int8(table: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Quantise ``table`` ``[rows, dim]`` (float) to uint8 ``[rows, dim + 4]``, in ``out`` where it is given.

    Raises:
        KernelInputError: not a 2-D float tensor of at least one column, NaN or infinity in it, or a
            value beyond float16's range (65504) in it; an ``out`` of another dtype, shape or device.
    """
    return _quantize(table, 8, "range", out)


def quantize_rows_int4(table: Tensor, *, search: str = "range", out: Tensor | None = None) -> Tensor:
    """Quantise ``table`` ``[rows, dim]`` (float) to uint8 ``[rows, ceil(dim / 2) + 4]``, in ``out`` where it is given.

    Args:
        table: on any device; memory-mapped is fine.
        search: ``"range"`` keeps every value inside the stored range. ``"greedy"`` narrows each row's range while
            that lowers its mean squared error, up to 16 % of the range (Guan et al. 2019, arXiv 1911.02079); values
            outside are clipped. It is never worse than "range", and takes 40 times as long.
        out: uint8, rows of any stride.

    Raises:
        KernelInputError: as :func:`quantize_rows_int8`, or an unknown search.
    """
    if search not in SEARCHES:
        raise KernelInputError(f"search is {search!r}; allowed are {', '.join(SEARCHES)}")
    return _quantize(table, 4, search, out)


def quantize_chunks(
    chunks: Iterable[Tensor], out: Tensor, quantize: Callable[..., Tensor] = quantize_rows_int8
) -> Tensor:
    """Quantise a table that comes in ``chunks`` ``[some rows, dim]`` into ``out``, which they fill exactly.

    Args:
        chunks: float tensors of one width, in the order of their rows.
        out: uint8 ``[rows, bytes]``; memory-mapped is fine.
        quantize: :func:`quantize_rows_int8`, or :func:`quantize_rows_int4` with its options bound.

    Raises:
        KernelInputError: as ``quantize``, its rows counted within the chunk that the error names; or the chunks
            hold more or fewer rows than ``out``.
    """
    begin = 0
    for number, chunk in enumerate(chunks):
        end = begin + len(chunk)
        if end > len(out):
            raise KernelInputError(f"chunk {number} ends at row {end}; out has {len(out)} rows")
        try:
            quantize(chunk, out=out[begin:end])
        except KernelInputError as error:
            raise KernelInputError(f"chunk {number}, which begins at row {begin}: {error}") from error
        begin = end
    if begin != len(out):
        raise KernelInputError(f"the chunks hold {begin} rows; out has {len(out)}")
    return out


def _quantize(table: Tensor, bits: int, search: str, out: Tensor | None) -> Tensor:
    if table.dim() != 2 or not table.is_floating_point() or table.shape[1] == 0:
        raise KernelInputError(
            f"table is {table.dtype} of shape {tuple(table.shape)}; give a float tensor [rows, dim], dim >= 1"
        )
    shape = (table.shape[0], row_bytes(table.shape[1], bits))
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8, device=table.device)
    elif out.dtype != torch.uint8 or out.shape != shape or out.device != table.device:
        given = f"{out.dtype} of shape {tuple(out.shape)} on {out.device}"
        raise KernelInputError(f"out is {given}; give uint8 {list(shape)} on {table.device}")
    rows = CHUNK_ROWS[search]
    for begin in range(0, table.shape[0], rows):
        chunk = table.detach()[begin : begin + rows].float()
        to = out[begin : begin + rows]
        if _quantize_natively(chunk, bits, search, to):
            continue
        _check_values(chunk, begin)
        _quantize_chunk(chunk, bits, search, to)
    return out


def _quantize_natively(chunk: Tensor, bits: int, search: str, out: Tensor) -> bool:
    """Whether the native kernel, which gives the bytes of :func:`_quantize_chunk`, is here and has done it."""
    if native.quantize_rows is None or not chunk.is_cpu or chunk.stride(1) != 1 or out.stride(1) != 1:
        return False
    table = (chunk.data_ptr(), *chunk.shape, chunk.stride(0), bits, search == "greedy")
    return native.quantize_rows(*table, out.data_ptr(), out.stride(0), native.isa) == 0


def _check_values(chunk: Tensor, begin: int) -> None:
    bad = ~(chunk.abs() <= FLOAT16_MAX).all(dim=1)
    if bad.any():
        row = begin + int(bad.nonzero()[0])
        raise KernelInputError(
            f"row {row} holds NaN, infinity or a value beyond {FLOAT16_MAX:.0f}, which float16 scale and bias "
            "cannot describe; keep this table in float, or find where training diverged"
        )


def _quantize_chunk(chunk: Tensor, bits: int, search: str, out: Tensor) -> None:
    scale, bias = (range_pair if search == "range" else greedy_pair)(chunk, LEVELS[bits])
    codes = quantize_offset(chunk, scale.float()[:, None], bias.float()[:, None], LEVELS[bits]).to(torch.uint8)
    if bits == 4:
        pairs = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
        codes = pairs[:, ::2] | pairs[:, 1::2] << 4
    out[:, :-TAIL_BYTES] = codes
    out[:, -TAIL_BYTES:] = torch.stack([scale, bias], dim=1).view(torch.uint8)


def split_rows_int8(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``packed`` uint8 ``[rows, dim + 4]`` as codes ``[rows, dim]`` (a view), scale and bias float16 ``[rows]``."""
    # A copy, even of one row: in a row of odd width the pair is not aligned.
    tail = packed[:, -TAIL_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float16)
    return packed[:, :-TAIL_BYTES], tail[:, 0], tail[:, 1]


def split_rows_int4(packed: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """``packed`` uint8 ``[rows, ceil(dim / 2) + 4]`` as codes ``[rows, dim]``, scale and bias float16 ``[rows]``."""
    pairs, scale, bias = split_rows_int8(packed)
    return torch.stack([pairs & 15, pairs >> 4], dim=2).flatten(1)[:, :dim], scale, bias


def dequantize_rows_int8(packed: Tensor) -> Tensor:
    """The table as float32 ``[rows, dim]``: ``scale * code + bias``, one multiplication and one addition."""
    return _values(*split_rows_int8(packed))


def dequantize_rows_int4(packed: Tensor, dim: int) -> Tensor:
    """The table as float32 ``[rows, dim]``: ``scale * code + bias``, one multiplication and one addition."""
    return _values(*split_rows_int4(packed, dim))


def dequantize_rows(packed: Tensor, dim: int) -> Tensor:
    """Rows of ``dim`` values as float32 ``[rows, dim]``, of int8 or int4 as :func:`bits_of` tells."""
    return dequantize_rows_int8(packed) if bits_of(packed.shape[1], dim) == 8 else dequantize_rows_int4(packed, dim)


def _values(codes: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return dequantize_offset(codes, scale.float()[:, None], bias.float()[:, None])
