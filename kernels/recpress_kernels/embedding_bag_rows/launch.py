"""Which block embedding_bag_rows runs with on a GPU, and how wide its rows can be read: pure functions of the tables.

Imports neither torch nor triton. Blocks were chosen by counting registers and the loads that are on their way at once;
no GPU has timed them yet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDE = 16
"""Bytes of the widest load."""
MAX_COLUMNS = 256
"""Values of a row that one program takes; wider rows take several."""
_WARP = 32


@dataclass(frozen=True)
class Config:
    """One warp computes ``block_b`` bags or rows, ``block_d`` of their values, ``unroll`` rows of a bag at once.

    Of two warps or more, the compiler makes 32 registers a thread, so that a GPU is full of them, and then loads rows
    one after another; of one it has 50 to 64, and loads all of a round before it adds them up.
    """

    block_b: int
    block_d: int
    unroll: int
    num_warps: int = 1

    def __str__(self) -> str:
        return f"{self.block_b}x{self.block_d} unroll={self.unroll} warps={self.num_warps}"


@dataclass(frozen=True)
class Kind:
    """What a kernel is compiled for: all that the tables of a call have in common.

    ``bits`` is 0 where int8 and int4 are mixed, ``align`` in bytes, ``out_align`` in values, ``dim`` the largest;
    ``mapped`` where ids of some table are mapped to rows on the way.
    """

    bits: int
    align: int
    out_align: int
    dim: int
    mapped: bool = False


def kind_of(bits: Sequence[int], aligns: Sequence[int], dims: Sequence[int], *, mapped: bool = False) -> Kind:
    """The kind of tables of these bits, alignments and widths."""
    return Kind(bits[0] if len(set(bits)) == 1 else 0, min(aligns), math.gcd(4, *dims), max(dims), mapped)


def row_align(address: int, stride: int, width: int, reach: int) -> int:
    """How many bytes of a row can be read at once: 16, 4 or 1.

    A row of dim values of 8 bits takes dim + 4 bytes: packed rows of 64 or 128 begin at multiples of 4 and no more.
    Only those whose width is a multiple of 16, or that were padded to one, are read 16 bytes at a time.

    Args:
        address, stride, width: of a table's rows, in bytes; the row's float16 pair ends its width.
        reach: how many bytes behind the beginning of the last row may be read.
    """
    if address % 4 or stride % 4 or width % 4:
        return 1
    whole = -(-width // WIDE) * WIDE
    return 4 if address % WIDE or stride % WIDE or reach < whole else WIDE


def choose_bags(kind: Kind) -> Config:
    """The configuration for bags in tables of this kind: a vector of a row's codes a thread."""
    block_d = _columns(kind)
    return Config(_rows(kind, block_d, 1), block_d, 2 if kind.align == WIDE else 4)


def choose_rows(kind: Kind, batch: int) -> Config:
    """The configuration for ``batch`` single look-ups: as bags; of large batches, four rows a thread at once."""
    block_d = _columns(kind)
    return Config(_rows(kind, block_d, 4 if batch >= 256 and kind.align < WIDE else 1), block_d, 1)


def _columns(kind: Kind) -> int:
    return min(MAX_COLUMNS, max(16, 1 << (kind.dim - 1).bit_length()))


def _rows(kind: Kind, block_d: int, vectors: int) -> int:
    """How many rows a warp reads with ``vectors`` loads a thread, of 4 bytes or as wide as can be."""
    codes = block_d * (kind.bits or 4) // 8
    return max(1, vectors * _WARP * max(4, kind.align) // codes)
