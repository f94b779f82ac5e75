"""The choice of tiles for sparse24_linear."""

import itertools

import pytest

from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear.launch import Config, fits, grid
from recpress_kernels.sparse24_linear.launch import STAGED, choose

A100 = Device("cuda", 80, 108, (3, 9))


def test_every_choice_fits_and_covers_the_shape():
    sizes = (1, 3, 16, 17, 300, 4096)
    for m, n, k in itertools.product(sizes, sizes, (4, 64, 100, 1024)):
        config = choose(m, n, k, A100)
        blocks_n, blocks_m = grid(config, m, n)
        assert fits(config, n)
        assert blocks_n * 16 * config.tiles_n * config.warps >= n and blocks_m * 8 * config.tiles_m >= m


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((4096, 4096, 4096), STAGED),
        ((32, 65536, 1024), Config(4, 4, 2, 4)),  # half of STAGED's rows would be empty
        ((1024, 1024, 192), Config(4, 4, 2, 4)),  # 64 blocks of STAGED would leave processors idle
        ((1, 1024, 1024), Config(1, 1, 4, 1)),
    ],
)
def test_choices(shape, wanted):
    assert choose(*shape, A100) == wanted
