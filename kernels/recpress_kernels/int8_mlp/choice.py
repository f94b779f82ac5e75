"""Dense or 2:4 for each layer of a stack on a CPU: from a table of measurements, never measured while serving.

The table (``cpu-sparse24.json``, beside this file or in the folder that ``RECPRESS_TUNED`` names) holds, for each
instruction set, shape ``[n, k]`` and batch, the seconds of one layer in each form; ``tune`` measures and writes it.

The rule. A layer that was not measured is judged by the measured shape nearest to it, in the logarithms of n and k,
and only by batches that the table has within the given range, or the nearest to it. 2:4 is taken where it saves time:
where the table's times, each as a share of the dense one, are on average lower by at least ``MARGIN``, and at no
batch higher by more. Else, and for an instruction set that the table lacks, the layer is dense.

A layer has one form for all batches: no measured layer gains at one batch and loses at another by more than noise, so
a second buffer for some of the batches would be memory without time.
"""

import json
import math
import os
import statistics
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.int8_linear.tuned import FOLDER_VARIABLE

FILE_NAME = "cpu-sparse24.json"
MARGIN = 0.02
"""Differences below it are noise."""
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """Median seconds of a call of one layer ``[n, k]`` at one batch, dense and 2:4."""

    isa: str
    n: int
    k: int
    batch: int
    dense_s: float
    sparse24_s: float


@dataclass(frozen=True)
class Choice:
    """What was chosen for a 2:4 layer ``[n, k]``, and by which figures.

    Attributes:
        sparse24: whether it runs as 2:4; else dense.
        measured: the shape ``(n, k)`` whose figures decided, None where there are none for this instruction set.
        ratios: by batch, the measured time of the dense form over that of 2:4; below 1 2:4 loses.
    """

    n: int
    k: int
    sparse24: bool
    measured: tuple[int, int] | None
    ratios: dict[int, float]


@dataclass(frozen=True)
class Table:
    """All measurements; ``machine`` says where each instruction set's were taken."""

    machine: dict[str, str]
    entries: tuple[Entry, ...]

    def judge(self, n: int, k: int, isa: str, batches: tuple[int, int]) -> Choice:
        """The form of a layer at calls of ``batches[0]`` to ``batches[1]`` rows, by the rule above."""
        here = [e for e in self.entries if e.isa == isa]
        if not here:
            return Choice(n, k, False, None, {})
        nearest = min(here, key=lambda e: _distance(e, n, k))
        like = [e for e in here if (e.n, e.k) == (nearest.n, nearest.k)]
        shares = [e.sparse24_s / e.dense_s for e in _within(like, *batches)]
        faster = statistics.mean(shares) <= 1 - MARGIN and max(shares) <= 1 + MARGIN
        return Choice(n, k, faster, (nearest.n, nearest.k), {e.batch: e.dense_s / e.sparse24_s for e in like})


def choose_stack(
    weights: list[Tensor | Sparse24], batches: tuple[int, int] = (1, 1024), isa: str | None = None
) -> tuple[list[Tensor | Sparse24], list[Choice]]:
    """The weights in the form that the table says is faster, to be given to ``pack_stack``, and why, for the 2:4 ones.

    Args:
        weights: as for pack_stack; a dense one stays as it is, whatever zeros it has.
        batches: the fewest and the most rows that calls will have.
        isa: a name of ``native.ISAS``; None is what the native kernels run on here.

    Raises:
        KernelInputError: ``batches`` is not a range, or the table is not one.
    """
    low, high = batches
    if not 1 <= low <= high:
        raise KernelInputError(f"batches is {batches}; give the fewest and the most rows of a call, from 1 up")
    isa = isa or native.status().isa or ""
    table = read(path()) if path().is_file() else Table({}, ())
    chosen, choices = [], []
    for weight in weights:
        if isinstance(weight, Sparse24):
            choices.append(table.judge(weight.values.shape[0], weight.in_features, isa, batches))
            weight = weight if choices[-1].sparse24 else decompress(weight)
        chosen.append(weight)
    return chosen, choices


def path() -> Path:
    """Where the table is read and written."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) / FILE_NAME if folder else Path(__file__).with_name(FILE_NAME)


@cache
def read(file: Path) -> Table:
    """Read a table.

    Raises:
        KernelInputError: the file is not one that ``tune`` wrote.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        if given["format"] != _FORMAT:
            raise ValueError(f"format {given['format']}, not {_FORMAT}")
        entries = tuple(Entry(*row) for row in given["entries"])
        if not all(min(astuple(e)[1:]) > 0 for e in entries):
            raise ValueError("a size or a time that is not positive")
        return Table(dict(given["machine"]), entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernelInputError(
            f"{file} is no table of dense and 2:4 layers ({error}); write it anew: "
            "python -m recpress_kernels.int8_mlp.tune"
        ) from None


def write(table: Table, file: Path) -> None:
    """Write a table, a line an entry: staged, read back, then renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(file.name + ".part")
    rows = ",\n  ".join(json.dumps(astuple(e)) for e in table.entries)
    machine = json.dumps(table.machine)
    staged.write_text(f'{{"format": {_FORMAT},\n "machine": {machine},\n "entries": [\n  {rows}]}}\n', encoding="utf-8")
    read.cache_clear()
    if read(staged) != table:
        raise KernelInputError(f"{staged} does not read back to what was written; is the disk full?")
    staged.replace(file)


def _distance(entry: Entry, n: int, k: int) -> float:
    return math.hypot(math.log(entry.n / n), math.log(entry.k / k))


def _within(entries: list[Entry], low: int, high: int) -> list[Entry]:
    return [e for e in entries if low <= e.batch <= high] or [min(entries, key=lambda e: abs(math.log(e.batch / low)))]
