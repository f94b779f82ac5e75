"""The engine against services whose times are known."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from recpress.errors import RequestError, ServerError
from recpress.loadtest.engine import Engine, poisson, run
from recpress.loadtest.outcomes import Outcome
from recpress.loadtest.result import Load
from recpress.loadtest.steps import measure


def quick(**changes) -> Load:
    return Load(**{"seconds": 0.5, "warm_up_s": 0.1, "drain_s": 5.0, **changes})


class Queue:
    """One worker that serves a request in ``seconds`` and stands still once, for ``stall`` seconds."""

    def __init__(self, seconds: float, *, stall: float = 0.0, at: int = 0) -> None:
        self.seconds, self.stall, self.at = seconds, stall, at
        self.lock = asyncio.Lock()

    async def __call__(self, number: int) -> None:
        async with self.lock:
            await asyncio.sleep(self.stall if number == self.at else self.seconds)


def test_arrivals_are_a_poisson_process():
    arrivals = poisson(500.0, 40.0, seed=3)
    assert len(arrivals) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    assert (np.diff(arrivals) >= 0).all() and arrivals[0] >= 0 and arrivals[-1] < 40
    gaps = np.diff(arrivals)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.05) and gaps.std() == pytest.approx(1 / 500, rel=0.05)
    in_seconds = np.histogram(arrivals, bins=40, range=(0, 40))[0]
    assert 0.4 < in_seconds.var() / in_seconds.mean() < 2, "as many as chance has it, not one by the clock"
    assert (poisson(500.0, 40.0, seed=3) == arrivals).all() and len(poisson(0.0, 1.0)) == 0


def test_a_stall_is_seen_by_all_requests_that_were_due_in_it():
    """Coordinated omission: a client that waits for its answer meets a stall of 0.3 s once."""
    arrivals = np.arange(200) / 200

    async def both():
        open_engine, closed_engine = Engine(Queue(0.0, stall=0.3, at=100)), Engine(Queue(0.004, stall=0.3, at=100))
        await open_engine.open_loop(arrivals)
        await closed_engine.closed_loop(1, 1.0)
        return open_engine.record, closed_engine.record

    slow = [sum(done - due > 0.1 for due, done in zip(record.due, record.done, strict=True)) for record in run(both())]
    assert slow[0] >= 30 and 1 <= slow[1] <= slow[0] / 8


def test_latency_counts_from_when_a_request_was_due_even_if_the_tester_is_late():
    async def busy(number: int) -> None:
        if number == 10:
            time.sleep(0.2)  # the tester itself stands still

    step = run(measure(quick(rate=200, seconds=1.0, warm_up_s=0.0), busy, seed=1))
    assert step.percentile(99) > 0.1 and step.behind[-1] > 0.1
    assert np.quantile(step.service, 0.9) < 0.02


def test_the_clock_of_the_day_may_jump(monkeypatch):
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86400)
    step = run(measure(quick(rate=100), Queue(0.001)))
    assert step.latency[0] > 0 and step.latency[-1] < 0.5 and step.throughput == pytest.approx(100, rel=0.5)


def test_throughput_and_goodput():
    """One worker of 100 a second and a deadline of 50 ms: below capacity all are in time, at 5 times it hardly any."""
    below, beyond = (
        run(measure(quick(rate=rate, seconds=1.0, deadline_s=0.05, drain_s=0.2), Queue(0.01))) for rate in (20, 500)
    )
    assert 0.6 * below.requests <= below.goodput <= below.requests and below.counts.keys() == {Outcome.OK}
    assert 40 < beyond.throughput <= 101 and beyond.goodput < 20
    assert beyond.counts[Outcome.TIMEOUT] > 200 and "after the last request" in beyond.first_error[Outcome.TIMEOUT]
    assert beyond.requests == pytest.approx(500, abs=120) and beyond.percentile(99) == float("inf")


def test_clients_wait_for_their_answers():
    seen = []

    async def submit(number: int) -> None:
        seen.append(number)
        await asyncio.sleep(0.01)

    step = run(measure(quick(clients=4, warm_up_s=0.0), submit))
    assert 40 <= step.requests <= 200 and 0.01 <= step.percentile(50) < 0.05
    assert sorted(seen) == list(range(len(seen))), "each number once"


def test_outcomes_are_counted_by_kind():
    raised = [RequestError("no such model"), ServerError("overloaded: 8 are under way"), ValueError("?")]

    async def submit(number: int) -> Outcome | None:
        if number % 5 < 3:
            raise raised[number % 5]
        return Outcome.WRONG if number % 5 == 3 else None

    seen = []
    step = run(measure(quick(rate=400), submit, observe=lambda seconds, outcome: seen.append(outcome)))
    kinds = (Outcome.OK, Outcome.WRONG, Outcome.REJECTED, Outcome.REFUSED, Outcome.FAILED)
    assert set(step.counts) == set(kinds) and all(step.counts[k] > 0.15 * step.requests for k in kinds)
    assert step.first_error[Outcome.REFUSED] == "no such model" and len(seen) >= step.requests
    assert len(step.latency) == step.counts[Outcome.OK] and step.percentile(50) == float("inf")


@pytest.mark.parametrize("load", [quick(rate=50), quick(clients=2)], ids=["open", "closed"])
def test_a_server_that_dies_ends_the_test_with_what_was_measured(load):
    async def submit(number: int) -> None:
        await asyncio.sleep(0.005)
        if number > 20:
            raise ConnectionRefusedError("nobody listens")

    begin = time.monotonic()
    step = run(measure(replace(load, seconds=20, warm_up_s=0.0, give_up_s=0.3), submit))
    assert time.monotonic() - begin < 5 and step.seconds < 5
    assert step.counts[Outcome.OK] > 2 and step.counts[Outcome.UNREACHABLE] > 2
    assert "no server could be reached for 0.3 s: nobody listens" in step.broken_off


def test_a_test_that_is_broken_off_keeps_what_was_measured():
    def started(engine: Engine) -> None:
        asyncio.get_running_loop().call_later(0.3, engine.break_off, "interrupted")

    step = run(measure(quick(rate=2.0, seconds=60, warm_up_s=0.0), Queue(0.001), started=started, seed=2))
    assert step.broken_off == "interrupted" and 0.2 < step.seconds < 2


def test_2000_arrivals_a_second_are_sent_on_time():
    step = run(measure(quick(rate=2000), Queue(0.0)))
    assert step.requests == pytest.approx(1000, rel=0.2) and np.quantile(step.behind, 0.5) < 0.01
