"""A server that joins requests into batches, simulated in events: what a limiter does to it takes no real time."""

import heapq
import itertools
import random
from contextlib import suppress

from recpress.errors import OverloadError


class SimulatedServer:
    """One core that scores up to ``batch`` waiting requests at once, in ``batch_s`` seconds, in the order of arrival.

    :meth:`run` sends it requests at ``rate`` a second with exponential gaps, each through one of ``limiters`` in turn,
    and keeps when each arrived and how long its answer took (None where it was turned away).
    """

    def __init__(self, *, batch: int = 8, batch_s: float = 0.02, spread: float = 0.1, seed: int = 0) -> None:
        self.batch, self.batch_s, self.spread = batch, batch_s, spread
        self.now = 0.0
        self.log: list[tuple[float, float | None]] = []
        self._random, self._order = random.Random(seed), itertools.count()
        self._queue: list = []
        self._busy = False
        self._events: list = []

    def clock(self) -> float:
        return self.now

    def run(self, limiters: list, *, rate: float, seconds: float) -> None:
        end, turn = self.now + seconds, itertools.cycle(limiters)
        self._later(self._random.expovariate(rate), "arrival")
        while self._events:
            self.now, _, kind, what = heapq.heappop(self._events)
            if kind == "arrival" and self.now < end:
                self._later(self._random.expovariate(rate), "arrival")
                self._arrive(next(turn))
            elif kind == "done":
                self._finish(what)

    def in_time(self, deadline_s: float, *, since: float) -> float:
        """Answers within the deadline, a second of arrivals, from ``since`` on."""
        good = sum(latency is not None and latency <= deadline_s for begin, latency in self.log if begin >= since)
        return good / (self.log[-1][0] - since)

    def latencies(self, *, since: float) -> list[float]:
        """Of what was answered, lowest first."""
        return sorted(latency for begin, latency in self.log if begin >= since and latency is not None)

    def _later(self, seconds: float, kind: str, what=None) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), kind, what))

    def _arrive(self, limiter) -> None:
        slot = limiter.slot()
        try:
            slot.__enter__()
        except OverloadError:
            self.log.append((self.now, None))
            return
        self._queue.append((self.now, slot))
        self._begin()

    def _begin(self) -> None:
        if self._busy or not self._queue:
            return
        self._busy = True
        taken, self._queue = self._queue[: self.batch], self._queue[self.batch :]
        self._later(self.batch_s * self._random.uniform(1, 1 + 2 * self.spread), "done", taken)

    def _finish(self, taken: list) -> None:
        self._busy = False
        for begin, slot in taken:
            self.log.append((begin, self.now - begin))
            with suppress(OverloadError):
                slot.__exit__(None, None, None)
        self._begin()
