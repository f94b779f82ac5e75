"""How many requests may be under way at once: a fixed limit from what was measured, and one that adapts.

Admission belongs before the server's queue. What has waited there until its deadline is near is worth nothing, and
turning it away still costs the server work: a deadline alone keeps a seventh of the goodput at four times the capacity.

A limit L on what is under way bounds the latency by Little's law (J. Little, 1961): L / throughput. The throughput
does not grow any more with a second batch waiting behind the one that is scored, so any L from two batches on keeps
the server busy, and the largest with a latency well within the deadline rides out most pauses. Both limits here aim
at :data:`SHARE` of the deadline, which leaves the rest to the slowest of a hundred requests.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recpress.errors import OverloadError, ServerError

SHARE = 0.6
_BATCHES = 2
_WINDOW = (8, 32)
_DECREASE = 0.7
_DROPPED = 0.9


def fitting_limit(*, batch: float, batch_s: float, deadline_s: float, instances: int = 1) -> int:
    """How many requests may be under way so that a whole queue of them is answered in :data:`SHARE` of the deadline.

    Args:
        batch: requests in a full batch.
        batch_s: seconds that such a batch takes.
        deadline_s: seconds until an answer is of no use.
        instances: of the model, each with a core of its own.

    Raises:
        ServerError: the deadline is too short for two batches, without which the server idles between them.
    """
    if not (batch >= 1 and batch_s > 0 and deadline_s > 0 and instances >= 1):
        raise ServerError(
            f"a limit for instances={instances}, batch={batch}, batch_s={batch_s} and deadline_s={deadline_s} cannot "
            "be computed; all must be positive"
        )
    if deadline_s < _BATCHES * batch_s:
        raise ServerError(
            f"a deadline of {deadline_s * 1e3:.0f} ms is too short for batches of {batch_s * 1e3:.0f} ms: one is "
            "scored while the next one waits; make batches smaller (max_batch_size), or the deadline longer"
        )
    batches = max(_BATCHES, SHARE * deadline_s / batch_s)
    return math.floor(instances * batch * batches + 1e-9)


class Limiter:
    """Bounds the requests under way to one model of one server, by their latency; shared by all threads and tasks.

    A window is as many answers as the limit allows, 8 to 32, to requests that began within it. After each the limit
    L follows its median latency t:

    * t above the target T = ``SHARE`` * deadline: L <- L * T / t, as Netflix's Gradient2 limit does with a long-term
      latency in place of T, and by no more than 30 % at once;
    * else, if the limit was reached in that window: L <- 1.5 L until t was first above T (slow start), then L + 1;
    * requests that were turned away by the server or a proxy: L <- 0.9 L, as their AIMD limit does.

    Adding and multiplying is what makes several clients of one server share it evenly (D. Chiu and R. Jain, "Analysis
    of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks", 1989). Source of the limits:
    github.com/Netflix/concurrency-limits. A target in place of the least latency seen, since a server that joins
    requests is slower with more of them under way long before it is overloaded.

    >>> limiter = Limiter(deadline_s=0.1)
    >>> with limiter.slot():
    ...     pass  # a request

    Args:
        deadline_s: seconds until an answer is of no use.
        start: the first limit; :func:`fitting_limit` tells a good one.
        highest: what the limit never exceeds.
        clock: seconds, monotonic.

    Raises:
        ServerError: an argument is not positive, or ``start`` exceeds ``highest``.
    """

    def __init__(
        self, *, deadline_s: float, start: int = 8, highest: int = 1000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not (deadline_s > 0 and 1 <= start <= highest):
            raise ServerError(
                f"a limiter with deadline_s={deadline_s}, start={start} and highest={highest} cannot work; the "
                "deadline must be positive, and start from 1 to highest"
            )
        self.target_s = SHARE * deadline_s
        self._clock, self._highest, self._limit = clock, highest, float(start)
        self._lock = threading.Lock()
        self._under_way = self._refused = 0
        self._slow_start = True
        self._open_window()

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return int(self._limit)

    @property
    def under_way(self) -> int:
        """How many requests are."""
        return self._under_way

    @property
    def refused(self) -> int:
        """How many requests were turned away here so far."""
        return self._refused

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One request under way, within ``with``; it never waits, so that it serves coroutines as well.

        Raises:
            OverloadError: as many are under way as may be.
        """
        with self._lock:
            if self._under_way >= self.limit:
                self._refused += 1
                self._reached = True
                raise OverloadError(
                    f"overloaded: {self._under_way} requests are under way, and more would not be answered within "
                    f"{self.target_s / SHARE * 1e3:.0f} ms; send it elsewhere, or later"
                )
            self._under_way += 1
            self._reached = self._reached or self._under_way >= self.limit
        begin, answered, dropped = self._clock(), True, False
        try:
            yield
        except BaseException as error:
            answered, dropped = False, isinstance(error, OverloadError)
            raise
        finally:
            waited = self._clock() - begin
            # What is refused at once tells nothing of the load; what was given up after a long wait does.
            self._leave(begin, waited if answered or waited > self.target_s else None, dropped)

    def _leave(self, begin: float, latency: float | None, dropped: bool) -> None:
        with self._lock:
            self._under_way -= 1
            if begin < self._opened:
                return  # it ran under the limit before, which was judged already
            self._dropped = self._dropped or dropped
            if latency is not None:
                self._latencies.append(latency)
            enough = len(self._latencies) >= min(max(_WINDOW[0], self.limit), _WINDOW[1])
            if enough or (self._dropped and self._clock() - self._opened > self.target_s):
                self._adapt()
                self._open_window()

    def _open_window(self) -> None:
        self._latencies: list[float] = []
        self._dropped = self._reached = False
        self._opened = self._clock()

    def _adapt(self) -> None:
        median = sorted(self._latencies)[len(self._latencies) // 2] if self._latencies else 0.0
        if self._dropped or median > self.target_s:
            late = max(_DECREASE, min(1.0, self.target_s / median)) if median else 1.0
            self._limit *= min(late, _DROPPED if self._dropped else 1.0)
            self._slow_start = False
        elif self._reached:
            self._limit += self._limit / 2 if self._slow_start else 1.0
        self._limit = min(max(self._limit, 1.0), float(self._highest))
