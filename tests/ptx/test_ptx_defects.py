"""The emulator against kernels broken on purpose: each defect must show, or its passing says nothing."""

import re
from collections.abc import Callable

import pytest
import torch
from ptx_launch import Emulated
from ptx_memory import AccessError
from support.int8_linear_oracle import expected, operands

from recpress_kernels.int8_linear import cuda, kernel
from recpress_kernels.int8_linear.launch import Config

TILE = Config("gemm", 16, 32, 128, 4, 4, halves=2)


def product(monkeypatch, edit: Callable[[str], str], order: str, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The real product on quantised input, its PTX edited: what it gives and what is right."""

    def checked(text: str) -> str:
        edited = edit(text)
        assert edited != text or edit is unchanged, "the edit found nothing to change"
        return edited

    stand_in = Emulated(kernel.gemm_kernel, ("y_ptr",), edit=checked, order=order)
    monkeypatch.setattr(kernel, "gemm_kernel", stand_in)
    o = operands(16, 512, 32, dtype=torch.uint8, zero_point=0, **options)
    o.x[o.x > 100] = 127
    return cuda.int8_linear(*o.all(), config=TILE), expected(o)


def unchanged(text: str) -> str:
    return text


def main_loop(text: str) -> slice:
    """The text of the loop with the products: from its label to its backward branch."""
    for found in re.finditer(r"^(\$L__BB\d+_\d+):.*?bra \s*\1;", text, flags=re.MULTILINE | re.DOTALL):
        if "mma.sync" in found[0] and "%r88, %r88" not in found[0] and found[0].count("ldmatrix") > 4:
            return slice(*found.span())
    raise AssertionError("no main loop in the PTX")


def in_loop(pattern: str, replacement: str, count: int = 0) -> Callable[[str], str]:
    def edit(text: str) -> str:
        where = main_loop(text)
        return text[: where.start] + re.sub(pattern, replacement, text[where], count=count) + text[where.stop :]

    return edit


@pytest.mark.parametrize("order", ["in step", "forward", "backward"])
def test_without_an_edit_the_product_is_right(monkeypatch, order):
    given, wanted = product(monkeypatch, unchanged, order)
    assert torch.equal(given, wanted)


@pytest.mark.parametrize(
    ("defect", "order"),
    [
        ((r"cp\.async\.wait_group\s+\d+;", ""), "in step"),
        ((r"(mma\.sync\S*)\.s8\.s8\.s32", r"\1.s8.u8.s32"), "in step"),
        ((r"(mma\.sync[^{]*\{[^}]*\}, \{ )(%r\d+), (%r\d+)", r"\1\3, \2"), "in step"),
        ((r"bar\.sync\s+0;", ""), "forward"),
        ((r"bar\.sync\s+0;", ""), "backward"),
    ],
    ids=["no wait", "u8 for s8", "A registers swapped", "no barrier, forward", "no barrier, backward"],
)
def test_a_defect_in_the_main_loop_shows(monkeypatch, defect, order):
    given, wanted = product(monkeypatch, in_loop(*defect), order)
    assert not torch.equal(given, wanted)


def test_a_wait_for_one_group_too_few_shows(monkeypatch):
    def edit(text: str) -> str:
        where = main_loop(text)
        later = re.sub(r"wait_group\s+(\d+)", lambda found: f"wait_group {int(found[1]) + 3}", text[where])
        return text[: where.start] + later + text[where.stop :]

    given, wanted = product(monkeypatch, edit, "in step")
    assert not torch.equal(given, wanted)


def test_a_store_past_the_end_is_refused(monkeypatch):
    with pytest.raises(AccessError, match=r"st\.global"):
        product(monkeypatch, lambda text: re.sub(r"(st\.global\S*\s*\[\s*%rd\d+ \+ )0", r"\g<1>4096", text), "in step")


def test_a_load_that_is_not_aligned_is_refused(monkeypatch):
    with pytest.raises(AccessError, match="no multiple of"):
        product(monkeypatch, lambda text: re.sub(r"(ldmatrix\S* .*, \[%r\d+)\]", r"\1+8]", text), "in step")


def test_a_store_to_an_input_is_refused(monkeypatch):
    monkeypatch.setattr(kernel, "gemm_kernel", Emulated(kernel.gemm_kernel, ()))
    o = operands(16, 128, 32, dtype=torch.uint8)
    with pytest.raises(AccessError, match=r"st\.global"):
        cuda.int8_linear(*o.all(), config=TILE)
