"""Seconds and memory that quantisation takes: ``recpress bench quantize [--gigabytes 1] [--json FILE]``.

A model of 26 tables of 64 numbers a row, which take the given size in float32, and of the MLPs of a DLRM is compressed
without calibration, in this process. ``peak_ratio`` is the largest resident memory while that runs, less what the
process took before the model was made, over the model's bytes: 1 is the original alone. A small model is compressed
before, so that what is loaded once is not counted.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from recpress.errors import SourceError
from recpress.pipeline import compress
from recpress.zoo.dlrm import DLRM
from recpress_kernels.bench import save

TABLES, DIM = 26, 64
BOTTOM, TOP = (512, 256), (1024, 1024, 512, 256)
SECONDS, PEAK_RATIO = 20.0, 1.3
"""What 1 GB may take."""


def run(gigabytes: float = 1.0, recipe: str = "int8") -> dict[str, float]:
    """Compress such a model by ``recipe`` and measure.

    Raises:
        SourceError: the system does not tell a process's resident memory (Linux does, in /proc).
    """
    compress(dlrm(100), recipe)
    baseline = _resident("VmRSS")
    model = dlrm(round(gigabytes * 1e9 / (TABLES * DIM * 4)))
    size = sum(p.nbytes for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from what is resident now
    wall, cpu = time.perf_counter(), time.process_time()
    compressed = compress(model, recipe)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "bytes_before": size,
        "bytes_after": compressed.report.bytes_after,
        "seconds": wall,
        "cpu_seconds": cpu,
        "gigabytes_per_second": size / 1e9 / wall,
        "peak_ratio": (_resident("VmHWM") - baseline) / size,
    }


def dlrm(rows: int) -> nn.Module:
    """A DLRM of random weights, with ``rows`` in each of its tables."""
    torch.manual_seed(0)
    return DLRM(num_dense=13, table_rows=[rows] * TABLES, dim=DIM, bottom=BOTTOM, top=TOP)


def _resident(name: str) -> int:
    """Bytes of this process, "VmRSS" now or "VmHWM" at most."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        raise SourceError("this system has no /proc/self/status, which tells resident memory; use Linux") from None
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench quantize``."""
    parser = argparse.ArgumentParser(prog="recpress bench quantize", description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the tables in float32")
    parser.add_argument("--recipe", default="int8", help="a preset's name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    found = run(given.gigabytes, given.recipe)
    print(
        f"{found['bytes_before'] / 1e9:.2f} GB to {found['bytes_after'] / 1e9:.2f} GB in {found['seconds']:.2f} s "
        f"({found['cpu_seconds']:.2f} s of CPU), {found['gigabytes_per_second']:.2f} GB/s; peak "
        f"{found['peak_ratio']:.3f} of the model's bytes (at most {PEAK_RATIO} and {SECONDS:.0f} s a GB are meant)"
    )
    if given.json:
        save(found, given.json)
