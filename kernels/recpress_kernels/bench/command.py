"""The command line that benchmarks share."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from recpress_kernels.bench import save

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def parser(module: str, doc: str, *, seconds: float, batches: object) -> argparse.ArgumentParser:
    """Options of every benchmark that times; ``module`` and ``doc`` are its own, the rest its defaults."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=doc.split("\n")[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    made.add_argument("--seconds", type=float, default=seconds, help=f"time for each batch (default {seconds})")
    made.add_argument("--batches", nargs="*", type=int, help=f"default {batches}")
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a core that others use too")
    return made


def measure(options: argparse.ArgumentParser, run: Callable[..., dict], given: list[str] | None) -> None:
    """``run`` with the options ``given``, None for those of the process, as its keywords; the result is kept."""
    chosen = vars(options.parse_args(given))
    path = chosen.pop("json")
    result = run(**chosen)
    if path:
        save(result, path)
