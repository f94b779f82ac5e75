"""What the census may show at most, by row, under every triton from 3.7 to 3.9. Needs neither torch nor pytest.

``python census_budgets.py FILE`` checks what ``python -m recpress_kernels.inspect --json`` printed and exits with 1
where a row is over its budget, or a budget has no row.
"""

import json
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Budget:
    """For rows of a kernel on targets whose config matches: instructions an MMA, spills, registers, widths of loads."""

    kernel: str
    targets: str  # a regular expression
    config: str  # a regular expression
    instructions_per_mma: float | None
    spills: int = 0
    load_widths: frozenset[str] = frozenset({"16"})
    since: tuple[int, int] = (3, 7)  # the first triton that has the kernel
    registers: int = 255
    needs: frozenset[str] = frozenset()  # widths of loads that there must be

    def covers(self, row: dict) -> bool:
        if row["kernel"] != self.kernel or not re.fullmatch(self.targets, row["target"]):
            return False
        return re.match(self.config, row["config"]) is not None and not re.search("avoided|odd", row["config"])

    def complaints(self, row: dict) -> list[str]:
        found = []
        if row["spills"] > self.spills:
            found.append(f"{row['spills']} spills, allowed {self.spills}")
        if row["registers"] > self.registers:
            found.append(f"{row['registers']} registers, allowed {self.registers}")
        if not self.needs <= set(row["load_widths"]):
            found.append(f"loads of {sorted(row['load_widths'])} bytes, and {sorted(self.needs)} must be among them")
        if (
            self.instructions_per_mma is not None
            and not (row["instructions_per_mma"] or 1e9) <= self.instructions_per_mma
        ):
            found.append(
                f"{row['instructions_per_mma']} instructions per {row['mma']}, allowed {self.instructions_per_mma}"
            )
        if not set(row["load_widths"]) <= self.load_widths:
            found.append(f"loads of {sorted(row['load_widths'])} bytes, allowed {sorted(self.load_widths)}")
        return [f"{row['kernel']} {row['target']} {row['config']}: {text}" for text in found]


_TMA = frozenset({"tma"})
_SPARSE = frozenset({"16", "4"})
_ANY = frozenset({"16", "8", "4"})
_WIDE = frozenset({"16"})
_TABLES = frozenset({"8", "4"})  # indices, and rows of which no more can be read at once
BUDGETS = (
    Budget("int8_linear.gemm", "sm_(8.|120)", r"128x128x64 .*halves=\d$", 2.1),
    # What these two spill (6 on triton 3.8, 18 on 3.7), they spill behind the loop, which is as long as without.
    Budget("int8_linear.gemm", "sm_8.", r"128x128x64 .*(tail|out=u8)$", 2.1, spills=20),
    Budget("int8_linear.gemm", "sm_8.", r"128x128x64 .*uint8$", 2.15),
    Budget("int8_linear.gemm", "sm_(8.|120)", r"16x", 5.5),
    Budget("int8_linear.gemm", "sm_(8.|120)", r"(32|64)x", 3.6),
    Budget("int8_linear.gemm", "sm_90", r".*not aligned", 14.5),
    Budget("int8_linear.gemm", "sm_(8.|120)", r"128x128x64 .*cross$", 2.1, spills=8),
    Budget("int8_linear.gemm", "sm_8.", r"128x128x64 .*cross fp32$", 2.1, spills=76),  # behind the loop
    Budget("int8_linear.gemm_tma", "sm_90", r"128x128x256 warps=4", 8.5, load_widths=_TMA),
    Budget("int8_linear.gemm_tma", "sm_90", r"128x128x256 warps=8 .*cross", 13.5, load_widths=_TMA),
    Budget("int8_linear.gemm_tma", "sm_90", r"64x", 13.5, load_widths=_TMA),
    Budget("int8_linear.fused", "sm_.*", r"1x16x256", 19.5, load_widths=_ANY),
    Budget("int8_linear.fused", "sm_.*", r"(8|16)x", 110.0),
    Budget("int8_linear.quantize_rows", "sm_.*", r"", None),
    Budget("int8_linear.reduce", "sm_.*", r"", None, load_widths=_ANY),
    # Widening weights is most of it: two conversions an int8 weight for each warp that reads it.
    Budget("weight_only_linear.gemm", "sm_(8.|120)", r"(128|64)x128x64 .*(fp16|bf16)$", 8.0),
    Budget("weight_only_linear.gemm", "sm_(8.|120)", r"64x64x64 .*fp16$", 12.7),
    Budget("weight_only_linear.gemm", "sm_90", r"(128|64)x(128|64)x64 .*(fp16|bf16)$", 70.0),
    Budget("weight_only_linear.gemm", "sm_(8.|90|120)", r"(16|32)x.*fp16$", 26.5),
    Budget("weight_only_linear.gemm", "sm_.*", r".*fp32$", None, load_widths=frozenset({"16", "8"})),
    # Next to nothing is multiplied: a row of 6 vectors is one product, and the rest is the triangle's addresses.
    Budget("dot_interaction.dots", "sm_(8.|120)", r"(32|128)x64 ", 3.2),
    Budget("dot_interaction.dots", "sm_90", r"32x64 ", 3.2),
    Budget("dot_interaction.dots", "sm_90", r"128x64 ", 18.0),
    Budget("dot_interaction.dots", "sm_.*", r"16x16 .*(fp16|bf16)$", 20.0),
    Budget("dot_interaction.dots", "sm_.*", r".*fp32$", None, load_widths=_ANY),
    Budget("fm_interaction.second_order", "sm_.*", r"", None),
    # A warp a program: up to 64 registers cost nothing, beyond them fewer warps are there at once.
    Budget("embedding_bag_rows.bags", "sm_.*", r".* align=4", None, load_widths=_TABLES, registers=80),
    Budget("embedding_bag_rows.bags", "sm_.*", r".* align=16", None, load_widths=_ANY, registers=104, needs=_WIDE),
    Budget("embedding_bag_rows.bags", "sm_.*", r".* align=1$", None, load_widths=_TABLES | {"1"}, registers=80),
    Budget("embedding_bag_rows.rows", "sm_.*", r".* align=4", None, load_widths=_ANY, registers=64),
    Budget("embedding_bag_rows.rows", "sm_.*", r".* align=16", None, load_widths=_ANY, registers=104, needs=_WIDE),
    Budget("embedding_bag_rows.rows", "sm_.*", r".* align=1$", None, load_widths=_ANY | {"1"}, registers=64),
    # Metadata is one word a lane; so is each register of x in 16 bits. However many steps the loop leaves over.
    Budget("int8_sparse24_linear.gemm", "sm_8.", r"4x4 tiles", 2.5, load_widths=_SPARSE, since=(3, 9)),
    Budget("int8_sparse24_linear.gemm", "sm_90", r"4x4 tiles", 2.5, load_widths=_SPARSE, since=(3, 9)),
    Budget("int8_sparse24_linear.gemm", "sm_120", r"4x4 tiles", 2.1, load_widths=_SPARSE, since=(3, 9)),
    Budget("int8_sparse24_linear.gemm", "sm_.*", r"[124]x[124] tiles", 7.6, load_widths=_SPARSE, since=(3, 9)),
    Budget("sparse24_linear.gemm", "sm_.*", r"4x8 tiles .*stages=3", 2.2, load_widths=_SPARSE, since=(3, 9)),
    Budget("sparse24_linear.gemm", "sm_(8.|90)", r"4x4 tiles", 3.0, load_widths=_SPARSE, since=(3, 9)),
    Budget("sparse24_linear.gemm", "sm_120", r"4x4 tiles", 2.75, load_widths=_SPARSE, since=(3, 9)),
    Budget("sparse24_linear.gemm", "sm_.*", r"[124]x[124] tiles", 11.5, load_widths=_SPARSE, since=(3, 9)),
    Budget("int8_sparse24_linear.plain", "sm_.*", r"4x4 tiles .*rest=0", 2.15, load_widths=_SPARSE),
    Budget("int8_sparse24_linear.plain", "sm_.*", r"4x4 tiles", 2.95, load_widths=_SPARSE),
    Budget("int8_sparse24_linear.plain", "sm_.*", r"1x4 tiles", 4.1, load_widths=_SPARSE),
    Budget("int8_sparse24_linear.plain", "sm_.*", r"1x1 tiles", 7.6, load_widths=_SPARSE),
    # For HIP; sm_80 does not take this form, and compiles to twice as much under triton 3.7 as under 3.8 and 3.9.
    Budget("int8_sparse24_linear.decompress", "sm_80", r"1x2 tiles", 75.0, load_widths=_ANY),
    Budget("int8_sparse24_linear.decompress", "sm_80", r"1x[48] tiles", 40.0, load_widths=_ANY),
    Budget("int8_sparse24_linear.decompress", "gfx942", r"1x", 55.0, load_widths=_ANY | {"2"}),
)


def _installed() -> tuple[int, int]:
    major, minor = version("triton").split(".")[:2]
    return int(major), int(minor)


def complaints(rows: list[dict], *, targets: str = ".*") -> list[str]:
    """All rows that are over a budget, and budgets for targets among ``targets`` that no row falls under."""
    found = []
    for budget in BUDGETS:
        covered = [row for row in rows if budget.covers(row)]
        found += [text for row in covered for text in budget.complaints(row)]
        asked = [t for t in ("sm_80", "sm_90") if re.fullmatch(targets, t) and re.fullmatch(budget.targets, t)]
        if asked and not covered and budget.since <= _installed():
            found.append(f"no row for {budget}")
    return found


if __name__ == "__main__":
    over = complaints(json.loads(Path(sys.argv[1]).read_text()))
    print("\n".join(over) or "every row is within its budget")
    sys.exit(1 if over else 0)
