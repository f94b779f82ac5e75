"""Which tile dot_interaction runs with on a GPU: a pure function of the shape. Imports neither torch nor triton.

Tiles were chosen by counting registers and spills; no GPU has timed them yet.
"""

from dataclasses import dataclass

MAX_VECTORS = 128
"""A program holds all products of a row at once: 128 x 128 sums in the registers of 8 or 16 warps."""


@dataclass(frozen=True)
class Config:
    """One program computes one row: ``block_v`` vectors, ``block_d`` of their numbers at a time."""

    block_v: int
    block_d: int
    num_warps: int

    def __str__(self) -> str:
        return f"{self.block_v}x{self.block_d} warps={self.num_warps}"


def choose(count: int, dim: int, *, float32: bool) -> Config:
    """The configuration for ``count`` vectors, at most 128, of ``dim`` numbers; ``float32`` tells their dtype.

    On the ordinary cores, where float32 runs, larger blocks and fewer warps spill.
    """
    block_v = max(16, 1 << (count - 1).bit_length())
    if float32:
        return Config(block_v, 16, {16: 1, 32: 2, 64: 4, 128: 16}[block_v])
    block_d = min(64, max(16, 1 << (dim - 1).bit_length()))
    return Config(block_v, block_d, {16: 1, 32: 1, 64: 4, 128: 8}[block_v])
