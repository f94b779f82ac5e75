"""What a step of a load test came to: throughput, goodput, errors by kind, percentiles."""

import math
from dataclasses import dataclass

import numpy as np

from recpress.loadtest.engine import Record
from recpress.loadtest.outcomes import Outcome


@dataclass(frozen=True)
class Step:
    """One load, measured after its warm-up.

    Attributes:
        rate: requests a second that were due (open loop), or None.
        clients: that waited for their answers (closed loop), or None.
        seconds: how long it lasted.
        latency: of answers that are OK, from when the request was due, float64 ``[n]`` seconds, in rising order.
        service: the same from when it was sent: what a tester with coordinated omission would show.
        behind: by how much requests were sent late, in rising order; large values say that the tester is too slow.
        counts: requests by outcome.
        first_error: the first text of each kind of error.
        throughput: answers that are OK, a second.
        goodput: a second, those of them that came within ``deadline_s`` of when they were due; None without one.
        client_s: processor seconds of this process a request.
        broken_off: why it ended before its time, or None.
    """

    rate: float | None
    clients: int | None
    seconds: float
    latency: np.ndarray
    service: np.ndarray
    behind: np.ndarray
    counts: dict[Outcome, int]
    first_error: dict[Outcome, str]
    throughput: float
    deadline_s: float | None
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


def quantile(ordered: np.ndarray, q: float, count: int | None = None) -> float:
    """The least of ``ordered`` seconds that at least the share ``q`` of ``count`` requests took at most.

    Without interpolation, as HdrHistogram has it; ``count`` beyond the length are requests that take for ever.
    """
    count = len(ordered) if count is None else count
    if not count:
        return math.nan
    rank = max(1, math.ceil(q * count - 1e-9))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


def summarise(
    record: Record,
    *,
    begin: float,
    seconds: float,
    rate: float | None = None,
    clients: int | None = None,
    deadline_s: float | None = None,
    client_s: float = math.nan,
) -> Step:
    """The step of the requests due in the ``seconds`` after ``begin``, a reading of the monotonic clock."""
    due, sent, done, outcome = (np.array(x) for x in (record.due, record.sent, record.done, record.outcome))
    inside = (due >= begin) & (due < begin + seconds)
    right = inside & (outcome == Outcome.OK)
    latency = np.sort((done - due)[right])
    answered = (outcome == Outcome.OK) & (done >= begin) & (done < begin + seconds)
    per_second = 1 / seconds if seconds > 0 else math.nan
    in_time = None if deadline_s is None else float(np.searchsorted(latency, deadline_s, side="right")) * per_second
    kinds, counts = np.unique(outcome[inside], return_counts=True)
    return Step(
        rate=rate,
        clients=clients,
        seconds=seconds,
        latency=latency,
        service=np.sort((done - sent)[right]),
        behind=np.sort((sent - due)[inside]),
        counts={Outcome(int(kind)): int(count) for kind, count in zip(kinds, counts, strict=True)},
        first_error=dict(record.first_error),
        throughput=float(answered.sum()) * per_second,
        deadline_s=deadline_s,
        goodput=in_time,
        client_s=client_s,
        broken_off=record.broken_off,
    )
