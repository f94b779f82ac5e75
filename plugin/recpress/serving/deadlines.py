"""Deadlines of requests: which of a batch would be answered too late, told before the forward; inside the server.

A client gives ``deadline_unix_us``, a request parameter: the unix time in microseconds, by its own clock, until which
an answer is of use to it. It is compared with the clock of the server's machine. Where that is ahead by d seconds,
requests with less than d to spare are refused though they would have been in time; where it is behind, requests are
scored that end up to d late. So keep both clocks by NTP, and d well below the time that clients give.

This is the second line: it keeps the server from working for nobody. What arrives beyond capacity has to be turned
away before the server's queue (:mod:`recpress.serving.limiter`, :mod:`recpress.serving.proxy`), since what waits there
waits until it is almost too late.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

PARAMETER = "deadline_unix_us"
MALFORMED, EXPIRED, LATE = "malformed_deadline", "deadline_passed", "deadline_too_close"
REASONS = (MALFORMED, EXPIRED, LATE)
"""No deadline at all; passed while the request waited; would pass during the forward."""
MARGIN_S = 0.002
"""For the way back: the answer leaves the backend through shared memory and the network."""
_RANGE_US = (10**15, 10**16)
_MEAN_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 2.0
_AGEING = 0.95


class Refused(NamedTuple):
    """Why a request is not scored: one of :data:`REASONS`, and what to tell the client."""

    reason: str
    text: str


class ForwardTimes:
    """How long a batch takes, in seconds, from those that were measured.

    Each power of two of rows has a running mean and a running mean deviation with the gains of TCP's round-trip
    estimate (V. Jacobson, "Congestion Avoidance and Control", 1988; RFC 6298), and is taken for mean + 2 deviations.
    """

    def __init__(self) -> None:
        self._measured: dict[int, tuple[int, float, float]] = {}

    def add(self, rows: int, seconds: float) -> None:
        """A batch of ``rows`` has taken ``seconds``."""
        count, mean, deviation = self._measured.get(rows.bit_length(), (0, seconds, 0.0))
        error = seconds - mean
        mean += max(_MEAN_GAIN, 1 / (count + 1)) * error
        deviation += _DEVIATION_GAIN * (abs(error) - deviation)
        self._measured[rows.bit_length()] = count + 1, mean, deviation

    def estimate(self, rows: int) -> float:
        """Seconds for a batch of ``rows``.

        A size that was never measured is taken for the next larger one, or else the next smaller one: too low an
        estimate lets the size be measured.
        """
        if not self._measured:
            return 0.0
        size = rows.bit_length()
        if size not in self._measured:
            size = min(self._measured, key=lambda known: (known < size, abs(known - size)))
        _, mean, deviation = self._measured[size]
        return mean + _DEVIATIONS * deviation

    def age(self) -> None:
        """Lower all estimates a little: a batch was refused whole, so that nothing was measured.

        Else one pause, or a slow first forward, would have everything refused for good.
        """
        for size, (count, mean, deviation) in self._measured.items():
            self._measured[size] = count, mean * _AGEING, deviation * _AGEING


class Deadlines:
    """Refuses requests that are too late; one for each instance of a model, which scores one batch at a time.

    Args:
        count: called with the reason of every refusal, for a metric.
        clock: unix time in seconds.
    """

    def __init__(
        self, *, count: Callable[[str], None] = lambda reason: None, clock: Callable[[], float] = time.time
    ) -> None:
        self.times = ForwardTimes()
        self._count, self._clock = count, clock

    def refuse(self, requests: Mapping[int, tuple[str, int]]) -> dict[int, Refused]:
        """Those of ``requests`` that are not to be scored, so that those left, scored together, are in time.

        Args:
            requests: of each its parameters as a JSON object (empty text for none) and its rows.
        """
        now, rows = self._clock(), 0
        refused: dict[int, Refused] = {}
        dated: list[tuple[float, int, int]] = []
        for i, (parameters, own) in requests.items():
            try:
                deadline = read_deadline(parameters)
            except ValueError as error:
                refused[i] = Refused(MALFORMED, str(error))
                continue
            if deadline is not None and deadline <= now:
                refused[i] = Refused(EXPIRED, _expired(now - deadline))
                continue
            rows += own
            if deadline is not None:
                dated.append((deadline - now, i, own))
        # The most pressing first: without it the batch is smaller, and may be in time for the others.
        for left, i, own in sorted(dated):
            needed = self.times.estimate(rows) + MARGIN_S
            if left >= needed:
                break
            refused[i] = Refused(LATE, _late(left, needed))
            rows -= own
        if not rows and any(why.reason == LATE for why in refused.values()):
            self.times.age()
        for why in refused.values():
            self._count(why.reason)
        return refused


def read_deadline(parameters: str) -> float | None:
    """The deadline in ``parameters``, a JSON object, as unix time in seconds; None where there is none.

    Raises:
        ValueError: it is not a whole number of microseconds since 1970.
    """
    if PARAMETER not in parameters:
        return None
    given = json.loads(parameters).get(PARAMETER)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not _RANGE_US[0] <= given < _RANGE_US[1]:
        raise ValueError(
            f"parameter {PARAMETER!r} is {str(given)[:40]!r}; it must be an integer, the unix time in microseconds "
            "until which an answer is of use (16 digits)"
        )
    return given / 1e6


def _expired(late_s: float) -> str:
    return (
        f"overloaded: the request's deadline passed {late_s * 1e3:.1f} ms before it could be scored; send less at a "
        "time, or give more time (if the server is idle, its clock and the client's differ)"
    )


def _late(left_s: float, needed_s: float) -> str:
    return (
        f"overloaded: scoring takes about {needed_s * 1e3:.1f} ms and the request's deadline is in "
        f"{left_s * 1e3:.1f} ms; send less at a time, or give more time"
    )
