"""What a server's processes hold over time, memory and files, and whether it grows."""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recpress.serving.processes import memory_of, stubs_of
from recpress.serving.server import Server

FLAT_BYTES = 1 << 20
"""Memory that may come and go within a window, or grow: allocators hand back pages when they like."""
SERVER = "server"


@dataclass(frozen=True)
class Process:
    """One reading of a process: bytes, but for ``files``, its open descriptors.

    ``own`` is anonymous and shared memory that it wrote. ``pss`` counts with it the process's part of mapped files: it
    falls when another process maps the same library, and rises as rows of a mapped table are read for the first time.
    """

    own: int
    pss: int
    files: int


@dataclass(frozen=True)
class Sample:
    """One reading: ``seconds`` since the first, the processes by name, and files by where they are."""

    seconds: float
    processes: dict[str, Process]
    shared_files: int
    temporary_files: int


class Sampler:
    """Reads the processes and files of a running server every ``every_s`` seconds, in a thread, as a context manager.

    Args:
        server: what is watched.
        temporary: the folder that is the server's for temporary files.
    """

    def __init__(self, server: Server, temporary: Path, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._server, self._temporary, self._every_s = server, temporary, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        begin = time.monotonic()
        while True:
            self.samples.append(self._read(time.monotonic() - begin))
            if self._stop.wait(self._every_s):
                return

    def _read(self, seconds: float) -> Sample:
        pid = self._server.process.pid
        names = {pid: SERVER} | {
            stub: f"{model}, version {v}, process {stub}" for stub, (model, v) in stubs_of(pid).items()
        }
        processes = {}
        for one, name in names.items():
            with contextlib.suppress(OSError):  # it ended just now
                processes[name] = _process(one)
        return Sample(seconds, processes, len(self._server.shared_memory()), count_files(self._temporary))


def _process(pid: int) -> Process:
    held = memory_of(pid)
    return Process(held["Anonymous"] + held["Pss_Shmem"], held["Pss"], len(list(Path(f"/proc/{pid}/fd").iterdir())))


def count_files(folder: Path) -> int:
    """Files of any kind below ``folder``, folders left out."""
    return sum(len(names) for _, _, names in os.walk(folder))


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Have this process, and those that it starts, put temporary files into ``folder``."""
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before[1]
        if before[0] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before[0]


def slope(seconds: Sequence[float], values: Sequence[float]) -> float:
    """How fast ``values`` grow, a second: the median over all pairs of readings, which single jumps do not move.

    P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968.
    """
    t, y = np.asarray(seconds, dtype=float), np.asarray(values, dtype=float)
    i, j = np.triu_indices(len(t), 1)
    return float(np.median((y[j] - y[i]) / (t[j] - t[i]))) if len(i) else 0.0


@dataclass(frozen=True)
class Trend:
    """How what a process holds went over a window: bytes and files at its ends, and ``slope`` in bytes a second.

    ``whole`` is False where it began or ended within the window.
    """

    process: str
    seconds: float
    own: tuple[int, int]
    pss: tuple[int, int]
    slope: float
    files: tuple[int, int]
    whole: bool

    @property
    def problem(self) -> str | None:
        """What grows, or None."""
        if not self.whole:
            return "it was not there all the time"
        grown = self.slope * self.seconds
        if grown > FLAT_BYTES:
            return f"its memory grows by {grown / 2**20:.1f} MiB in {self.seconds:.0f} s"
        if self.files[1] > self.files[0]:
            return f"its open files go from {self.files[0]} to {self.files[1]}"
        return None


def trends(samples: Sequence[Sample], warm_up_s: float) -> list[Trend]:
    """Of each process, from ``warm_up_s`` on; ends are medians of a tenth of the readings."""
    kept = [sample for sample in samples if sample.seconds >= warm_up_s]
    names = {name for sample in kept for name in sample.processes}
    return [_trend(name, kept) for name in sorted(names, key=lambda name: (name != SERVER, name))]


def _trend(name: str, samples: Sequence[Sample]) -> Trend:
    seconds = [sample.seconds for sample in samples if name in sample.processes]
    readings = [sample.processes[name] for sample in samples if name in sample.processes]
    tenth = -(-len(readings) // 10)

    def ends(what: str) -> tuple[int, int]:
        values = [getattr(reading, what) for reading in readings]
        return int(np.median(values[:tenth])), int(np.median(values[-tenth:]))

    speed = slope(seconds, [reading.own for reading in readings])
    whole = len(readings) == len(samples)
    return Trend(name, seconds[-1] - seconds[0], ends("own"), ends("pss"), speed, ends("files"), whole)
