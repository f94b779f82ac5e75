"""The limits on requests under way: what is computed, and what adapts, on a simulated server that batches."""

import asyncio
import threading

import pytest
from support.queueing import SimulatedServer

from recpress.errors import OverloadError, RequestError, ServerError
from recpress.serving.limiter import SHARE, Limiter, fitting_limit

DEADLINE = 0.1


def overloaded(limiters, times, server):
    """Goodput from 2 s on as a share of capacity, and the 99th percentile of latency over the deadline."""
    capacity = server.batch / (server.batch_s * (1 + server.spread))
    begin = server.now + 2
    server.run(limiters, rate=times * capacity, seconds=10)
    latencies = server.latencies(since=begin)
    server.log.sort()
    return server.in_time(DEADLINE, since=begin) / capacity, latencies[int(0.99 * len(latencies))] / DEADLINE


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("start", [1, 8, 40])
@pytest.mark.parametrize("clients", [1, 4])
def test_goodput_stays_at_capacity(times, start, clients):
    server = SimulatedServer()
    limiters = [Limiter(deadline_s=DEADLINE, start=start, clock=server.clock) for _ in range(clients)]
    goodput, p99 = overloaded(limiters, times, server)
    assert goodput > (0.9 if start < 40 else 0.8) and p99 < (1 if start < 40 else 3)
    assert 14 <= sum(limiter.limit for limiter in limiters) <= 34


def test_without_a_limit_goodput_is_lost():
    server = SimulatedServer()
    goodput, p99 = overloaded([_Fixed(10**9)], 2, server)
    assert goodput < 0.05 and p99 > 10


class _Fixed(Limiter):
    """The control: a limit that does not adapt."""

    def __init__(self, limit):
        super().__init__(deadline_s=DEADLINE, start=limit, highest=limit)

    def _adapt(self):
        pass


def test_the_computed_limit_keeps_goodput_too():
    limit = fitting_limit(batch=8, batch_s=0.022, deadline_s=DEADLINE)
    assert limit == 21
    goodput, p99 = overloaded([_Fixed(limit)], 5, SimulatedServer())
    assert goodput > 0.9 and p99 < 1


def test_a_server_that_gets_slower_gets_less():
    server = SimulatedServer()
    limiter = Limiter(deadline_s=DEADLINE, clock=server.clock)
    overloaded([limiter], 3, server)
    before = limiter.limit
    server.batch_s *= 1.5
    goodput, p99 = overloaded([limiter], 3, server)
    assert limiter.limit < before
    assert goodput > 0.85 and p99 < 1
    server.batch_s /= 3
    overloaded([limiter], 3, server)
    assert limiter.limit > 1.5 * before


def test_below_capacity_almost_nothing_is_turned_away():
    server = SimulatedServer()
    limiter = Limiter(deadline_s=DEADLINE, clock=server.clock)
    goodput, p99 = overloaded([limiter], 0.6, server)
    assert limiter.refused < 0.01 * len(server.log) and p99 < 1 and 0.55 < goodput < 0.65


def test_the_computed_limit():
    assert fitting_limit(batch=8, batch_s=0.02, deadline_s=0.1) == 24, "three batches, as measured with nginx"
    assert fitting_limit(batch=8, batch_s=0.02, deadline_s=0.1, instances=2) == 48
    assert fitting_limit(batch=8, batch_s=0.04, deadline_s=0.1) == 16, "two batches at least"
    with pytest.raises(ServerError, match=r"deadline of 70 ms is too short for batches of 40 ms.*max_batch_size"):
        fitting_limit(batch=8, batch_s=0.04, deadline_s=0.07)
    for wrong in ({"batch": 0}, {"batch_s": 0.0}, {"deadline_s": -1.0}, {"instances": 0}):
        with pytest.raises(ServerError, match="must be positive"):
            fitting_limit(**({"batch": 8, "batch_s": 0.02, "deadline_s": 0.1} | wrong))


@pytest.mark.parametrize("wrong", [{"deadline_s": 0}, {"start": 0}, {"start": 20, "highest": 10}])
def test_senseless_limiters_are_refused(wrong):
    with pytest.raises(ServerError, match="cannot work"):
        Limiter(**({"deadline_s": 0.1} | wrong))


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def spend(limiter, clock, seconds, outcome=None, times=1):
    """Requests one after the other, each of which takes ``seconds``."""
    for _ in range(times):
        try:
            with limiter.slot():
                clock.now += seconds
                if outcome is not None:
                    raise outcome
        except (OverloadError, ServerError, RequestError):
            pass


def test_turned_away_at_once_and_told_why():
    limiter = Limiter(deadline_s=DEADLINE, start=2, highest=2)
    with limiter.slot(), limiter.slot():
        assert limiter.under_way == 2
        with pytest.raises(OverloadError, match="2 requests are under way.*100 ms"), limiter.slot():
            raise AssertionError("a third one is let in")
    assert limiter.under_way == 0 and limiter.refused == 1
    with limiter.slot():
        assert limiter.under_way == 1


def test_only_a_limit_that_was_reached_grows():
    clock = Clock()
    limiter = Limiter(deadline_s=DEADLINE, start=8, clock=clock)
    spend(limiter, clock, 0.01, times=100)
    assert limiter.limit == 8, "one at a time does not reach 8"
    alone = Limiter(deadline_s=DEADLINE, start=1, clock=clock)
    spend(alone, clock, 0.01, times=16)
    assert alone.limit == 2


def test_what_the_server_turns_away_lowers_the_limit():
    clock = Clock()
    limiter = Limiter(deadline_s=DEADLINE, start=20, clock=clock)
    spend(limiter, clock, 0.001, OverloadError("overloaded: the proxy"), times=200)
    assert 10 <= limiter.limit < 18, "once in a window of the target's length"


def test_answers_that_do_not_come_lower_the_limit_and_refused_requests_do_not():
    clock = Clock()
    limiter = Limiter(deadline_s=DEADLINE, start=20, clock=clock)
    spend(limiter, clock, 0.001, RequestError("bad"), times=100)
    spend(limiter, clock, 0.001, ServerError("nobody listens"), times=100)
    assert limiter.limit == 20
    spend(limiter, clock, 0.1, ServerError("no answer in time"), times=60)
    assert limiter.limit < 15
    spend(limiter, clock, 10.0, times=500)
    assert limiter.limit == 1, "never less"


def test_what_began_under_the_limit_before_is_not_judged_again():
    clock = Clock()
    limiter = Limiter(deadline_s=DEADLINE, start=8, highest=8, clock=clock)
    slots = [limiter.slot() for _ in range(8)]
    for slot in slots:
        slot.__enter__()
    spend_late = 1.5 * SHARE * DEADLINE
    clock.now += spend_late
    for slot in slots:
        slot.__exit__(None, None, None)
    assert limiter.limit == 5
    old = [limiter.slot() for _ in range(5)]
    for slot in old:
        slot.__enter__()
    limiter._open_window()
    clock.now += 10
    limiter._open_window()
    for slot in old:
        slot.__exit__(None, None, None)
    assert limiter.limit == 5 and not limiter._latencies


def test_threads_and_tasks_share_one_limit():
    limiter = Limiter(deadline_s=10, start=3, highest=3)
    most, refused, lock = [0], [0], threading.Lock()
    under_way = [0]

    async def request():
        try:
            with limiter.slot():
                with lock:
                    under_way[0] += 1
                    most[0] = max(most[0], under_way[0])
                await asyncio.sleep(0.002)
                with lock:
                    under_way[0] -= 1
        except OverloadError:
            with lock:
                refused[0] += 1
            await asyncio.sleep(0.001)

    async def several():
        for _ in range(20):
            await asyncio.gather(*(request() for _ in range(4)))

    threads = [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most[0] == 3 and refused[0] > 0 and limiter.under_way == 0 and limiter.refused == refused[0]


def test_a_cancelled_task_gives_its_slot_back():
    limiter = Limiter(deadline_s=10, start=1, highest=1)

    async def forever():
        with limiter.slot():
            await asyncio.sleep(60)

    async def cancel():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0.01)
        assert limiter.under_way == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancel())
    assert limiter.under_way == 0
