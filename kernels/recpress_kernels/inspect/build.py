"""Compile one kernel ahead of time for a target, on a machine that needs no GPU."""

import functools
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from recpress_kernels.errors import KernelInputError

TARGETS: dict[str, GPUTarget] = {
    **{f"sm_{cc}": GPUTarget("cuda", cc, 32) for cc in (80, 86, 89, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Case:
    """One kernel with everything that fixes its machine code, but for the target."""

    kernel: str  # the name in the report
    function: object  # what @triton.jit or @gluon.jit made
    signature: Mapping[str, str]  # argument: triton's type, constexprs left out
    constexprs: Mapping[str, object]
    aligned: frozenset[str] = frozenset()  # arguments that are multiples of 16, or pointers to such addresses
    num_warps: int = 4
    num_stages: int = 3
    targets: tuple[str, ...] = tuple(TARGETS)
    config: str = ""  # the launch configuration in words

    def source(self) -> ASTSource:
        names = list(self.function.arg_names)
        signature = {name: self.signature.get(name, "constexpr") for name in names}
        attrs = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in self.aligned}
        source = GluonASTSource if isinstance(self.function, GluonJITFunction) else ASTSource
        return source(self.function, signature, constexprs=dict(self.constexprs), attrs=attrs)


@dataclass(frozen=True)
class Build:
    """What a compilation left behind, as far as it is the same for all vendors."""

    asm: Mapping[str, object]
    code: str  # disassembly
    registers: int
    spills: int  # values of 32 bits that a thread keeps in local memory
    shared_bytes: int
    vendor: str = field(default="cuda")


def compiled(case: Case, target: str):
    """What triton makes of ``case`` for one of :data:`TARGETS`; a second or so where its cache does not hold it."""
    if target not in TARGETS:
        raise KernelInputError(f"target {target!r} is not known; choose one of {', '.join(TARGETS)}")
    gpu = TARGETS[target]
    # Products and sums are never fused, so that float outputs have the same bits on every device; said here since
    # the default changes in triton 3.10.
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": False}
    return triton.compile(case.source(), target=gpu, options=options)


def build(case: Case, target: str) -> Build:
    """:func:`compiled`, and what its machine code tells; reading that takes 0.3 s more."""
    made = compiled(case, target)
    vendor = TARGETS[target].backend
    code, registers, spills = (_cuda_facts if vendor == "cuda" else _hip_facts)(made.asm)
    return Build(made.asm, code, registers, spills, made.metadata.shared, vendor)


@functools.cache
def _nvidia_tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _cuda_facts(asm: Mapping[str, object]) -> tuple[str, int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        usage = _run(_nvidia_tool("cuobjdump"), "-res-usage", cubin.name)
        code = _run(_nvidia_tool("nvdisasm"), "-c", cubin.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    return code, int(found[1]), int(found[2]) // 4


def _hip_facts(asm: Mapping[str, object]) -> tuple[str, int, int]:
    code = asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", code)[1])
    spills = sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", code))
    return code, registers, spills


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
