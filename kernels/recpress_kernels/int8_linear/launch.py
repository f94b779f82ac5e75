"""Which kernel and tile int8_linear runs with on a GPU: a pure function of the shape and the device.

Imports neither torch nor triton. Nothing is tuned while serving; a test or ``recpress tune`` forces a choice by
giving a :class:`Config` of its own. Tiles were chosen by counting instructions (``recpress_kernels.inspect``) and
by reasoning on the size of the grid; no GPU has timed them yet.
"""

import functools
from dataclasses import dataclass, replace
from typing import Literal

from recpress_kernels.support import Support

SMALL_M = 16
"""Rows up to which every program quantises its activations itself."""

ROW_BYTES = 16
"""Rows of int8 operands that start at multiples of this are read in the widest loads and by tensor descriptors."""


@dataclass(frozen=True)
class Device:
    """What the choice needs to know of a GPU and of the compiler."""

    backend: Literal["cuda", "hip"]
    capability: int  # CUDA compute capability times ten: 80, 86, ...; 0 with HIP
    processors: int  # streaming multiprocessors, or compute units
    triton: tuple[int, int]  # major and minor version


@dataclass(frozen=True)
class Config:
    """One program computes ``block_m`` rows times ``block_n`` columns, ``block_k`` of K at a time.

    route ``fused`` quantises inside, ``gemm`` and ``tma`` run on int8 operands, the latter through tensor
    descriptors. ``halves`` 2 multiplies as two dots of half the width. ``splits`` programs share a block's K.
    """

    route: Literal["fused", "gemm", "tma"]
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    halves: int = 1
    splits: int = 1

    def __str__(self) -> str:
        tile = f"{self.block_m}x{self.block_n}x{self.block_k} warps={self.num_warps} stages={self.num_stages}"
        return f"{tile} halves={self.halves}" + (f" splits={self.splits}" if self.splits > 1 else "")


# Each list is walked in order, from the tile that does most arithmetic a byte to the one that fills a GPU at few
# rows: the first that has enough blocks is taken, or else the last.
MMA_TILES = (
    Config("gemm", 128, 128, 64, 4, 4),
    Config("gemm", 64, 64, 128, 4, 4),
    Config("gemm", 32, 64, 128, 4, 3),
    Config("gemm", 16, 32, 128, 4, 4),
)
# block_k 256, since on sm_90 the loop's overhead is 47 instructions however long it is: 11.9 an IGMMA.64x128x32
# at 128, 7.9 at 256.
WGMMA_TILES = (
    Config("tma", 128, 128, 256, 4, 3),
    Config("tma", 64, 128, 256, 4, 3),
    Config("tma", 64, 64, 256, 4, 4),
    *MMA_TILES[2:],
)
# Rows that no descriptor takes; block_k 64 takes 18.5 instructions an IGMMA.64x128x32 here, 128 takes 14.3.
WGMMA_POINTER_TILES = (replace(MMA_TILES[0], block_k=128, num_stages=3), *MMA_TILES[1:])
# With 4 warps the epilogue of 128 columns a thread spills 8 registers on sm_100.
TCGEN_TILES = (replace(WGMMA_TILES[0], num_warps=8), *WGMMA_TILES[1:])
TCGEN_POINTER_TILES = (replace(WGMMA_POINTER_TILES[0], num_warps=8), *WGMMA_POINTER_TILES[1:])
# A fused block never has more rows than there are: a block of 1 takes 19 instructions an IMMA, one of 16 takes 99,
# nearly all of them divisions.
FUSED_TILES = (
    Config("fused", 16, 64, 128, 4, 3),
    Config("fused", 16, 32, 128, 4, 3),
    Config("fused", 16, 16, 128, 4, 3),
)


@functools.lru_cache(maxsize=4096)
def choose(m: int, n: int, k: int, device: Device, *, quantized: bool, aligned: bool) -> Config:
    """The configuration for ``[m, k] @ [n, k].T``, all at least 1.

    Args:
        quantized: x comes as uint8.
        aligned: rows of both int8 operands start at multiples of 16 bytes.
    """
    if m <= SMALL_M and not quantized:
        return _split(first_that_fills([fused(tile, m, device) for tile in FUSED_TILES], m, n, device), m, n, k, device)
    tiles = _tiles(device, quantized, aligned)
    tile = first_that_fills([t for t in tiles if t.block_m <= max(SMALL_M, _power_of_two(m))], m, n, device)
    if tile.route == "gemm":
        tile = _split(replace(tile, halves=halves(device, tile.block_m)), m, n, k, device)
    return tile


def fused(tile: Config, m: int, device: Device) -> Config:
    """A tile of FUSED_TILES for ``m`` rows, where the matrix instructions take fewer than 16."""
    if device.backend == "hip":  # fewer rows compile to scalar multiplications there
        return tile
    block_m = _power_of_two(m)
    # At one row and block_k 128 a thread loads one float16, which no asynchronous copy can: 176 instructions an IMMA.
    return replace(tile, block_m=block_m, block_k=256 if block_m <= 8 else tile.block_k)


def with_cross(config: Config, device: Device) -> Config:
    """``config`` for the epilogue of a cross layer, which has two more operands of the size of the output.

    On sm_90 they and the sums of 128 x 128 are more than 4 warps can hold: 80 spills in float16, 282 in float32, which
    take as long as the products. 8 warps spill none. On sm_8x, where 8 warps take a third more instructions, two halves
    are finished one after the other: 0 and 68 spills, where one takes 56 and 292 (triton 3.7).
    """
    if device.backend == "hip" or config.block_m * config.block_n < 128 * 128 or device.capability >= 100:
        return config
    return replace(config, halves=2) if device.capability < 90 else replace(config, num_warps=8)


def supports(config: Config, *, quantized: bool, aligned: bool) -> Support:
    """Whether a configuration can run on such operands, with the meaning of ``choose``."""
    if config.route == "fused" and quantized:
        return Support(False, "route fused quantises floats and x is uint8; take gemm or tma")
    if config.route == "tma" and not aligned:
        return Support(False, f"route tma needs rows at multiples of {ROW_BYTES} bytes; pad them, or take gemm")
    if config.route == "tma" and (config.splits > 1 or config.halves > 1):
        return Support(False, f"route tma takes neither splits nor halves, given {config}")
    return Support(True, f"route {config.route}")


def _tiles(device: Device, quantized: bool, aligned: bool) -> tuple[Config, ...]:
    """Tensor descriptors pay on data-centre Hopper and Blackwell, whose tensor cores read shared memory."""
    if device.backend == "hip" or not 90 <= device.capability < 120:
        return MMA_TILES
    hopper = device.capability < 100
    if supports(WGMMA_TILES[0], quantized=quantized, aligned=aligned):
        return WGMMA_TILES if hopper else TCGEN_TILES
    return WGMMA_POINTER_TILES if hopper else TCGEN_POINTER_TILES


def halves(device: Device, block_m: int) -> int:
    """2 where one full-width int8 dot is compiled badly.

    On sm_8x triton 3.8 and 3.9 carry int8 operands across the loop and split them into bytes: 12.5 instructions
    an IMMA and 140 spills at 128x128x64. Two half-width dots take 2.09 and none. On sm_90 they would halve the
    width of a wgmma instead; but blocks of fewer rows than a wgmma's 64 take mma.sync there too, and fare better
    in halves on every target and version (4.1 against 11.3 at 16x32x128).
    """
    if device.backend == "hip":
        return 1
    return 2 if block_m < 64 or (device.capability < 90 and device.triton >= (3, 8)) else 1


def k_split(config: Config, k: int) -> int:
    """How much of K one program takes: a multiple of ``block_k``."""
    return -(-k // (config.splits * config.block_k)) * config.block_k


def _split(config: Config, m: int, n: int, k: int, device: Device) -> Config:
    """Split K where blocks leave more than half of the GPU idle and each part keeps at least 1024 of K.

    A split costs a second launch, some microseconds, which shorter sums do not win back.
    """
    wanted = min(device.processors // blocks(config, m, n), k // 1024, 16)
    if wanted < 2:
        return config
    parts = -(-k // k_split(replace(config, splits=wanted), k))  # rounding to block_k may leave the last ones empty
    return replace(config, splits=parts)


def first_that_fills(tiles: list, m: int, n: int, device: Device):
    """The first of ``tiles``, which have ``block_m`` and ``block_n``, with a block a processor; or else the last."""
    return next((tile for tile in tiles if blocks(tile, m, n) >= device.processors), tiles[-1])


def blocks(config, m: int, n: int) -> int:
    """How many blocks of ``block_m`` times ``block_n`` there are."""
    return -(-m // config.block_m) * -(-n // config.block_n)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
