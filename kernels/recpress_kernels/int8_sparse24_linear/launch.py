"""Whether int8_sparse24_linear can run on a GPU, and with which tile: a pure function of shape and device.

Imports neither torch nor triton. Tiles were chosen by counting instructions; no GPU has timed them yet. Whether a layer
should run 2:4 at all is not asked here: public figures have it slower than dense at small shapes.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.support import Support

ROWS, COLUMNS, STEP = 16, 8, 64
"""What one mma.sp takes: outputs, rows of x, inputs."""
GLUON_TRITON = (3, 9)
"""The first triton whose Gluon has threadwise inline asm."""


@dataclass(frozen=True)
class Config:
    """One program of ``warps`` computes ``16 * tiles_n * warps`` outputs of ``8 * tiles_m`` rows of x.

    ``unroll`` steps of 64 inputs go through the loop at once; what is left over follows it. With ``stages`` x goes
    through so many places in shared memory, step by step, where all warps read it; else each loads it into registers.
    With ``split`` the warps share ``16 * tiles_n`` outputs, each takes every ``warps``-th step, and they add up.
    """

    tiles_n: int
    tiles_m: int
    unroll: int
    warps: int
    stages: int = 0
    split: bool = False

    @property
    def tiles(self) -> int:
        """Of outputs a program."""
        return self.tiles_n * (1 if self.split else self.warps)

    def __str__(self) -> str:
        form = f" stages={self.stages}" if self.stages else " split" if self.split else ""
        return f"{self.tiles_n}x{self.tiles_m} tiles unroll={self.unroll} warps={self.warps}{form}"


# Tiles of outputs a warp and warps, walked in order: the first that has enough blocks is taken, or else the last that
# fits. 4 x 4 tiles take 2.05 to 2.4 instructions an IMMA.SP on sm_80, 2 x 4 take 2.6. Not chosen are 4 x 8, of which
# one step takes 3.2 and two spill where one is left over, and x through shared memory, which takes 2.75.
WIDTHS = ((4, 4), (2, 4), (1, 4), (1, 2), (1, 1))
MAX_TILES_M = 4
UNROLL = 4
# Where one tile a warp and four warps a block do not fill a GPU, up to eight warps split K: the time is that of reading
# weights, and they have eight times as many bytes on the way at once.
MAX_SPLIT = 8
SPLIT_UNROLL = 2
# Of the form that multiplies dense; a dot takes 16 rows at least. With 64 rows the expansion is shared by the most.
DENSE_WIDTHS = ((1, 4), (1, 2), (1, 1))
DENSE_TILES_M = (2, 4, 8)


def form(device: Device) -> Literal["gluon", "plain", "decompress"]:
    """Which form of the kernel a device that :func:`supports` allows takes: all give the same bits."""
    if device.backend == "hip":
        return "decompress"
    return "gluon" if gluon(device) else "plain"


def supports(device: Device) -> Support:
    """Whether a kernel runs on ``device``, and which form it takes or why not."""
    found = gluon(device)
    if found:
        return found
    if device.backend == "hip":
        why = "mma.sp is an instruction of NVIDIA GPUs and this is a HIP device"
        return Support(True, f"expanded in registers and multiplied dense, which saves traffic alone: {why}")
    if device.capability < 80:
        return Support(False, f"triton compiles no int8 dot for sm_{device.capability}: {found.reason}")
    why = f"Gluon has threadwise inline asm from triton {_dotted(GLUON_TRITON)} on and this is {_dotted(device.triton)}"
    return Support(True, f"mma.sp through the plain Triton language, its layout asserted: {why}")


def gluon(device: Device) -> Support:
    """Whether kernels on sparse tensor cores that are written in Gluon run on ``device``, or why not."""
    dense = "unpack the weight and run it dense"
    if device.backend == "hip":
        return Support(False, f"mma.sp is an instruction of NVIDIA GPUs and this is a HIP device: {dense}")
    if device.capability < 80:
        return Support(False, f"sparse tensor cores begin with sm_80 and this is sm_{device.capability}: {dense}")
    if device.triton < GLUON_TRITON:
        given, wanted = _dotted(device.triton), _dotted(GLUON_TRITON)
        return Support(False, f"Gluon has threadwise inline asm from triton {wanted} on and this is {given}: {dense}")
    return Support(True, "mma.sp through Gluon")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(str(part) for part in version)


def fits(config: Config, n: int) -> Support:
    """Whether a configuration can run on a weight of ``n`` outputs."""
    tiles = -(-n // ROWS)
    if config.tiles > tiles:
        return Support(False, f"{config} takes {config.tiles} tiles of outputs and there are {tiles}")
    if config.stages == 1:
        return Support(False, f"{config} has one place for x in shared memory; give 2 and more, or 0 to use none")
    if config.stages and config.split:
        return Support(False, f"{config} cannot both stage x and split K; take one")
    return Support(True, str(config))


def rest(config: Config, steps: int) -> int:
    """How many steps of 64 inputs, with ``split`` of each warp, the loop leaves over."""
    if not config.split:
        return steps % config.unroll
    return -(-(steps % (config.warps * config.unroll)) // config.warps)


@functools.lru_cache(maxsize=4096)
def choose(m: int, n: int, k: int, device: Device) -> Config:
    """The configuration for x ``[m, k]`` and a weight ``[n, k]``, all at least 1."""
    wanted = 1 << (-(-m // COLUMNS) - 1).bit_length()
    if form(device) == "decompress":
        tiles_m = next((tiles for tiles in DENSE_TILES_M if tiles >= wanted), DENSE_TILES_M[-1])
        possible = [Config(tiles, tiles_m, 1, warps) for tiles, warps in DENSE_WIDTHS]
    else:
        possible = [Config(tiles, min(MAX_TILES_M, wanted), UNROLL, warps) for tiles, warps in WIDTHS]
    possible = [config for config in possible if fits(config, n)]
    config = next((c for c in possible if blocks(c, m, n) >= device.processors), possible[-1])
    warps = min(MAX_SPLIT, 1 << (-(-k // STEP)).bit_length() - 1)
    if form(device) != "gluon" or config.tiles_n > 1 or config.warps > 2 or warps < 2:
        return config
    return Config(1, config.tiles_m, SPLIT_UNROLL, warps, split=True)


def grid(config: Config, m: int, n: int) -> tuple[int, int]:
    """Blocks of outputs, blocks of rows."""
    return -(-n // (ROWS * config.tiles)), -(-m // (COLUMNS * config.tiles_m))


def blocks(config: Config, m: int, n: int) -> int:
    """How many programs run."""
    blocks_n, blocks_m = grid(config, m, n)
    return blocks_n * blocks_m
