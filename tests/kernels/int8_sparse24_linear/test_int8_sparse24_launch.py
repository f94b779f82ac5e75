"""The choice of tiles for int8_sparse24_linear, and where it does not run."""

import itertools

import pytest

from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear.launch import Config, choose, fits, form, gluon, grid, rest, supports

A100 = Device("cuda", 80, 108, (3, 9))
MI300 = Device("hip", 0, 304, (3, 9))


def test_what_cannot_run_says_why_and_what_to_do():
    support = supports(Device("cuda", 75, 40, (3, 9)))
    assert not support and "no int8 dot for sm_75" in support.reason and "run it dense" in support.reason


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (Device("hip", 0, 304, (3, 9)), "HIP"),
        (Device("cuda", 75, 40, (3, 9)), "sm_75"),
        (Device("cuda", 80, 108, (3, 8)), "3.9 on and this is 3.8"),
    ],
)
def test_where_gluon_kernels_do_not_run_it_says_why_and_what_to_do(device, reason):
    support = gluon(device)
    assert not support and reason in support.reason and "run it dense" in support.reason


def test_what_can_run_says_how():
    assert supports(A100) and "through Gluon" in supports(A100).reason and form(A100) == "gluon"
    for version in ((3, 7), (3, 8)):
        older = Device("cuda", 90, 132, version)
        assert supports(older) and f"3.9 on and this is 3.{version[1]}" in supports(older).reason
        assert "plain Triton language" in supports(older).reason and form(older) == "plain"
    assert supports(MI300) and "saves traffic alone" in supports(MI300).reason and form(MI300) == "decompress"


@pytest.mark.parametrize("device", [A100, MI300], ids=["A100", "MI300"])
def test_every_choice_fits_and_covers_the_shape(device):
    sizes = (1, 3, 16, 17, 300, 4096)
    for m, n, k in itertools.product(sizes, sizes, (4, 64, 100, 128, 480, 1024)):
        config = choose(m, n, k, device)
        assert form(device) != "decompress" or config.tiles_m >= 2
        blocks_n, blocks_m = grid(config, m, n)
        assert fits(config, n)
        assert blocks_n * 16 * config.tiles >= n and blocks_m * 8 * config.tiles_m >= m


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((4096, 4096, 4096), Config(4, 4, 4, 4)),
        ((1, 1024, 1024), Config(1, 1, 2, 8, split=True)),
        ((8, 256, 384), Config(1, 1, 2, 4, split=True)),
        ((1, 16, 64), Config(1, 1, 4, 1)),
        ((1024, 1024, 192), Config(4, 4, 4, 4)),
    ],
)
def test_choices(shape, wanted):
    assert choose(*shape, A100) == wanted


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((4096, 4096, 4096), Config(1, 8, 1, 4)),
        ((1, 1024, 1024), Config(1, 2, 1, 1)),
        ((32, 8192, 384), Config(1, 4, 1, 1)),
    ],
)
def test_choices_of_the_dense_form(shape, wanted):
    assert choose(*shape, MI300) == wanted


def test_a_configuration_that_does_not_fit_says_why():
    assert "take one" in fits(Config(1, 1, 1, 2, stages=2, split=True), 64).reason
    assert "2 and more" in fits(Config(1, 1, 1, 2, stages=1), 64).reason
    assert "16 tiles of outputs and there are 4" in fits(Config(4, 1, 1, 4), 64).reason


@pytest.mark.parametrize("config", [Config(1, 1, 4, 4), Config(1, 1, 2, 4, split=True), Config(1, 1, 1, 2, split=True)])
def test_what_the_loop_leaves_over_is_covered_and_no_more(config):
    for steps in range(1, 40):
        at_once = config.unroll * (config.warps if config.split else 1)
        left, each = steps % at_once, config.warps if config.split else 1
        assert left <= rest(config, steps) * each < left + each
