"""Benchmarks of the kernels beside the libraries that a user would pick instead."""

import json
from pathlib import Path


def save(result: dict, path: Path) -> None:
    """Write a benchmark's ``{machine, kind, rows}`` as JSON: staged, read back, then renamed."""
    staged = path.with_name(path.name + ".part")
    staged.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    json.loads(staged.read_text(encoding="utf-8"))
    staged.replace(path)
