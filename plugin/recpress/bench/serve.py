"""A whole DLRM in the real server beside other libraries in it: ``recpress bench serve [--json FILE]``.

26 tables of 100,000 rows of 64 numbers, bottom MLP 13-512-256-64, top MLP 415-1024-1024-512-256-1: pruned to 2:4 with
int8 weights and int8 rows by the backend ``recpress``; in float32 in torch; and the whole graph in int8 in onnxruntime.
The last two are models of the server's Python backend that join their requests as ours do. One instance and one thread
each, in one server, over gRPC, with ``clients`` that each have one request of ``batch`` rows under way. Every round
drives each model in an order drawn anew; a ratio is the median over rounds of rows a second of ours over the peer's of
the same round, so that what slows the machine down slows both. Above 1 we are faster.
"""

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
import torch

from recpress.bench.closed_loop import Window, drive, encode
from recpress.bench.serve_models import FLOAT, LEAST_CORRELATION, ONNXRUNTIME, OURS, build, originals
from recpress.errors import ProbeError, SourceError
from recpress.serving.client import Client
from recpress.serving.server import Server
from recpress_kernels.bench import dlrm, int8, save

CASES = ((1, 1), (8, 1), (32, 1), (8, 64), (4, 256))
"""Clients and the batch of each."""
TARGETS = {(1, 1): 1.0, (8, 1): 1.0, (8, 64): 1.3, (4, 256): 1.3}
"""The least ratio to onnxruntime that is meant."""
REQUESTS = 64
"""Different requests of each case, so that rows come from memory as they do for users."""
CHECKED_ROWS = 256
WARM_UP = 0.25
"""Of the time that a model is driven, before it, and not counted."""


def run(
    repository: Path,
    *,
    rows: int = dlrm.ROWS,
    cases: tuple[tuple[int, int], ...] = CASES,
    rounds: int = 5,
    seconds: float = 1.0,
) -> dict:
    """Build what ``repository`` lacks, serve it, measure, print, and return ``{machine, kind, rows}``.

    Args:
        repository: a folder for the models; those of an earlier run are taken as they are.
        rows: of each table.
        cases: clients and the batch of each.
        rounds: how often each model is driven in each case.
        seconds: how long each time.

    Raises:
        RepositoryError: ``repository`` holds models of another size.
        ProbeError: a model's logits are not those of its original.
        ServerError: the server does not start, or a request fails.
    """
    torch.set_num_threads(1)
    measured_on = f"{int8.machine()}; one thread an instance, clients and server on the same cores"
    print(measured_on)
    build(repository, rows)
    with Server(repository, ready_timeout_s=180) as server:
        check(server.url("grpc"), rows)
        found = []
        for clients, batch in cases:
            found.append(measure(server.url("grpc"), clients, batch, rows=rows, rounds=rounds, seconds=seconds))
            print(_line(found[-1]), flush=True)
    return {"machine": measured_on, "kind": "throughput", "rows": found}


def check(address: str, rows: int) -> None:
    """Print how each model's logits correlate with its original's.

    Raises:
        ProbeError: they hardly do.
    """
    dense, ids = dlrm.inputs(CHECKED_ROWS, 7, rows)
    with Client(address, timeout_s=60) as client:
        for name, wanted in originals(rows, dense, ids).items():
            got = client.score(name, {"dense": dense.numpy(), "ids": ids.numpy()})["logit"][:, 0]
            correlation = float(np.corrcoef(got, wanted.numpy())[0, 1])
            print(f"{name}: correlation with its original's logits {correlation:.4f}")
            if not correlation >= LEAST_CORRELATION:
                raise ProbeError(f"{name} computes something else: its logits correlate by {correlation:.3f}")


def measure(address: str, clients: int, batch: int, *, rows: int, rounds: int, seconds: float) -> dict:
    """The figures of one case, on the server at ``address``; as :func:`run`."""
    inputs = [dlrm.inputs(batch, seed, rows) for seed in range(REQUESTS)]
    names = [OURS, FLOAT, ONNXRUNTIME]
    requests = {name: [encode(name, {"dense": d.numpy(), "ids": i.numpy()}) for d, i in inputs] for name in names}
    windows: dict[str, list[Window]] = {name: [] for name in names}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(names)
        for name in names:
            window = drive(address, requests[name], clients=clients, seconds=seconds, warm_up=WARM_UP * seconds)
            windows[name].append(window)
    return _case(clients, batch, windows)


def _case(clients: int, batch: int, windows: dict[str, list[Window]]) -> dict:
    """Medians over rounds, and ratios of ours round by round."""
    rates = {name: np.array([len(w.latencies) * batch / w.seconds for w in own]) for name, own in windows.items()}
    latencies = {name: np.concatenate([w.latencies for w in own]) for name, own in windows.items()}
    ratios = {name: rates[OURS] / rates[name] for name in (FLOAT, ONNXRUNTIME)}
    return {
        "case": f"{clients} x {batch}",
        "clients": clients,
        "batch": batch,
        "rows_per_second": {name: float(np.median(rate)) for name, rate in rates.items()},
        "p50_s": {name: float(np.median(own)) for name, own in latencies.items()},
        "p99_s": {name: float(np.quantile(own, 0.99)) for name, own in latencies.items()},
        "ratio": {name: float(np.median(ratio)) for name, ratio in ratios.items()},
        "ratio_range": {name: [float(ratio.min()), float(ratio.max())] for name, ratio in ratios.items()},
        "target": TARGETS.get((clients, batch)),
    }


def _line(row: dict) -> str:
    cells = [
        f"{name} {row['rows_per_second'][name]:.0f} rows/s, p50 {row['p50_s'][name] * 1e3:.2f} ms"
        for name in (OURS, FLOAT, ONNXRUNTIME)
    ]
    low, high = row["ratio_range"][ONNXRUNTIME]
    ratio, target = row["ratio"], row["target"]
    against = f"{ratio[FLOAT]:.2f}x float32, {ratio[ONNXRUNTIME]:.2f}x onnxruntime ({low:.2f} to {high:.2f})"
    missed = target is not None and ratio[ONNXRUNTIME] < target
    meant = "" if target is None else f", meant {target} or more{': MISSED' * missed}"
    return f"{row['case']:>8}  {'; '.join(cells)}; ours {against}{meant}"


def _pair(text: str) -> tuple[int, int]:
    clients, _, batch = text.partition("x")
    if not (clients.isdecimal() and batch.isdecimal() and int(clients) and int(batch)):
        raise SourceError(f"case {text!r}: give clients and their batch as in 8x64")
    return int(clients), int(batch)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench serve``."""
    parser = argparse.ArgumentParser(prog="recpress bench serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repository", type=Path, help="keep the models there for another run")
    parser.add_argument("--cases", nargs="*", help="clients x batch, such as 8x64; by default all")
    parser.add_argument("--rounds", type=int, default=5, help="how often each model is driven in each case")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each time")
    parser.add_argument("--rows", type=int, default=dlrm.ROWS, help=f"of each table (default {dlrm.ROWS})")
    given = parser.parse_args(arguments)
    cases = tuple(map(_pair, given.cases)) if given.cases else CASES
    with tempfile.TemporaryDirectory() as folder:
        repository = given.repository or Path(folder, "repository")
        result = run(repository, rows=given.rows, cases=cases, rounds=given.rounds, seconds=given.seconds)
    if given.json:
        save(result, given.json)
