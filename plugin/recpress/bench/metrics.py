"""What the backend's metrics cost: ``recpress bench metrics [--repository FOLDER] [--json FILE]``.

Two servers of the same model run side by side, one whose backend notes and publishes its metrics and one whose
backend does not, and take turns under the same closed-loop clients; only one of them has requests at a time. A round
is one window of each. Printed are two ratios, each the median of the rounds with its 95 % interval by bootstrap: of
requests a second, and of requests by second of CPU of the server and its stubs, which tells more where the machine
does other work too. The metrics of the server itself are on in both.
"""

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recpress.artifact.load import read_golden
from recpress.artifact.manifest import read_manifest
from recpress.bench.closed_loop import drive, encode
from recpress.errors import RepositoryError
from recpress.serving.config import served_versions
from recpress.serving.server import Server, models_of
from recpress_kernels.bench import save

SWITCH = "RECPRESS_METRICS"
BATCHES = (1, 64)
LEAST = 0.98
_DRAWS = 2000


@dataclass(frozen=True)
class Load:
    """How a server is asked: ``clients`` at a time, ``seconds`` a window after ``warm_up`` seconds."""

    clients: int = 8
    seconds: float = 1.0
    warm_up: float = 0.1
    rounds: int = 20


def run(repository: Path, load: Load, batches: tuple[int, ...] = BATCHES) -> list[dict]:
    """One row a batch: requests a second with and without metrics by round, and the median of their ratios.

    Raises:
        RepositoryError: there is no such repository, or no model in it.
        ServerError: a server does not start, or does not answer.
    """
    name = models_of(repository)[0]
    versions = served_versions(repository / name)
    if not versions:
        raise RepositoryError(f"{repository / name} serves no version; add one with: recpress package")
    requests = {batch: golden_requests(repository / name / str(versions[-1]), name, batch) for batch in batches}
    with tempfile.TemporaryDirectory(prefix="recpress-bench-") as folder:
        alone = Path(folder) / "repository"
        shutil.copytree(repository / name, alone / name)
        with _server(alone, "on") as with_metrics, _server(alone, "off") as without:
            servers = {"on": with_metrics, "off": without}
            # What was saved up for a server's first requests is spent before anything is timed.
            drive(with_metrics.url("grpc"), requests[batches[0]], clients=load.clients, seconds=1.0, warm_up=1.0)
            return [_measure(servers, requests[batch], batch, load) for batch in batches]


def golden_requests(version: Path, name: str, batch: int) -> list[bytes]:
    """The golden rows, ``batch`` at a time."""
    manifest = read_manifest(version)
    inputs, _ = read_golden(version, manifest)
    rows = {s.name: inputs[s.name].reshape(-1, *s.wire_shape).numpy() for s in manifest.inputs}
    starts = range(0, manifest.golden.rows - batch + 1, batch)
    return [encode(name, {key: value[i : i + batch] for key, value in rows.items()}) for i in starts]


@contextlib.contextmanager
def _server(repository: Path, switch: str) -> Iterator[Server]:
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = switch
    server = Server(repository)
    try:
        server.start()
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before
    try:
        yield server
    finally:
        server.stop()


def _measure(servers: dict[str, Server], requests: list[bytes], batch: int, load: Load) -> dict:
    rates: dict[str, list[float]] = {"on": [], "off": []}
    by_cpu: dict[str, list[float]] = {"on": [], "off": []}
    for i in range(load.rounds):
        for which in ("on", "off") if i % 2 else ("off", "on"):
            server = servers[which]
            before = cpu_seconds(server.process.pid)
            window = drive(
                server.url("grpc"), requests, clients=load.clients, seconds=load.seconds, warm_up=load.warm_up
            )
            rates[which].append(len(window.latencies) / window.seconds)
            # The time of warming up as well, whose requests are not counted: the same for both.
            by_cpu[which].append(len(window.latencies) / (cpu_seconds(server.process.pid) - before))
    return {
        "batch": batch,
        "requests_per_second": rates,
        "requests_per_cpu_second": by_cpu,
        "ratio": ratio(rates),
        "cpu_ratio": ratio(by_cpu),
    }


def ratio(figures: dict[str, list[float]]) -> dict[str, float]:
    """The median over rounds of on / off, and its 95 % interval."""
    ratios = np.array(figures["on"]) / np.array(figures["off"])
    draws = np.random.default_rng(0).choice(ratios, (_DRAWS, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def cpu_seconds(group: int) -> float:
    """CPU seconds that the living processes of ``group`` have taken, in steps of 10 ms."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench metrics``."""
    parser = argparse.ArgumentParser(prog="recpress bench metrics", description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="its first model is served")
    parser.add_argument("--rounds", type=int, default=Load.rounds)
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="of each window")
    parser.add_argument("--clients", type=int, default=Load.clients)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    rows = run(given.repository, Load(given.clients, given.seconds, rounds=given.rounds))
    for row in rows:
        on, off = (np.median(row["requests_per_second"][which]) for which in ("on", "off"))
        print(f"batch {row['batch']}, {given.clients} clients: {on:.0f} requests/s with metrics, {off:.0f} without")
        for what, key in (("requests/s", "ratio"), ("requests by second of CPU", "cpu_ratio")):
            found = row[key]
            interval = f"{found['median']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
            print(f"  {what}: ratio {interval}; at least {LEAST} is meant")
    if given.json:
        save({"kind": "metrics", "rows": rows}, given.json)
