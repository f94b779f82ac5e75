"""Measure dense and 2:4 layers on this CPU for choice.py: ``python -m recpress_kernels.int8_mlp.tune``.

Never while serving, only when asked. Each instruction set of this CPU is measured, on one thread and by the time that
the thread ran; those that the table holds of other machines stay. ``RECPRESS_TUNED`` names the folder of the table.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.bench.int8 import float_stack, interleaved, machine, ours
from recpress_kernels.bench.sparse24 import ours_sparse24
from recpress_kernels.int8_mlp import choice
from recpress_kernels.int8_mlp.choice import Entry, Table

OUTPUTS, INPUTS, BATCHES = (1, 16, 64, 256, 1024), (13, 64, 256, 1024), (1, 16, 64, 256)
PASSES = 3
Medians = Callable[[dict[str, Callable], Tensor], dict[str, float]]


def tune(isas: Iterable[str], medians: Medians) -> Iterator[Entry]:
    """The entries of the whole grid on each instruction set.

    Args:
        medians: seconds of a call of each of the named variants on x ``[batch, k]``.
    """
    for isa, n, k in product(isas, OUTPUTS, INPUTS):
        stack = float_stack([k, n])
        variants = {"dense": ours(stack, 8), "2:4": ours_sparse24(stack)}
        with native.use_isa(isa):
            for batch in BATCHES:
                found = medians(variants, torch.randn(batch, k, generator=torch.Generator().manual_seed(batch)))
                yield Entry(isa, n, k, batch, *(float(f"{found[name]:.4g}") for name in ("dense", "2:4")))


def middle(passes: list[list[Entry]]) -> list[Entry]:
    """Of several passes over the same layers each entry of the middle ratio.

    One pass mistook single layers by a quarter, twice, and why was not found.
    """
    return [sorted(same, key=lambda e: e.sparse24_s / e.dense_s)[len(same) // 2] for same in zip(*passes, strict=True)]


def merged(table: Table, entries: list[Entry], measured_on: str) -> Table:
    """``table`` with the instruction sets of ``entries`` replaced."""
    isas = {e.isa for e in entries}
    kept = tuple(e for e in table.entries if e.isa not in isas)
    return Table(table.machine | dict.fromkeys(sorted(isas), measured_on), kept + tuple(entries))


def main(given: list[str] | None = None) -> None:
    """The command line; ``given`` in place of that of the process."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m recpress_kernels.int8_mlp.tune", description=about)
    parser.add_argument("--isa", nargs="*", choices=native.isas(), help="instruction sets; all of this CPU by default")
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each layer and batch (default 0.1)")
    parser.add_argument("--table", type=Path, default=choice.path(), help="default %(default)s")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)

    def medians(variants: dict[str, Callable], x: Tensor) -> dict[str, float]:
        with torch.inference_mode():
            return interleaved(variants, x, seconds=arguments.seconds, clock=time.thread_time)

    entries = middle([list(tune(arguments.isa or native.isas(), medians)) for _ in range(PASSES)])
    for entry in entries:
        print(f"{entry.isa} {entry.n} x {entry.k}, batch {entry.batch}: {entry.dense_s / entry.sparse24_s:.2f}")
    before = choice.read(arguments.table) if arguments.table.is_file() else Table({}, ())
    choice.write(merged(before, entries, machine().split(",")[0]), arguments.table)


if __name__ == "__main__":
    main()
