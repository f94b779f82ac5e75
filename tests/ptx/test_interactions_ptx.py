"""dot_interaction and fm_interaction as compiled: their PTX, executed, on whole numbers. Then broken on purpose."""

import re

import pytest
import torch
from ptx_launch import Emulated
from support.interaction_oracle import PAIR, dots, quantized, second_order, whole_numbers

from recpress_kernels.dot_interaction import cuda as dot_cuda
from recpress_kernels.dot_interaction import kernel as dot_kernel
from recpress_kernels.dot_interaction.launch import MAX_VECTORS, choose
from recpress_kernels.fm_interaction import cuda as fm_cuda
from recpress_kernels.fm_interaction import kernel as fm_kernel

DOTS, SECOND_ORDER = dot_kernel.dots_kernel, fm_kernel.second_order_kernel


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernels; returns a function that sets how they run."""

    def to(**options) -> None:
        monkeypatch.setattr(dot_kernel, "dots_kernel", Emulated(DOTS, ("y_ptr",), **options))
        monkeypatch.setattr(fm_kernel, "second_order_kernel", Emulated(SECOND_ORDER, ("y_ptr",), **options))

    return to


def check(shape: tuple[int, int, int], front: int, dtype: torch.dtype, own: bool = False) -> None:
    vectors, given = whole_numbers(*shape, front, dtype)
    y = dot_cuda.dot_interaction(vectors, given, own)
    torch.testing.assert_close(y, dots(vectors, given, own).to(dtype), rtol=0, atol=0)


def check_second_order(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    vectors, _ = whole_numbers(*shape, 0, dtype)
    torch.testing.assert_close(fm_cuda.fm_interaction(vectors), second_order(vectors).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_target(emulate, target, dtype):
    emulate(target=target)
    check((2, 27, 64), 64, dtype)
    check_second_order((5, 27, 64), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_awkward_shapes(emulate, dtype):
    emulate()
    for shape, front, own in (((1, 1, 1), 1, True), ((3, 6, 16), 16, False), ((2, 9, 21), 5, True)):
        check(shape, front, dtype, own)
        check_second_order(shape, dtype)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_any_order_of_warps(emulate, order):
    emulate(order=order)
    check((1, 40, 64), 0, torch.float16)
    check((1, 27, 32), 64, torch.float32)


def test_quantised_for_the_next_layer(emulate):
    emulate()
    vectors, front = whole_numbers(3, 9, 16, 8, torch.float16)
    want = dots(vectors, front)
    torch.testing.assert_close(dot_cuda.dot_interaction(vectors, front, False, *PAIR), quantized(want), rtol=0, atol=0)
    vectors[1] = float("nan")
    y = dot_cuda.dot_interaction(vectors, front, False, *PAIR)
    torch.testing.assert_close(y[1], quantized(torch.nan_to_num(dots(vectors, front), -1e9))[1], rtol=0, atol=0)


def test_every_count_of_vectors_has_a_configuration():
    for count in range(1, MAX_VECTORS + 1):
        for float32 in (False, True):
            config = choose(count, count, float32=float32)
            assert max(16, count) <= config.block_v < max(17, 2 * count)


@pytest.mark.parametrize(
    ("defect", "dtype"),
    [
        ((r"(mma\.sync\S*\s*\{[^}]*\},\s*\{[^}]*\},\s*\{ *)(%r\d+), (%r\d+)", r"\1\3, \2"), torch.float16),
        ((r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans", "ldmatrix.sync.aligned.m8n8.x4"), torch.float16),
        ((r"bar\.sync\s+0;", ""), torch.float32),
    ],
    ids=["B registers swapped", "not transposed", "no barrier"],
)
def test_a_defect_shows(emulate, defect, dtype):
    def edit(text: str) -> str:
        edited = re.sub(defect[0], defect[1], text)
        assert edited != text, "the edit found nothing to change"
        return edited

    emulate(edit=edit, order="forward")
    with pytest.raises(AssertionError):
        check((1, 27, 64), 64, dtype)
