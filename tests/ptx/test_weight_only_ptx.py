"""weight_only_linear as compiled: its PTX, executed, with whole numbers to the bit. Then broken on purpose."""

import re

import pytest
import torch
from ptx_launch import Emulated
from support.weight_only_oracle import expected, whole_numbers

from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.weight_only_linear import cuda, kernel
from recpress_kernels.weight_only_linear.launch import FLOAT32_TILES, TILES, Config, choose

FUNCTION = kernel.gemm_kernel
SMALL = Config(16, 32, 64, 2, 3)


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernel and the device; returns a function that sets how it runs."""

    def to(**options) -> None:
        monkeypatch.setattr(kernel, "gemm_kernel", Emulated(FUNCTION, ("y_ptr",), **options))
        monkeypatch.setattr(cuda, "device_facts", lambda device: Device("cuda", 80, 108, (3, 9)))

    return to


def check(m: int, k: int, n: int, dtype: torch.dtype, config: Config | None = SMALL) -> None:
    x, weight, scale, bias = whole_numbers(m, k, n, dtype)
    y = cuda.weight_only_linear(x, weight, scale, bias, "relu", config=config)
    torch.testing.assert_close(y, expected(x, weight, scale, bias), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_target(emulate, target, dtype):
    emulate(target=target)
    check(9, 130, 40, dtype)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 13, 7), (17, 479, 33), (35, 128, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_awkward_shapes(emulate, dtype, m, k, n):
    emulate()
    check(m, k, n, dtype)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_any_order_of_warps(emulate, order):
    emulate(order=order)
    check(33, 256, 64, torch.float16, TILES[3])


def test_float32_and_the_tile_that_is_chosen(emulate):
    emulate()
    check(5, 70, 33, torch.float32, None)


def test_the_first_tile_that_fills_the_gpu():
    device = Device("cuda", 80, 108, (3, 9))
    assert choose(4096, 4096, device, float32=False) == TILES[0]
    assert choose(1, 256, device, float32=False) == TILES[-1]
    assert choose(16, 64 * 108, device, float32=False) == TILES[-2]
    assert choose(4096, 4096, device, float32=True) == FLOAT32_TILES[0]


@pytest.mark.parametrize(
    "defect",
    [
        (r"(mma\.sync\S*\s*\{[^}]*\},\s*\{[^}]*\},\s*\{ *)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"cp\.async\.wait_group\s+0x\w+;|cp\.async\.wait_group\s+\d+;", ""),
    ],
    ids=["B registers swapped", "no wait"],
)
def test_a_defect_shows(emulate, defect):
    def edit(text: str) -> str:
        edited = re.sub(defect[0], defect[1], text)
        assert edited != text, "the edit found nothing to change"
        return edited

    emulate(edit=edit)
    with pytest.raises(AssertionError):
        check(17, 256, 64, torch.float16)
