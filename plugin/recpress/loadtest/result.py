"""What a step of a load test came to: throughput, goodput, errors by kind, percentiles."""

import math
from dataclasses import dataclass

import numpy as np

from recpress.errors import LoadTestError
from recpress.latency import quantile
from recpress.loadtest.engine import Record
from recpress.loadtest.outcomes import Outcome

MOST_REQUESTS = 20_000_000
"""Of a load: each takes 33 bytes of memory."""


@dataclass(frozen=True)
class Load:
    """A load: either ``rate`` requests a second, or ``clients`` that wait for their answers.

    Attributes:
        seconds: how long it is measured.
        warm_up_s: how long it runs before that.
        deadline_s: an answer that comes later is of no use; for the goodput.
        give_up_s: the test is broken off when for so many seconds no server could be reached.
        drain_s: how long to wait for answers after the last request.

    Raises:
        LoadTestError: it has both or neither, a number is not above 0, or a rate makes too many requests to hold.
    """

    rate: float | None = None
    clients: int | None = None
    seconds: float = 10.0
    warm_up_s: float = 1.0
    deadline_s: float | None = None
    give_up_s: float = 3.0
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.clients is None):
            raise LoadTestError(
                f"a load of rate {self.rate} and clients {self.clients}; give one of them, and leave the other None"
            )
        for name in ("rate", "clients", "seconds", "deadline_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise LoadTestError(f"a load of {name} {value:g}; give a number above 0")
        whole = self.warm_up_s + self.seconds
        if self.rate is not None and not self.rate * whole <= MOST_REQUESTS:
            raise LoadTestError(
                f"{self} for {whole:g} s are {self.rate * whole:,.0f} requests; {MOST_REQUESTS:,} are the most; give a "
                "lower rate or fewer seconds"
            )

    def __str__(self) -> str:
        if self.clients is None:
            return f"{self.rate:g}/s"
        return f"{self.clients} client{'s' * (self.clients > 1)}"


@dataclass(frozen=True)
class Step:
    """What one load came to, after its warm-up.

    Attributes:
        load: what was asked for.
        seconds: how long it lasted.
        latency: of answers that are OK, from when the request was due, float64 ``[n]`` seconds, in rising order.
        service: the same from when it was sent: what a tester with coordinated omission would show.
        behind: by how much requests were sent late, in rising order; large values say that the tester is too slow.
        counts: requests by outcome.
        first_error: the first text of each kind of error.
        throughput: answers that are OK, a second.
        goodput: a second, those of them that came within ``load.deadline_s`` of when they were due; None without one.
        client_s: processor seconds of this process a request.
        broken_off: why it ended before its time, or None.
    """

    load: Load
    seconds: float
    latency: np.ndarray
    service: np.ndarray
    behind: np.ndarray
    counts: dict[Outcome, int]
    first_error: dict[Outcome, str]
    throughput: float
    goodput: float | None
    client_s: float
    broken_off: str | None

    @property
    def requests(self) -> int:
        return sum(self.counts.values())

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of all requests were answered in, NaN without requests.

        A request without a right answer counts as one that takes for ever.
        """
        return quantile(self.latency, percent / 100, self.requests)

    def spectrum(self) -> list[tuple[float, float]]:
        """``(percent, seconds)`` from the least to the most, the distance to 100 % halved in two steps each time.

        As HdrHistogram prints its percentiles: the longer the test, the further into the tail.
        """
        ticks = range(max(1, math.ceil(2 * math.log2(max(1, self.requests)))))
        percents = [100 * (1 - 2 ** (-i / 2)) for i in ticks] + [100.0]
        return [(percent, self.percentile(percent)) for percent in percents]


def summarise(record: Record, load: Load, *, begin: float, taken: float, client_s: float) -> Step:
    """The step of the requests due in the ``load.seconds`` after ``begin``, a reading of the monotonic clock.

    Args:
        taken: seconds from ``begin`` to the last answer; a test that was broken off lasted no longer.
        client_s: processor seconds of this process a request.
    """
    seconds = load.seconds if record.broken_off is None else min(load.seconds, taken)
    due, sent, done, outcome = (np.array(x) for x in (record.due, record.sent, record.done, record.outcome))
    inside = (due >= begin) & (due < begin + seconds)
    right = inside & (outcome == Outcome.OK)
    latency = np.sort((done - due)[right])
    answered = (outcome == Outcome.OK) & (done >= begin) & (done < begin + seconds)
    per_second = 1 / seconds if seconds > 0 else math.nan
    in_time = None if load.deadline_s is None else int(np.searchsorted(latency, load.deadline_s, side="right"))
    kinds, counts = np.unique(outcome[inside], return_counts=True)
    return Step(
        load=load,
        seconds=seconds,
        latency=latency,
        service=np.sort((done - sent)[right]),
        behind=np.sort((sent - due)[inside]),
        counts={Outcome(int(kind)): int(count) for kind, count in zip(kinds, counts, strict=True)},
        first_error=dict(record.first_error),
        throughput=int(answered.sum()) * per_second,
        goodput=None if in_time is None else in_time * per_second,
        client_s=client_s,
        broken_off=record.broken_off,
    )
