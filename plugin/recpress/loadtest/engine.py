"""Send requests by a timetable (open loop) or by clients that wait for their answers (closed loop)."""

import asyncio
import gc
import select
import selectors
import time
from array import array
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from recpress.loadtest.outcomes import Outcome, outcome_of

Submit = Callable[[int], Awaitable[object]]
"""Sends request number i and returns when it is answered: an :class:`Outcome`, or anything else for OK."""
Observe = Callable[[float, Outcome], None]
"""Told of each answer: seconds since it was due, and the outcome."""
_BACK_OFF_S, _LOOK_S = 0.05, 0.25
_T = TypeVar("_T")


@dataclass
class Record:
    """What became of each request, in order of their answers; it holds whenever a test is broken off.

    Attributes:
        due, sent, done: seconds of the monotonic clock.
        outcome: an :class:`Outcome` each.
        first_error: the first text of each kind of error.
        under_way: how many requests are.
        broken_off: why the test ended before its time, or None.
    """

    due: array = field(default_factory=lambda: array("d"))
    sent: array = field(default_factory=lambda: array("d"))
    done: array = field(default_factory=lambda: array("d"))
    outcome: array = field(default_factory=lambda: array("b"))
    first_error: dict[Outcome, str] = field(default_factory=dict)
    under_way: int = 0
    broken_off: str | None = None


class Engine:
    """Sends requests through ``submit`` and records them.

    Args:
        submit: a coroutine function; blocking calls belong into ``asyncio.to_thread``.
        observe: told of each answer.
        kind_of: sorts what ``submit`` raises.
        give_up_s: the test is broken off when for so many seconds no server could be reached.
        drain_s: how long to wait for answers after the last request; what is missing then is a TIMEOUT.
    """

    def __init__(
        self,
        submit: Submit,
        *,
        observe: Observe = lambda seconds, outcome: None,
        kind_of: Callable[[BaseException], Outcome] = outcome_of,
        give_up_s: float = 3.0,
        drain_s: float = 10.0,
    ) -> None:
        self.record = Record()
        self._submit, self._observe, self._kind_of = submit, observe, kind_of
        self._give_up_s, self._drain_s = give_up_s, drain_s
        self._reached = time.monotonic()

    async def open_loop(self, arrivals: np.ndarray) -> None:
        """Send request i at ``arrivals[i]``, float64 seconds from now in rising order, answered or not."""
        tasks: set[asyncio.Task] = set()
        start = self._reached = time.monotonic()
        for i, at in enumerate(arrivals.tolist()):
            due = start + at
            # Where it is late already, a bare sleep lets the answers in.
            await asyncio.sleep(0)
            while not self._ended() and (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(min(wait, _LOOK_S))
            if self._ended():
                break
            task = asyncio.create_task(self._send(i, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await self._drain(tasks)

    async def closed_loop(self, clients: int, seconds: float) -> None:
        """For ``seconds``, ``clients`` send one request each, wait for its answer, and send the next one."""
        numbers = iter(range(1 << 62))
        start = self._reached = time.monotonic()

        async def client() -> None:
            while (due := time.monotonic()) < start + seconds and not self._ended():
                if await self._send(next(numbers), due) is Outcome.UNREACHABLE:
                    await asyncio.sleep(_BACK_OFF_S)

        tasks = {asyncio.create_task(client()) for _ in range(clients)}
        await asyncio.wait(tasks, timeout=seconds)
        await self._drain(tasks)

    async def _send(self, number: int, due: float) -> Outcome:
        record = self.record
        record.under_way += 1
        sent = time.monotonic()
        cancelled = False
        try:
            answer = await self._submit(number)
            outcome = answer if isinstance(answer, Outcome) else Outcome.OK
        except asyncio.CancelledError:
            outcome, cancelled = Outcome.TIMEOUT, True
            record.first_error.setdefault(outcome, f"no answer {self._drain_s:g} s after the last request")
        except Exception as error:
            outcome = self._kind_of(error)
            record.first_error.setdefault(outcome, str(error) or type(error).__name__)
        done = time.monotonic()
        record.under_way -= 1
        if outcome is not Outcome.UNREACHABLE:
            self._reached = done
        record.due.append(due)
        record.sent.append(sent)
        record.done.append(done)
        record.outcome.append(outcome)
        self._observe(done - due, outcome)
        if cancelled:
            raise asyncio.CancelledError
        return outcome

    def break_off(self, why: str) -> None:
        """Send nothing more; what is under way is still waited for."""
        self.record.broken_off = self.record.broken_off or why

    def _ended(self) -> bool:
        lost = self.record.first_error.get(Outcome.UNREACHABLE)
        if lost is not None and time.monotonic() - self._reached > self._give_up_s:
            self.break_off(f"no server could be reached for {self._give_up_s:g} s: {lost}")
        return self.record.broken_off is not None

    async def _drain(self, tasks: set[asyncio.Task]) -> None:
        if not tasks:
            return
        _, missing = await asyncio.wait(set(tasks), timeout=self._drain_s)
        for task in missing:
            task.cancel()
        await asyncio.gather(*missing, return_exceptions=True)


def poisson(rate: float, seconds: float, *, seed: int = 0) -> np.ndarray:
    """Arrival times in ``[0, seconds)`` of a Poisson process of ``rate`` a second, float64, in rising order."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.random(generator.poisson(rate * seconds))) * seconds


class _FineSelector(selectors.EpollSelector):
    """epoll waits whole milliseconds, by which half a millisecond would be added to what is measured."""

    def select(self, timeout: float | None = None) -> list:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` in an event loop whose timers keep to some 0.1 ms."""
    loop = asyncio.SelectorEventLoop(_FineSelector())
    # Collecting the many objects of imported packages stops the loop for some 0.1 s.
    gc.collect()
    gc.freeze()
    try:
        return loop.run_until_complete(main)
    finally:
        gc.unfreeze()
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left))
        loop.close()
