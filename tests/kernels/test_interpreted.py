"""Runs tests/interpreted in a process of its own: interpreting and compiling do not mix in one."""

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "interpreted"


def test_kernels_under_the_interpreter():
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert passed and int(passed[1]) > 0, f"no test ran: {ran.stdout[-2000:]}"
    assert "skipped" not in ran.stdout.splitlines()[-1]
