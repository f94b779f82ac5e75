"""int8_sparse24_linear where there are no sparse tensor cores, under triton's interpreter: integers to the bit."""

from dataclasses import replace

import pytest
import torch
from support.int8_linear_oracle import Operands, expected, operands
from support.sparse24_oracle import canonical, dense

from recpress_kernels.formats.sparse24_gpu import FragmentWeight, pack
from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear import cuda
from recpress_kernels.int8_sparse24_linear.launch import Config


@pytest.fixture(autouse=True)
def hip(monkeypatch):
    monkeypatch.setattr(cuda, "device_facts", lambda device: Device("hip", 0, 4, (3, 9)))


def layer(m: int, k: int, n: int, **options) -> tuple[Operands, FragmentWeight]:
    values, indices = canonical(n, k)
    return replace(operands(m, k, n, **options), weight=dense(values, indices)), pack(values, indices)


def run(o: Operands, weight: FragmentWeight, config: Config | None = None) -> torch.Tensor:
    return cuda.int8_sparse24_linear(o.x, weight, *o.all()[2:], config=config)


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 4, 1), (3, 132, 17), (35, 60, 70), (70, 64, 16), (17, 480, 100)])
def test_awkward_shapes_to_the_bit(m, k, n):
    o, weight = layer(m, k, n, activation="relu")
    same(run(o, weight), expected(o))


@pytest.mark.parametrize("config", [Config(1, 2, 1, 2), Config(2, 4, 2, 2), Config(1, 8, 4, 4)], ids=str)
def test_tiles(config):
    o, weight = layer(35, 320, 70, bias=False)
    same(run(o, weight, config), expected(o))


@pytest.mark.parametrize("zero_point", [0, 37])
def test_uint8_input_and_output(zero_point):
    o, weight = layer(9, 60, 40, dtype=torch.uint8, zero_point=zero_point, quantized_out=True, activation="relu")
    same(run(o, weight), expected(o))


def test_rows_that_are_not_finite_give_nan_alone():
    o, weight = layer(5, 132, 17, dtype=torch.float16, static=True)
    o.x[1, 3], o.x[4, 131] = float("nan"), float("inf")
    y = run(o, weight)
    assert y.isnan().all(dim=1).tolist() == [False, True, False, False, True]
    same(y, expected(o))


@pytest.mark.parametrize("bit", [0, 3, 28])
def test_a_flipped_bit_of_metadata_shows(bit):
    o, weight = layer(9, 128, 64)
    weight.metadata[0, 0, 5] ^= 1 << bit
    assert not torch.equal(run(o, weight), expected(o))
