"""The epilogue of a cross layer as compiled: its PTX, executed, gives the bits of the reference. Then broken."""

import re
from dataclasses import replace

import pytest
import torch
from ptx_launch import Emulated
from support.cross_oracle import cross_operands

from recpress_kernels.int8_cross import cuda, reference
from recpress_kernels.int8_linear import kernel
from recpress_kernels.int8_linear.launch import FUSED_TILES, MMA_TILES, Config

WRITES = {
    "fused_kernel": ("y_ptr", "partial_ptr", "row_scale_ptr"),
    "gemm_kernel": ("y_ptr", "partial_ptr"),
    "gemm_tma_kernel": ("y_ptr",),
    "quantize_rows_kernel": ("q_ptr", "row_scale_ptr"),
    "reduce_kernel": ("y_ptr",),
}
FUNCTIONS = {name: getattr(kernel, name) for name in WRITES}
ROUTES = {
    "fused": FUSED_TILES[1],
    "gemm": replace(MMA_TILES[3], halves=2),
    "tma": Config("tma", 32, 32, 128, 4, 3),
    "split": replace(FUSED_TILES[1], splits=2),
}


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernels; returns a function that sets how they run."""

    def to(**options) -> None:
        for name, writes in WRITES.items():
            monkeypatch.setattr(kernel, name, Emulated(FUNCTIONS[name], writes, **options))

    return to


def check(operands: tuple, config: Config) -> None:
    wanted = reference.int8_cross(*operands)
    torch.testing.assert_close(cuda.int8_cross(*operands, config=config), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
def test_every_target(emulate, target):
    emulate(target=target)
    check(cross_operands(17, 64, dtype=torch.float16), ROUTES["gemm"])


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_route_of_low_rank(emulate, route, dtype):
    emulate(order="backward")
    check(cross_operands(9, 144, 32, dtype), ROUTES[route])


def test_awkward_shapes(emulate):
    emulate()
    for m, k in ((1, 1), (3, 13), (33, 17)):
        check(cross_operands(m, k), ROUTES["fused"])


def one_rounding(text: str) -> str:
    """The last sum of the kernel and the product that goes into it in one instruction."""
    to, product, other = re.findall(r"add\.rn\.f32\s+(%r\d+), (%r\d+), (%r\d+);", text)[-1]
    factors = re.search(rf"mul\.rn\.f32\s+{product}, ([^;]*);", text)[1]
    return re.sub(rf"add\.rn\.f32\s+{to}, {product}, {other};", f"fma.rn.f32 {to}, {factors}, {other};", text)


def exchanged(text: str) -> str:
    """x for x0: parameters 5 and 6 of gemm_kernel."""
    return re.sub(r"_param_([56])\]", lambda found: f"_param_{11 - int(found[1])}]", text)


@pytest.mark.parametrize("edit", [one_rounding, exchanged], ids=["one rounding", "x for x0"])
def test_a_defect_shows(monkeypatch, emulate, edit):
    emulate()
    monkeypatch.setattr(kernel, "gemm_kernel", Emulated(FUNCTIONS["gemm_kernel"], ("y_ptr",), edit=edit))
    with pytest.raises(AssertionError, match="not equal"):
        check(cross_operands(17, 64), ROUTES["gemm"])
