"""A whole load test: proves the server, puts one load after the other on it, and says what it came to."""

import asyncio
import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from recpress.artifact import golden
from recpress.loadtest.engine import Engine, Observe, run
from recpress.loadtest.metrics import Metrics
from recpress.loadtest.outcomes import Outcome
from recpress.loadtest.result import Load, Step
from recpress.loadtest.rows import read_requests
from recpress.loadtest.steps import measure
from recpress.loadtest.target import Target
from recpress.serving.client import Client
from recpress.serving.probe import replay_golden
from recpress.serving.wire import Protocol
from recpress_kernels.machine import processor

_PROOF_BATCH = 64


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served; as for :class:`recpress.loadtest.target.Target`."""

    url: str
    model: str
    version: str = ""
    protocol: Protocol = "grpc"
    timeout_s: float = 10.0
    tls_ca: Path | None = None


@dataclass(frozen=True)
class LoadTest:
    """What a load test came to.

    Attributes:
        machine: the processor and cores of the tester.
        started: when, ISO 8601 in UTC.
        batch: rows a request.
        rows: where they are from, in words.
        objective_s: what the 99th percentile had to keep to, or None.
        steps: one each load, in order; the last one may be broken off.
        scores: of all answers that are not errors, against the expected ones.
    """

    endpoint: Endpoint
    machine: str
    started: str
    batch: int
    rows: str
    objective_s: float | None
    steps: tuple[Step, ...]
    scores: golden.Verdict

    @property
    def problems(self) -> list[str]:
        """Why the test has failed; empty where it has not."""
        found = [f"broken off at {step.load}: {step.broken_off}" for step in self.steps if step.broken_off]
        for step in self.steps:
            if wrong := step.counts.get(Outcome.WRONG, 0):
                found.append(f"{wrong} of {step.requests} requests at {step.load} were answered with wrong scores")
            elif step.requests and not step.counts.get(Outcome.OK, 0):
                found.append(f"at {step.load} no request was answered: {next(iter(step.first_error.values()))}")
            if self.objective_s is not None and not step.percentile(99) <= self.objective_s:
                found.append(f"{_p99(step)}; the objective is {self.objective_s * 1e3:g} ms")
        if not self.scores.ok and not any(step.counts.get(Outcome.WRONG) for step in self.steps):
            found.append(f"the scores of all answers together are wrong: {self.scores}")
        return found


def _p99(step: Step) -> str:
    p99 = step.percentile(99)
    if math.isfinite(p99):
        return f"p99 at {step.load} is {p99 * 1e3:.2f} ms"
    unanswered = step.requests - len(step.latency)
    return f"{unanswered} of {step.requests} requests at {step.load} got no right answer, so that p99 has no bound"


def load_test(
    artifact: str | Path,
    endpoint: Endpoint,
    loads: Sequence[Load],
    *,
    batch: int = 1,
    rows: str | Path | None = None,
    objective_s: float | None = None,
    seed: int = 0,
    metrics: Metrics | None = None,
    begin: Callable[[Load], None] = lambda load: None,
) -> LoadTest:
    """Put ``loads`` one after the other on a running server.

    Before the first one the server is sent the golden rows and one request, so that a wrong address, model, weights or
    batch end the test at once. SIGINT and SIGTERM break it off, and what was measured is kept.

    Args:
        artifact: the folder of the artifact that is served.
        batch, rows, seed: as for :func:`recpress.loadtest.rows.read_requests`.
        metrics: shows the test while it runs.
        begin: told of each load before it starts.

    Raises:
        LoadTestError: the rows are not fit.
        ServerError, RequestError, ProbeError: the server cannot be reached, does not serve the model, or has other
            weights.
    """
    requests = read_requests(artifact, batch=batch, rows=rows, seed=seed)
    where = endpoint
    with Client(where.url, protocol=where.protocol, timeout_s=where.timeout_s, tls_ca=where.tls_ca) as client:
        replay_golden(client, where.model, artifact, batch=min(batch, _PROOF_BATCH), version=where.version)
        client.score(where.model, requests.inputs[0], version=where.version)
    target = Target(
        where.url,
        requests,
        model=where.model,
        version=where.version,
        protocol=where.protocol,
        timeout_s=where.timeout_s,
        tls_ca=where.tls_ca,
    )
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    steps = run(_steps(target, loads, seed=seed, metrics=metrics, begin=begin))
    return LoadTest(
        endpoint=endpoint,
        machine=processor(),
        started=started,
        batch=batch,
        rows=requests.source,
        objective_s=objective_s,
        steps=tuple(steps),
        scores=target.checker.verdict,
    )


async def _steps(
    target: Target, loads: Sequence[Load], *, seed: int, metrics: Metrics | None, begin: Callable[[Load], None]
) -> list[Step]:
    """Each load in turn, up to one that is broken off."""
    observe: Observe = (lambda seconds, outcome: None) if metrics is None else metrics.observe
    found: list[Step] = []
    async with target:
        with _signals() as engines:

            def started(engine: Engine) -> None:
                engines.append(engine)
                if metrics is not None:
                    metrics.follow(lambda: engine.record.under_way)

            for i, load in enumerate(loads):
                begin(load)
                found.append(await measure(load, target.submit, seed=seed + i, observe=observe, started=started))
                if found[-1].broken_off:
                    break
    return found


@contextlib.contextmanager
def _signals() -> Iterator[list[Engine]]:
    """SIGINT and SIGTERM break off the last of the engines in the list, instead of what they do else."""
    engines: list[Engine] = []
    if threading.current_thread() is not threading.main_thread():
        yield engines  # signals are the main thread's
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, lambda: engines[-1].break_off("it was interrupted"))
    try:
        yield engines
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
