"""Which tile sparse24_linear runs with on a GPU: a pure function of shape and device.

Imports neither torch nor triton. On which devices it runs is what int8_sparse24_linear.launch.gluon says.
"""

from dataclasses import replace

from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear import launch
from recpress_kernels.int8_sparse24_linear.launch import Config, blocks, fits

STAGED = Config(4, 8, 1, 4, stages=3)
"""Rows of x through shared memory take one ldmatrix for four loads of a word: 2.0 to 2.1 instructions an HMMA.SP."""


def unrolled(config: Config) -> Config:
    """4 x 4 tiles take 2.7 to 2.9 instructions an HMMA.SP at 2 steps; at 4, what follows their loop spills 10 to 18.

    A single tile takes 9.5 to 10.4 instructions at 4 steps and up to 11.5 at 2.
    """
    return config if config.split else replace(config, unroll=2 if config.tiles_n * config.tiles_m >= 16 else 4)


def choose(m: int, n: int, k: int, device: Device) -> Config:
    """The configuration for x ``[m, k]`` and a weight ``[n, k]``, all at least 1."""
    if m > 8 * launch.MAX_TILES_M and fits(STAGED, n) and blocks(STAGED, m, n) >= device.processors:
        return STAGED
    return unrolled(launch.choose(m, n, k, device))
