"""One step of a load test, from its load to its figures."""

import time
from collections.abc import Callable

from recpress.loadtest.engine import Engine, Observe, Submit, poisson
from recpress.loadtest.outcomes import Outcome, outcome_of
from recpress.loadtest.result import Load, Step, summarise


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
    return summarise(
        engine.record,
        load,
        begin=begin + load.warm_up_s,
        taken=max(0.0, taken - load.warm_up_s),
        client_s=processor / max(1, len(engine.record.done)),
    )
