"""That triton's own launcher takes what cuda.py gives it: arguments are bound, specialised and compiled, not run.

The driver of a GPU that is not there is all that is replaced.
"""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton
from support.int8_linear_oracle import operands
from triton.backends.compiler import GPUTarget

from recpress_kernels.int8_linear import cuda, kernel
from recpress_kernels.int8_linear.launch import FUSED_TILES, MMA_TILES, WGMMA_TILES

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: kernels cannot be compiled", allow_module_level=True)

KERNELS = ("fused_kernel", "gemm_kernel", "gemm_tma_kernel", "quantize_rows_kernel", "reduce_kernel")


@pytest.fixture
def compiled(monkeypatch):
    """A list that grows by the name of each kernel that a call would launch; call it with a capability first."""

    def on(capability: int) -> list[str]:
        names: list[str] = []
        driver = SimpleNamespace(
            get_current_device=lambda: capability,
            get_current_stream=lambda _device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
        # Compiling needs no module on a device: none is loaded before a kernel runs.
        monkeypatch.setattr(triton.runtime.driver, "_active", driver, raising=False)

        class Warmed:
            def __init__(self, function):
                self.function = function

            def __getitem__(self, grid):
                def launch(*arguments, **named):
                    names.append(self.function.warmup(*arguments, grid=grid, **named).metadata.name)

                return launch

        for name in KERNELS:
            monkeypatch.setattr(kernel, name, Warmed(getattr(kernel, name)))
        return names

    return on


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (16, 64, 64), (3, 130, 7)])
def test_fused(compiled, m, k, n):
    names = compiled(80)
    cuda.int8_linear(*operands(m, k, n).all(), config=replace(FUSED_TILES[1], splits=2))
    assert names == ["fused_kernel", "reduce_kernel"]


@pytest.mark.parametrize("static", [False, True])
def test_gemm(compiled, static):
    names = compiled(80)
    o = operands(17, 130, 7, static=static, quantized_out=static, dtype=torch.bfloat16, activation="silu")
    cuda.int8_linear(*o.all(), config=replace(MMA_TILES[2], halves=2))
    assert names == ["quantize_rows_kernel", "gemm_kernel"]


@pytest.mark.parametrize("quantized", [False, True])
def test_descriptors(compiled, quantized):
    names = compiled(90)
    o = operands(200, 480, 72, dtype=torch.uint8 if quantized else torch.float16)
    cuda.int8_linear(*o.all(), config=WGMMA_TILES[2])
    assert names == (["gemm_tma_kernel"] if quantized else ["quantize_rows_kernel", "gemm_tma_kernel"])
