"""Measured choices of int8_linear's configuration, one JSON file a GPU, and how they are looked up.

Files lie in ``tuned/`` beside this one or in the folder that ``RECPRESS_TUNED`` names; ``recpress tune`` writes
them. A shape that was not measured is left to launch.py. Imports neither torch nor triton.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from recpress_kernels.errors import KernelInputError
from recpress_kernels.int8_linear.launch import Config

FOLDER_VARIABLE = "RECPRESS_TUNED"
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """The fastest configuration that was found for a product of one shape, and its median time in seconds."""

    m: int
    n: int
    k: int
    aligned: bool
    quantized: bool
    config: Config
    seconds: float


@dataclass(frozen=True)
class Table:
    """All entries of one GPU."""

    gpu: str
    entries: tuple[Entry, ...]

    def find(self, m: int, n: int, k: int, *, quantized: bool, aligned: bool) -> Config | None:
        """The configuration measured for ``[n, k]`` and the smallest batch that is not below ``m``, or None."""
        fitting = [
            e for e in self.entries if (e.n, e.k, e.quantized, e.aligned) == (n, k, quantized, aligned) and e.m >= m
        ]
        return min(fitting, key=lambda e: e.m).config if fitting else None


def file_name(gpu: str) -> str:
    """The file of a GPU by the name that its driver gives: ``nvidia-h100-80gb-hbm3.json``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def folder() -> Path:
    """Where tables are looked for and written."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).with_name("tuned"))


@cache
def table_of(gpu: str) -> Table:
    """The table of a GPU; an empty one where there is no file.

    Raises:
        KernelInputError: the file is not one that ``recpress tune`` wrote.
    """
    path = folder() / file_name(gpu)
    return read(path) if path.is_file() else Table(gpu, ())


def read(path: Path) -> Table:
    """Read a table; see :func:`table_of`."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if given["format"] != _FORMAT:
            raise ValueError(f"format {given['format']}, not {_FORMAT}")
        entries = tuple(Entry(**{**row, "config": Config(**row["config"])}) for row in given["entries"])
        return Table(given["gpu"], entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernelInputError(
            f"{path} is no table of tuned configurations ({error}); write it anew: recpress tune"
        ) from None


def write(table: Table, path: Path) -> None:
    """Write a table: staged, read back, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".part")
    content = {"format": _FORMAT, "gpu": table.gpu, "entries": [asdict(entry) for entry in table.entries]}
    staged.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if read(staged) != table:
        raise KernelInputError(f"{staged} does not read back to what was written; is the disk full?")
    staged.replace(path)
