"""One step of a load test, from its load to its figures."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from recpress.loadtest.engine import Engine, Observe, Submit, poisson
from recpress.loadtest.outcomes import Outcome, outcome_of
from recpress.loadtest.result import Step, summarise


@dataclass(frozen=True)
class Load:
    """A load: either ``rate`` requests a second, or ``clients`` that wait for their answers.

    Attributes:
        seconds: how long it is measured.
        warm_up_s: how long it runs before that.
        deadline_s: an answer that comes later is of no use; for the goodput.
        give_up_s: the test is broken off when for so many seconds no server could be reached.
        drain_s: how long to wait for answers after the last request.
    """

    rate: float | None = None
    clients: int | None = None
    seconds: float = 10.0
    warm_up_s: float = 1.0
    deadline_s: float | None = None
    give_up_s: float = 3.0
    drain_s: float = 10.0

    def __str__(self) -> str:
        return f"{self.rate:g} a second" if self.clients is None else f"{self.clients} clients"


async def measure(
    load: Load,
    submit: Submit,
    *,
    seed: int = 0,
    observe: Observe = lambda seconds, outcome: None,
    kind_of: Callable[[BaseException], Outcome] = outcome_of,
    started: Callable[[Engine], None] = lambda engine: None,
) -> Step:
    """Put ``load`` on ``submit`` and measure; to be run by :func:`recpress.loadtest.engine.run`.

    >>> step = run(measure(Load(rate=2000, deadline_s=0.1), submit))
    >>> step.goodput, step.percentile(99), step.counts

    Args:
        submit: a coroutine function; sends request number i, and returns an outcome, or anything for OK, or raises.
        seed: of the arrivals.
        observe: told of each answer.
        kind_of: sorts what ``submit`` raises.
        started: given the engine, by which the test can be broken off and followed.
    """
    engine = Engine(submit, observe=observe, kind_of=kind_of, give_up_s=load.give_up_s, drain_s=load.drain_s)
    started(engine)
    whole = load.warm_up_s + load.seconds
    begin, processor = time.monotonic(), time.process_time()
    if load.clients is None:
        await engine.open_loop(poisson(load.rate, whole, seed=seed))
    else:
        await engine.closed_loop(load.clients, whole)
    taken, processor = time.monotonic() - begin, time.process_time() - processor
    record = engine.record
    return summarise(
        record,
        begin=begin + load.warm_up_s,
        seconds=load.seconds if record.broken_off is None else max(0.0, min(load.seconds, taken - load.warm_up_s)),
        rate=load.rate,
        clients=load.clients,
        deadline_s=load.deadline_s,
        client_s=processor / max(1, len(record.done)),
    )
