"""Ten minutes of steady load, and whether the server grows: ``recpress bench soak [--seconds 600] [--json FILE]``.

The compressed DLRM of ``recpress bench serve`` is sent requests at a steady rate, one in 50 of them with an id beyond
its table, which must be refused. Meanwhile the memory and open files of the server and of its stub are read, and files
in shared memory and temporary files are counted. After the first fifth, memory that they wrote (see ``Process`` in
resources.py) must not grow by more than 1 MiB by its slope, and no file may be left at the end.
"""

import argparse
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

from recpress.bench.closed_loop import caller, encode
from recpress.bench.resources import Sampler, Trend, count_files, temporary_files_in, trends
from recpress.bench.serve_models import OURS, add_ours
from recpress.errors import ServerError
from recpress.serving.server import Server
from recpress_kernels.bench import dlrm, int8, save

CLIENTS, BATCH, RATE = 4, 16, 100.0
BAD_EVERY = 50
REQUESTS = 64
WARM_UP = 0.2
"""Of the time, before it is judged: tables are read for the first time, and allocators find their size."""


def run(repository: Path, *, seconds: float = 600.0, rate: float = RATE, rows: int = dlrm.ROWS) -> dict:
    """Serve, load and watch for ``seconds``, print, and return ``{machine, kind, rows, verdict}``.

    Args:
        repository: a folder for the model; that of an earlier run, or of ``bench serve``, is taken as it is.
        seconds: how long.
        rate: requests a second.
        rows: of each table.

    Raises:
        ServerError: the server does not start.
    """
    torch.set_num_threads(1)
    print(int8.machine())
    add_ours(repository, rows)
    inputs = [{"dense": d.numpy(), "ids": i.numpy()} for d, i in (dlrm.inputs(BATCH, s, rows) for s in range(REQUESTS))]
    good = [encode(OURS, given) for given in inputs]
    bad = encode(OURS, inputs[0] | {"ids": inputs[0]["ids"] + rows})
    found, problems = watch(repository, good, bad, seconds=seconds, rate=rate)
    verdict = "; ".join(problems) or "flat, and nothing is left"
    print(f"verdict: {verdict}")
    return {"machine": int8.machine(), "kind": "soak", "rows": found, "verdict": verdict, "ok": not problems}


def watch(
    repository: Path, good: list[bytes], bad: bytes, *, seconds: float, rate: float
) -> tuple[list[dict], list[str]]:
    """Serve ``repository`` under load; the trends of its processes as rows, and what is wrong."""
    with tempfile.TemporaryDirectory() as folder, temporary_files_in(Path(folder)):
        server = Server(repository, ready_timeout_s=180)
        with server, Sampler(server, Path(folder), every_s=max(0.1, seconds / 300)) as sampler:
            answers = _load(server.url("grpc"), good, bad, seconds=seconds, rate=rate)
        left = count_files(Path(folder)), len(server.shared_memory())
    found = trends(sampler.samples, WARM_UP * seconds)
    warm = [sample for sample in sampler.samples if sample.seconds >= WARM_UP * seconds]
    for trend in found:
        print(_line(trend))
    shared = warm[0].shared_files, warm[-1].shared_files
    temporary = warm[0].temporary_files, warm[-1].temporary_files
    print(
        f"{answers['answered']} requests answered, {answers['refused']} bad ones refused, {answers['failed']} failed; "
        f"files in shared memory {shared[0]} to {shared[1]}, {left[1]} after the end; temporary files {temporary[0]} "
        f"to {temporary[1]}, {left[0]} after the end"
    )
    problems = [f"{trend.process}: {trend.problem}" for trend in found if trend.problem]
    if answers["failed"] or answers["taken"]:
        problems.append(f"{answers['failed']} requests fail, and {answers['taken']} bad ones are answered")
    for what, counts, after in (("in shared memory", shared, left[1]), ("that are temporary", temporary, left[0])):
        if counts[1] > counts[0] or after:
            problems.append(f"files {what}: {counts[0]}, then {counts[1]}, and {after} after the end")
    return [asdict(trend) for trend in found], problems


def _load(address: str, good: list[bytes], bad: bytes, *, seconds: float, rate: float) -> Counter[str]:
    """Send requests at ``rate`` a second from a few clients; how they fared."""
    import grpc

    counts: Counter[str] = Counter()
    begin = time.monotonic()

    def run(client: int, call) -> None:
        for turn in range(client, int(seconds * rate), CLIENTS):
            time.sleep(max(0.0, begin + turn / rate - time.monotonic()))
            is_bad = turn % BAD_EVERY == BAD_EVERY - 1
            try:
                call(bad if is_bad else good[turn % len(good)])
                counts["taken" if is_bad else "answered"] += 1
            except grpc.RpcError as error:
                refused = is_bad and error.code() is grpc.StatusCode.INVALID_ARGUMENT
                counts["refused" if refused else "failed"] += 1

    with caller(address) as call:
        threads = [threading.Thread(target=run, args=(i, call)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return counts


def _line(trend: Trend) -> str:
    own, pss = ([f"{end / 2**20:.1f}" for end in ends] for ends in (trend.own, trend.pss))
    return (
        f"{trend.process}: wrote {own[0]} to {own[1]} MiB, {trend.slope * 60 / 1024:+.1f} KiB a minute; PSS {pss[0]} "
        f"to {pss[1]} MiB; {trend.files[0]} to {trend.files[1]} open files in {trend.seconds:.0f} s"
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench soak``.

    Raises:
        ServerError: something grows, is left, or failed.
    """
    parser = argparse.ArgumentParser(prog="recpress bench soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repository", type=Path, help="keep the model there for another run")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=RATE, help=f"requests of {BATCH} rows a second")
    parser.add_argument("--rows", type=int, default=dlrm.ROWS, help=f"of each table (default {dlrm.ROWS})")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        repository = given.repository or Path(folder, "repository")
        result = run(repository, seconds=given.seconds, rate=given.rate, rows=given.rows)
    if given.json:
        save(result, given.json)
    if not result["ok"]:
        raise ServerError(f"the server does not stand {given.seconds:.0f} s of load: {result['verdict']}")
