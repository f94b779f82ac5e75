"""Goodput beyond capacity, on the real server: ``recpress bench overload [--json FILE]``.

A DLRM with a wide top MLP in int8, one instance with one thread, in requests of 32 rows of which the server joins 8: so
slow that two cores have room for the tester. Its capacity is what as many clients as the limit get who wait for their
answers. Then requests arrive by a Poisson process at 1, 2 and 5 times that rate, whether answered or not, each of use
until its deadline, which is five batches away; what is answered in time, a second, is the goodput. Over gRPC and HTTP:

* proxy: clients behind nginx with the shipped configuration, its limit computed from batch time and deadline;
* client: clients with the adaptive limit of ``recpress.serving.limiter``, which starts there;
* deadline: neither; the backend alone refuses what it cannot finish in time;
* nothing: no deadline either; answers are waited for.

Every round goes through them in an order drawn anew. Capacity is measured anew before each: its arrivals are multiples,
and its goodput a share, of that; medians over rounds. p99 is of the accepted requests, from when they were due; a
request that is given up at its deadline counts as one that takes for ever. Tester, proxy and server share the machine:
``tester`` is the share of one core that the tester takes.
"""

import argparse
import contextlib
import math
import random
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

import recpress
from recpress.latency import quantile
from recpress.loadtest.engine import run as run_loop
from recpress.loadtest.outcomes import Outcome
from recpress.loadtest.result import Step
from recpress.loadtest.steps import Load, measure
from recpress.serving.client import AsyncClient
from recpress.serving.limiter import Limiter, fitting_limit
from recpress.serving.proxy import Proxy, Route, nginx_config
from recpress.serving.server import Server
from recpress.zoo.dlrm import DLRM
from recpress_kernels.bench import int8, save

MODEL = "dlrm"
ROWS, BATCH = 32, 8
"""Of a request, and requests in a batch."""
DENSE, TABLES, BOTTOM, TOP = 13, 8, (256,), (4096, 4096, 2048, 512)
DEADLINE_BATCHES = 5
TIMES = (1.0, 2.0, 5.0)
GUARDS = ("proxy", "client", "deadline", "nothing")
GUARDED = GUARDS[:2]
TARGET = 0.85
"""Of capacity, the least goodput that is meant where there is a guard."""
PATIENCE_S = 10.0
_INPUTS = 32


@dataclass(frozen=True)
class Case:
    """What one guard came to at one load; rates a second, times in seconds.

    Attributes:
        times: the rate of arrivals over the capacity.
        capacity: measured just before.
        share: goodput over capacity.
        p99_s: of the accepted; infinite where more than one of a hundred was given up.
        refused_s: median time to a refusal, NaN without any.
        limit: at the end.
        tester: processor seconds a second of this process.
    """

    protocol: str
    guard: str
    times: float
    rate: float
    capacity: float
    goodput: float
    share: float
    p99_s: float
    refused_s: float
    limit: int | None
    counts: dict[str, int]
    tester: float


class Bench:
    """A running server, and what was measured of it at first.

    Args:
        server: serves :data:`MODEL`, packaged by :func:`build`.
        table_rows: of each of its tables.
        deadline_s: of requests; five batches by default.
        seconds: how long each case is measured, after a quarter of that.
        patience_s: how long clients wait that have no deadline.
    """

    def __init__(
        self,
        server: Server,
        *,
        table_rows: int,
        deadline_s: float | None = None,
        seconds: float = 4.0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.server, self.seconds, self.patience_s = server, seconds, patience_s
        pairs = [_rows(ROWS, table_rows, seed) for seed in range(_INPUTS)]
        self._inputs = [{"dense": dense.numpy(), "sparse": ids.numpy()} for dense, ids in pairs]
        # The first requests are slow: pages are mapped, threads start.
        self.measure_capacity("grpc", clients=3 * BATCH)
        self.capacity = self.measure_capacity("grpc", clients=3 * BATCH)
        self.batch_s = BATCH / self.capacity
        self.deadline_s = deadline_s or DEADLINE_BATCHES * self.batch_s
        self.limit = fitting_limit(batch=BATCH, batch_s=self.batch_s, deadline_s=self.deadline_s)

    def measure_capacity(self, protocol: str, clients: int | None = None) -> float:
        """Answers a second to so many clients that wait for theirs; as many as the limit by default."""
        load = Load(clients=clients or self.limit, seconds=self.seconds / 2, warm_up_s=self.seconds / 8)
        return run_loop(self._step(load, protocol, self.server.url(protocol), self.patience_s)).throughput

    def case(self, protocol: str, guard: str, times: float, proxy: str = "") -> Case:
        """Put ``times`` the capacity on the server, at ``proxy`` where that is the guard."""
        capacity = self.measure_capacity(protocol)
        limiter = Limiter(deadline_s=self.deadline_s, start=self.limit) if guard == "client" else None
        load = Load(
            rate=times * capacity,
            seconds=self.seconds,
            warm_up_s=self.seconds / 4,
            deadline_s=self.deadline_s,
            drain_s=self.patience_s + 5,
        )
        address = proxy if guard == "proxy" else self.server.url(protocol)
        timeout_s = self.patience_s if guard == "nothing" else self.deadline_s
        refusals: list[float] = []
        step = run_loop(self._step(load, protocol, address, timeout_s, limiter, refusals))
        accepted = step.requests - step.counts.get(Outcome.REJECTED, 0)
        return Case(
            protocol=protocol,
            guard=guard,
            times=times,
            rate=load.rate,
            capacity=capacity,
            goodput=step.goodput,
            share=step.goodput / capacity,
            p99_s=quantile(step.latency, 0.99, accepted),
            refused_s=float(np.median(refusals)) if refusals else math.nan,
            limit={"proxy": self.limit, "client": limiter and limiter.limit}.get(guard),
            counts={outcome.label: count for outcome, count in step.counts.items()},
            tester=step.client_s * load.rate,
        )

    async def _step(
        self,
        load: Load,
        protocol: str,
        address: str,
        timeout_s: float,
        limiter: Limiter | None = None,
        refusals: list[float] | None = None,
    ) -> Step:
        def observe(seconds: float, outcome: Outcome) -> None:
            if outcome is Outcome.REJECTED and refusals is not None:
                refusals.append(seconds)

        async with AsyncClient(address, protocol=protocol, timeout_s=timeout_s, limiter=limiter) as client:
            step = await measure(load, lambda i: client.score(MODEL, self._inputs[i % _INPUTS]), observe=observe)
        # Requests are scored in their order: when this one is answered, none of the step's is left in the server.
        async with AsyncClient(self.server.url(protocol), protocol=protocol, timeout_s=60.0) as client:
            await client.score(MODEL, self._inputs[0])
        return step


def build(repository: Path, table_rows: int) -> None:
    """Package the model, with ``table_rows`` rows in each of its tables."""
    torch.manual_seed(0)
    model = DLRM(num_dense=DENSE, table_rows=[table_rows] * TABLES, bottom=BOTTOM, top=TOP).eval()
    compressed = recpress.compress(model, "int8")
    examples = _rows(64, table_rows, _INPUTS)
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder, "artifact")
        recpress.export(compressed, artifact, example_inputs=examples, input_names=("dense", "sparse"))
        recpress.package(artifact, repository, name=MODEL, max_batch_size=BATCH * ROWS)


def _rows(count: int, table_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """dense float32 [count, DENSE] and sparse int64 [count, TABLES]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, table_rows, (count, TABLES), generator=generator)
    return torch.randn(count, DENSE, generator=generator), ids


def run(
    *,
    protocols: Sequence[str] = ("grpc", "http"),
    guards: Sequence[str] = GUARDS,
    times: Sequence[float] = TIMES,
    table_rows: int = 20_000,
    deadline_s: float | None = None,
    seconds: float = 4.0,
    rounds: int = 3,
) -> dict:
    """Serve, measure, print, and return ``{machine, kind, rows}``, where a row is a :class:`Case` of medians.

    Raises:
        MissingDependencyError: nginx, or a part of the server, is not installed.
        ServerError: the server does not start, or the deadline is too short for two batches.
    """
    torch.set_num_threads(1)
    measured_on = f"{int8.machine()}; one thread an instance; tester, proxy and server on the same cores"
    print(measured_on)
    cases = [(protocol, guard, many) for protocol in protocols for many in times for guard in guards]
    found: dict[tuple, list[Case]] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "repository"
        build(repository, table_rows)
        server = stack.enter_context(Server(repository))
        bench = Bench(server, table_rows=table_rows, deadline_s=deadline_s, seconds=seconds)
        print(
            f"capacity {bench.capacity:.0f} requests a second, a batch of {BATCH} in {bench.batch_s * 1e3:.1f} ms; "
            f"deadline {bench.deadline_s * 1e3:.0f} ms, so a limit of {bench.limit}"
        )
        routes = {p: Route(f"127.0.0.1:{free_port()}", server.url(p)) for p in ("grpc", "http")}
        stack.enter_context(Proxy(nginx_config(limit=bench.limit, deadline_s=bench.deadline_s, **routes)))
        shuffle = random.Random(0).shuffle
        for number in range(rounds):
            shuffle(cases)
            for case in cases:
                found[case].append(bench.case(*case, routes[case[0]].listen))
                print(f"round {number + 1}: {line(found[case][-1])}", flush=True)
    rows = [_medians(own) for own in found.values()]
    for row in rows:
        print(f"{line(row)}{_verdict(row, bench.deadline_s)}")
    sizes = {"batch_s": bench.batch_s, "deadline_s": bench.deadline_s, "limit": bench.limit, "rounds": rounds}
    return {"machine": measured_on, "kind": "overload", **sizes, "rows": [_plain(row) for row in rows]}


def _medians(cases: list[Case]) -> Case:
    numbers = ("capacity", "goodput", "share", "p99_s", "refused_s", "tester")
    middle = {name: float(np.median([getattr(case, name) for case in cases])) for name in numbers}
    counts = {name: sum(case.counts.get(name, 0) for case in cases) for name in {n for c in cases for n in c.counts}}
    return replace(cases[-1], counts=counts, **middle)


def _plain(case: Case) -> dict:
    """For JSON, which has no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(case).items()}


def _verdict(case: Case, deadline_s: float) -> str:
    if case.guard not in GUARDED:
        return ""
    lost, late = case.share < TARGET, not case.p99_s <= deadline_s
    return f"; at least {TARGET:.0%} in {deadline_s * 1e3:.0f} ms are meant{': MISSED' * (lost or late)}"


def line(case: Case) -> str:
    """The figures of ``case`` in one line."""
    counts = ", ".join(f"{count} {name}" for name, count in sorted(case.counts.items()))
    limit = "" if case.limit is None else f", limit {case.limit}"
    p99 = "given up" if math.isinf(case.p99_s) else f"{case.p99_s * 1e3:.0f} ms"
    refused = "" if math.isnan(case.refused_s) else f", refused after {case.refused_s * 1e3:.1f} ms"
    share = f"{case.goodput:5.1f}/s in time of {case.capacity:5.1f}: {case.share:6.1%}"
    rest = f"p99 {p99}{limit}{refused} ({counts}; tester {case.tester:.0%})"
    return f"{case.protocol:4} {case.times:g}x {case.guard:8} {share}, {rest}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench overload``."""
    parser = argparse.ArgumentParser(prog="recpress bench overload", description=__doc__.partition("\n")[0])
    parser.add_argument("--protocols", nargs="+", default=["grpc", "http"], choices=["grpc", "http"])
    parser.add_argument("--guards", nargs="+", default=list(GUARDS), choices=GUARDS)
    parser.add_argument("--times", nargs="+", type=float, default=list(TIMES), help="arrivals over capacity")
    parser.add_argument("--deadline-ms", type=float, help=f"by default {DEADLINE_BATCHES} batches")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each case is measured")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is measured")
    parser.add_argument("--rows", type=int, default=20_000, help="of each table")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    found = run(
        protocols=given.protocols,
        guards=given.guards,
        times=given.times,
        table_rows=given.rows,
        deadline_s=given.deadline_ms and given.deadline_ms / 1e3,
        seconds=given.seconds,
        rounds=given.rounds,
    )
    if given.json:
        save(found, given.json)
