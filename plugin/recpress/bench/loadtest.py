"""Whether ``recpress loadtest`` sees what NVIDIA's perf_analyzer sees of the same server, and what its client costs.

perf_analyzer is a C++ program in ``tritonclient`` 2.48.0's manylinux1 wheel (``--platform manylinux1_x86_64``); it
needs libb64.so.0d and libcudart.so.12 on LD_LIBRARY_PATH, which ``nvidia_pytriton.libs`` has under longer names. Both
testers drive a DLRM in turn, closed-loop over gRPC, with the artifact's golden rows.
"""

import argparse
import csv
import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recpress.artifact.load import read_golden
from recpress.artifact.manifest import read_manifest
from recpress.bench import serve_models
from recpress.errors import LoadTestError, SourceError
from recpress.loadtest.result import Load
from recpress.loadtest.run import Endpoint, load_test
from recpress.serving.server import Server
from recpress_kernels.bench import save

CASES = ((1, 1), (1, 256), (2, 256), (1, 1024))
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Seen:
    """What a tester saw: requests a second, and the median latency in seconds."""

    rate: float
    p50_s: float


def run(
    analyzer: Path,
    repository: Path,
    *,
    rows: int = 2000,
    cases: Sequence[tuple[int, int]] = CASES,
    rounds: int = 3,
    seconds: float = 2.0,
) -> dict:
    """Drive each case, clients x batch, by both testers in turn, and print medians over rounds.

    Args:
        analyzer: the program perf_analyzer.
        repository: a folder for the model; one that is there is kept.
        rows: of each of the DLRM's 26 tables.

    Raises:
        LoadTestError: perf_analyzer fails, or a score is wrong.
    """
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        serve_models.add_ours(repository, rows)
        artifact = repository / serve_models.OURS / "1"
        write_rows(artifact, folder / "rows.json")
        with Server(repository) as server:
            address = server.url("grpc")
            for clients, batch in cases:
                ours, theirs, cost = [], [], []
                for _ in range(rounds):
                    one, client_s = _ours(artifact, address, clients, batch, seconds)
                    ours.append(one)
                    cost.append(client_s)
                    theirs.append(_theirs(analyzer, address, clients, batch, seconds, folder))
                found.append(_case(clients, batch, ours, theirs, statistics.median(cost)))
                print(_line(found[-1]), flush=True)
    return {"rows": rows, "rounds": rounds, "seconds": seconds, "cases": found}


def _ours(artifact: Path, address: str, clients: int, batch: int, seconds: float) -> tuple[Seen, float]:
    load = Load(clients=clients, seconds=seconds, warm_up_s=0.5)
    test = load_test(artifact, Endpoint(address, serve_models.OURS), [load], batch=batch)
    if test.problems:
        raise LoadTestError("; ".join(test.problems))
    (step,) = test.steps
    return Seen(step.throughput, step.percentile(50)), step.client_s


def _theirs(analyzer: Path, address: str, clients: int, batch: int, seconds: float, folder: Path) -> Seen:
    out = folder / "out.csv"
    command = [analyzer, "-m", serve_models.OURS, "-u", address, "-i", "grpc", "-b", batch, "-f", out]
    command += ["--concurrency-range", clients, "--input-data", folder / "rows.json", "--percentile", 50]
    # A window is repeated until three agree; the machine may be noisy, and rounds are compared here anyway.
    command += ["-p", int(seconds * 1000 / 3), "-s", 50, "-r", 10]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoadTestError(f"{analyzer} cannot be run ({error}); --help says where it is from") from None
    if done.returncode or not out.exists():
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise LoadTestError(f"{analyzer} fails (exit code {done.returncode}): {' '.join(told[-3:])}")
    (row,) = csv.DictReader(out.read_text().splitlines())
    out.unlink()
    return Seen(float(row["Inferences/Second"]) / batch, float(row["p50 latency"]) / 1e6)


def write_rows(artifact: Path, path: Path) -> None:
    """The artifact's golden rows as perf_analyzer reads them."""
    manifest = read_manifest(artifact)
    inputs, _ = read_golden(artifact, manifest)
    rows = [
        {s.name: {"content": inputs[s.name][i].flatten().tolist(), "shape": s.wire_shape} for s in manifest.inputs}
        for i in range(manifest.golden.rows)
    ]
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")


def _case(clients: int, batch: int, ours: list[Seen], theirs: list[Seen], client_s: float) -> dict:
    return {
        "clients": clients,
        "batch": batch,
        "rate": [statistics.median(seen.rate for seen in both) for both in (ours, theirs)],
        "p50_s": [statistics.median(seen.p50_s for seen in both) for both in (ours, theirs)],
        "rate_ratio": statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True)),
        "p50_ratio": statistics.median(a.p50_s / b.p50_s for a, b in zip(ours, theirs, strict=True)),
        "client_s": client_s,
    }


def _line(case: dict) -> str:
    (rate, their_rate), (p50, their_p50) = case["rate"], case["p50_s"]
    return (
        f"{case['clients']} x {case['batch']:>4}: {rate:.0f} /s, p50 {p50 * 1e3:.2f} ms; perf_analyzer "
        f"{their_rate:.0f} /s, {their_p50 * 1e3:.2f} ms; ours over theirs {case['rate_ratio']:.3f}, of p50 "
        f"{case['p50_ratio']:.3f}; our client takes {case['client_s'] * 1e6:.0f} us of processor a request"
    )


def _pair(text: str) -> tuple[int, int]:
    clients, _, batch = text.partition("x")
    if not (clients.isdecimal() and batch.isdecimal() and int(clients) and int(batch)):
        raise SourceError(f"case {text!r}: give clients and their batch as in 2x256")
    return int(clients), int(batch)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench loadtest``."""
    parser = argparse.ArgumentParser(
        prog="recpress bench loadtest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("analyzer", type=Path, help="the program perf_analyzer")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repository", type=Path, help="keep the model there for another run")
    parser.add_argument("--cases", nargs="*", help="clients x batch, such as 2x256; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tester drives each case")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each time")
    parser.add_argument("--rows", type=int, default=2000, help="of each table (default 2000)")
    given = parser.parse_args(arguments)
    cases = tuple(map(_pair, given.cases)) if given.cases else CASES
    options = {"rows": given.rows, "cases": cases, "rounds": given.rounds, "seconds": given.seconds}
    with tempfile.TemporaryDirectory() as folder:
        result = run(given.analyzer, given.repository or Path(folder, "repository"), **options)
    if given.json:
        save(result, given.json)
