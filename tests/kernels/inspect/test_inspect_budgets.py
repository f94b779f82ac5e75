"""What the kernels compile to with the installed triton; .ci/census asks the same of every supported one."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from support.census_budgets import complaints

from recpress_kernels.embedding_bag_rows.census import bags
from recpress_kernels.embedding_bag_rows.launch import Kind
from recpress_kernels.inspect import Listing, all_cases, build, census, describe
from recpress_kernels.inspect.listing import SASS
from recpress_kernels.int8_linear.census import gemm
from recpress_kernels.int8_linear.launch import MMA_TILES

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: kernels cannot be compiled", allow_module_level=True)

ROOT = Path(__file__).parents[3]
ROW_KEYS = [
    "kernel",
    "target",
    "config",
    "registers",
    "spills",
    "shared_bytes",
    "mma",
    "instructions_per_mma",
    "load_widths",
]


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_every_row_is_within_its_budget(target):
    rows = [asdict(row) for row in census(all_cases(), [target])]
    assert complaints(rows, targets=target) == []
    sparse = {row["kernel"]: row["mma"] for row in rows if "sparse24" in row["kernel"]}
    assert sparse.pop("int8_sparse24_linear.plain") == "IMMA.SP.16864"
    assert sparse.pop("int8_sparse24_linear.decompress", "IMMA.16832") == "IMMA.16832"
    assert sparse in ({}, {"int8_sparse24_linear.gemm": "IMMA.SP.16864", "sparse24_linear.gemm": "HMMA.SP.16832"})


@pytest.mark.parametrize("target", ["sm_86", "sm_89", "sm_100", "sm_120", "gfx942"])
def test_other_targets_compile(target):
    row = describe(gemm(MMA_TILES[2]), target)
    assert row.spills == 0 and row.instructions_per_mma > 1 and set(row.load_widths) == {"16"}


def test_a_row_over_its_budget_is_named():
    row = {"kernel": "int8_linear.gemm", "target": "sm_80", "config": "128x128x64 warps=4 stages=4 halves=1"}
    row |= {"registers": 255, "spills": 140, "mma": "IMMA.16832", "instructions_per_mma": 12.5, "load_widths": {"1": 8}}
    found = complaints([row], targets="none")
    assert len(found) == 3 and all("sm_80" in text for text in found)
    assert all("no row for" in text for text in complaints([], targets="sm_80"))
    assert len(complaints([], targets="sm_80")) >= 8


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_all_rows_of_a_round_are_on_their_way_before_the_first_sum(target):
    """Of two warps, ptxas takes fewer registers and waits for each row instead (embedding_bag_rows/launch.py)."""
    listing = Listing(build(bags(Kind(8, 4, 4, 64)), target).code, SASS)
    round_of_rows = max((listing.body(loop) for loop in listing.loops), key=len)
    loads = [at for at, opcode in enumerate(round_of_rows) if opcode.startswith("LDG")]
    sums = [at for at, opcode in enumerate(round_of_rows) if opcode.startswith("FFMA")]
    assert len(loads) == 12 and max(loads) < min(sums)


def test_registers_and_loads_that_are_missing_are_named():
    row = {"kernel": "embedding_bag_rows.bags", "target": "sm_80", "config": "8x64 unroll=2 warps=1 int8 align=16"}
    row |= {"registers": 128, "spills": 0, "mma": None, "instructions_per_mma": None, "load_widths": {"4": 8, "8": 8}}
    registers, widths = complaints([row], targets="none")
    assert "128 registers" in registers and "['16'] must be among them" in widths


def test_the_command_prints_rows_as_json_without_torch(tmp_path):
    """torch is made impossible to find, as in the environments of .ci/census."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'torch' else find(name, package)\n"
        "import sys\nsys.modules['torch'] = None\n"
    )
    command = [sys.executable, "-m", "recpress_kernels.inspect", "--json", "--target", "sm_80"]
    ran = subprocess.run(
        [*command, "--kernel", "int8_linear.reduce"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)
    assert len(rows) == 1 and list(rows[0]) == ROW_KEYS
