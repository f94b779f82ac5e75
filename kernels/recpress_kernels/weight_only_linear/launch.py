"""Which tile weight_only_linear runs with on a GPU: a pure function of the shape and the device.

Imports neither torch nor triton. Tiles were chosen by counting instructions; no GPU has timed them yet.
"""

import functools
from dataclasses import dataclass

from recpress_kernels.int8_linear.launch import Device, first_that_fills


@dataclass(frozen=True)
class Config:
    """One program computes ``block_m`` rows times ``block_n`` columns, ``block_k`` of K at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k} warps={self.num_warps} stages={self.num_stages}"


# Walked in order, from the tile that does most arithmetic a byte to the one that fills a GPU at few rows: the first
# that has enough blocks is taken, or else the last.
TILES = (
    Config(128, 128, 64, 8, 3),
    Config(64, 128, 64, 4, 3),
    Config(64, 64, 64, 4, 3),
    Config(32, 64, 64, 4, 3),
    Config(16, 64, 128, 4, 3),
    Config(16, 32, 128, 4, 3),
)
# float32 runs on the GPU's ordinary cores: tensor cores would round x to 11 bits.
FLOAT32_TILES = (Config(64, 64, 16, 4, 3), Config(16, 32, 32, 4, 3))


@functools.lru_cache(maxsize=4096)
def choose(m: int, n: int, device: Device, *, float32: bool) -> Config:
    """The configuration for m rows of x and n outputs, both at least 1; ``float32`` tells the dtype of x."""
    tiles = FLOAT32_TILES if float32 else TILES
    fitting = [tile for tile in tiles if tile.block_m <= max(16, 1 << (m - 1).bit_length())]
    return first_that_fills(fitting, m, n, device)
