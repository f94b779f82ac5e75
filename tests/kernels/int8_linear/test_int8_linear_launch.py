"""The choice of kernel and tile, which is a pure function of the shape and the device."""

import itertools
from dataclasses import replace

import pytest

from recpress_kernels.int8_linear.launch import (
    FUSED_TILES,
    MMA_TILES,
    WGMMA_TILES,
    Device,
    choose,
    k_split,
    supports,
    with_cross,
)

A100 = Device("cuda", 80, 108, (3, 9))
H100 = Device("cuda", 90, 132, (3, 9))
B200 = Device("cuda", 100, 148, (3, 9))
RTX4090 = Device("cuda", 89, 128, (3, 7))
RTX5090 = Device("cuda", 120, 170, (3, 8))
MI300 = Device("hip", 0, 304, (3, 9))
DEVICES = [A100, H100, B200, RTX4090, RTX5090, MI300]
SIZES = (1, 2, 3, 13, 16, 17, 64, 479, 1024, 5000)
# Bytes of shared memory a block may have, by capability; MI300 has 64 KiB.
SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99, 0: 64}


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"{d.backend}{d.capability}")
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_every_choice_can_be_launched(device, quantized, aligned):
    for m, n, k in itertools.product(SIZES, SIZES, (*SIZES, 100_000)):
        config = choose(m, n, k, device, quantized=quantized, aligned=aligned)
        assert supports(config, quantized=quantized, aligned=aligned)
        assert config.route != "tma" or 90 <= device.capability < 120
        assert config.route == "fused" or config.block_m >= 16
        assert config.block_n // config.halves >= 8 and config.block_k % 32 == 0
        operands = (config.block_m * (2 if config.route == "fused" else 1) + config.block_n) * config.block_k
        assert operands * (config.num_stages - 1) <= SHARED[device.capability] * 1024
        part = k_split(config, k)
        assert part % config.block_k == 0 and (config.splits - 1) * part < k <= config.splits * part


@pytest.mark.parametrize(("m", "route"), [(1, "fused"), (16, "fused"), (17, "gemm"), (4096, "gemm")])
def test_small_batches_quantise_inside(m, route):
    assert choose(m, 1024, 1024, A100, quantized=False, aligned=True).route == route


def test_hopper_takes_descriptors_where_rows_allow():
    assert choose(4096, 1024, 1024, H100, quantized=False, aligned=True).route == "tma"
    assert choose(4096, 1024, 479, H100, quantized=False, aligned=False).route == "gemm"


def test_a_cross_layer_takes_another_form_of_the_largest_tile_alone():
    large, middle = WGMMA_TILES[:2]
    assert with_cross(large, H100) == replace(large, num_warps=8)
    assert with_cross(MMA_TILES[0], RTX4090) == replace(MMA_TILES[0], halves=2)
    for config, device in ((middle, H100), (MMA_TILES[1], A100), (MMA_TILES[0], MI300), (MMA_TILES[0], RTX5090)):
        assert with_cross(config, device) == config


def test_halves_only_where_full_width_compiles_badly():
    def of(device):
        return choose(8192, 8192, 1024, device, quantized=True, aligned=False).halves

    assert of(A100) == 2
    assert of(Device("cuda", 80, 108, (3, 8))) == 2
    assert of(Device("cuda", 80, 108, (3, 7))) == 1
    assert [of(device) for device in (H100, B200, RTX5090, MI300)] == [1, 1, 1, 1]


def test_tiles_shrink_until_they_fill_the_gpu():
    tiles = [choose(m, 1024, 1024, A100, quantized=True, aligned=True) for m in (1, 64, 256, 1024, 8192)]
    areas = [tile.block_m * tile.block_n for tile in tiles]
    assert areas == sorted(areas) and areas[0] == 16 * 32 and areas[-1] == 128 * 128


def test_long_sums_of_few_outputs_are_split():
    assert choose(1, 64, 16_384, A100, quantized=False, aligned=True).splits == 16
    assert choose(1, 64, 1024, A100, quantized=False, aligned=True).splits == 1
    assert choose(1, 8192, 16_384, A100, quantized=False, aligned=True).splits == 1
    assert choose(16, 64, 16_384, H100, quantized=True, aligned=False).splits > 1


def test_what_cannot_run_says_why():
    assert "uint8" in supports(FUSED_TILES[0], quantized=True, aligned=True).reason
    assert "multiples of 16" in supports(WGMMA_TILES[0], quantized=False, aligned=False).reason
    assert "splits" in supports(replace(WGMMA_TILES[0], splits=2), quantized=False, aligned=True).reason
