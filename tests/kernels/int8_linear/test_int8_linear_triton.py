"""The Triton-language kernel without a GPU: under the interpreter in a process of its own, and compiled."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).parents[2] / "interpreted" / "int8_linear"


def test_under_the_interpreter():
    # The interpreter is chosen when triton is imported, so it has a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert re.search(r"[1-9]\d* passed", summary) and "skipped" not in summary


@pytest.mark.parametrize("backend, arch, warp", [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_compiles(backend, arch, warp, dtype):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from recpress_kernels.int8_linear.kernel import int8_linear_kernel

    types = {"x_ptr": f"*{dtype}", "w_ptr": "*i8", "w_scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": f"*{dtype}"}
    constants = {"HAS_BIAS": True, "BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 128}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in int8_linear_kernel.arg_names
    }
    source = ASTSource(int8_linear_kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget(backend, arch, warp), options={"num_warps": 4, "num_stages": 3})
    text = compiled.asm["ptx"] if backend == "cuda" else compiled.asm["amdgcn"]
    assert re.search(r"mma\.sync.*s32\.s8\.s8|wgmma.*s32\.s8\.s8|v_mfma_i32\S*i8", text), "no int8 tensor-core product"
