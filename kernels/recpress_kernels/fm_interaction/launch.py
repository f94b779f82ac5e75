"""Which tile fm_interaction runs with on a GPU: a pure function of the shape. Imports neither torch nor triton."""

from dataclasses import dataclass

_NUMBERS = 256
"""Of one vector of each row, that a warp holds at once: 8 a thread, one or two loads of 16 bytes."""


@dataclass(frozen=True)
class Config:
    """One program of one warp computes ``block_b`` rows, ``block_d`` numbers of a vector at a time."""

    block_b: int
    block_d: int

    def __str__(self) -> str:
        return f"{self.block_b}x{self.block_d}"


def choose(dim: int) -> Config:
    """The configuration for vectors of ``dim`` numbers."""
    block_d = min(_NUMBERS, max(16, 1 << (dim - 1).bit_length()))
    return Config(_NUMBERS // block_d, block_d)
