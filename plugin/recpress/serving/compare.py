"""Judge a canary by what the server counts of it and of its model, and by scores of both on the same rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from recpress.errors import ServerError
from recpress.serving.client import Client
from recpress.serving.metrics import EXECUTE_SECONDS, Histogram, read_histogram

ALPHA, POWER = 0.01, 0.9
"""Of a judgement: how often a canary as good as the model is called worse, how often a worse one is found out."""
FAILURES = 0.005
"""More failed requests, as a part of all, than the model's that are put up with."""
SLOWER = 1.25
"""How much the canary's p99 may exceed the model's."""
SHIFT = 0.25
"""How far the mean score may move, in standard deviations of the model's scores."""


@dataclass(frozen=True)
class Served:
    """What the server counts of one model: requests answered and failed, and its histogram of executions."""

    answered: int
    failed: int
    execute: Histogram

    def since(self, earlier: "Served") -> "Served":
        """What came after ``earlier``."""
        execute = self.execute.since(earlier.execute)
        return Served(self.answered - earlier.answered, self.failed - earlier.failed, execute)

    @property
    def requests(self) -> int:
        return self.answered + self.failed


def read_served(text: str, model: str) -> Served:
    """What the metrics ``text`` of a server hold of ``model``.

    Raises:
        ServerError: they hold no histogram of it.
    """
    from prometheus_client.parser import text_string_to_metric_families

    totals = {"nv_inference_request_success": 0.0, "nv_inference_request_failure": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if family.name in totals and sample.labels.get("model") == model:
                totals[family.name] += sample.value
    answered, failed = (int(value) for value in totals.values())
    return Served(answered, failed, read_histogram(text, EXECUTE_SECONDS, {"model": model}))


@dataclass(frozen=True)
class Scores:
    """Scores of the same rows by the model and its canary: means, the model's deviation, and their difference.

    ``error`` is the half width of the 95 % interval of ``shift``, the mean of the paired differences.
    """

    rows: int
    model: float
    canary: float
    deviation: float
    shift: float
    error: float


def compare_scores(client: Client, model: str, canary: str, rows: Mapping[str, np.ndarray]) -> Scores:
    """Send the same ``rows``, arrays ``[N, ...]`` by input name, N of at least 2, to both.

    Raises:
        ServerError: a score is not finite.
        RequestError: one of them refuses.
    """
    before, after = (
        np.concatenate([out.reshape(-1).astype(float) for out in client.score(name, rows).values()])
        for name in (model, canary)
    )
    difference = after - before
    if not np.isfinite(difference).all():
        raise ServerError(f"{canary} or {model} gives scores that are not finite")
    error = NormalDist().inv_cdf(0.975) * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return Scores(
        len(before), float(before.mean()), float(after.mean()), float(before.std()), float(difference.mean()), error
    )


def tail(events: int, trials: int, rate: float) -> float:
    """How likely ``events`` or more of ``trials`` are where each has the probability ``rate``."""
    if events <= 0:
        return 1.0
    k = np.arange(events, trials + 1)
    log = np.array([math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k])
    return float(min(1.0, np.exp(log + k * math.log(rate) + (trials - k) * math.log1p(-rate)).sum()))


def requests_needed(rate: float, worse: float) -> int:
    """How many trials tell a probability of ``worse`` from ``rate``, with ALPHA and POWER.

    The normal approximation of the binomial test (J. L. Fleiss, Statistical Methods for Rates and Proportions).
    """
    alpha, power = NormalDist().inv_cdf(1 - ALPHA), NormalDist().inv_cdf(POWER)
    spread = alpha * math.sqrt(rate * (1 - rate)) + power * math.sqrt(worse * (1 - worse))
    return math.ceil((spread / (worse - rate)) ** 2)


@dataclass(frozen=True)
class Verdict:
    """``worse`` says what the canary does worse, ``needed`` how many of its requests decide; both figures of p99."""

    worse: tuple[str, ...]
    requests: int
    needed: int
    p99_s: tuple[float, float]
    failed: tuple[float, float]
    scores: Scores

    @property
    def good(self) -> bool:
        """Whether it may be promoted: enough requests, and in nothing worse."""
        return not self.worse and self.requests >= self.needed

    def __str__(self) -> str:
        if self.worse:
            return "worse: " + "; ".join(self.worse)
        if not self.good:
            return f"undecided: {self.requests} requests of {self.needed} that are needed"
        return f"as good: {self.requests} requests, of {self.needed} that are needed"


def judge(model: Served, canary: Served, scores: Scores) -> Verdict:
    """Whether the canary fails more often, is slower, or scores otherwise.

    * Failures: beyond the model's rate and 0.5 %, by the binomial test.
    * Slow executions: more than 1 in 100 beyond the first bound of the histogram that is at least 1.25 times the
      model's p99, by the binomial test. An execution is one of joined requests: of a canary's fewer are joined.
    * Scores: their mean moves by more than a quarter of a standard deviation, its interval included.

    ``needed`` requests find out one percent more of failures, or twice the slow executions, in 9 of 10 cases.
    """
    p99 = model.execute.quantile(0.99), canary.execute.quantile(0.99)
    rate = model.failed / max(model.requests, 1)
    allowed = min(rate + FAILURES, 0.98)
    worse = []
    if tail(canary.failed, canary.requests, allowed) < ALPHA:
        worse.append(f"{canary.failed} of its {canary.requests} requests fail, of the model's {rate:.2%}")
    bound, slow = _beyond(canary.execute, SLOWER * p99[0])
    if tail(slow, canary.execute.count, 0.01) < ALPHA:
        share = slow / canary.execute.count
        worse.append(
            f"{share:.1%} of its executions take over {bound * 1e3:g} ms, the model's p99 is {p99[0] * 1e3:.2f} ms"
        )
    if abs(scores.shift) - scores.error > SHIFT * scores.deviation:
        moved = f"{scores.shift:+.3g} ± {scores.error:.2g}"
        worse.append(f"its scores are {moved} from the model's, whose deviation is {scores.deviation:.2g}")
    needed = max(requests_needed(allowed, allowed + 0.01), requests_needed(0.01, 0.02))
    shares = rate, canary.failed / max(canary.requests, 1)
    return Verdict(tuple(worse), canary.requests, needed, p99, shares, scores)


def _beyond(histogram: Histogram, seconds: float) -> tuple[float, int]:
    """The first bound of at least ``seconds``, and how many observations exceed it; none beyond the last bound."""
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        if bound >= seconds:
            return bound, histogram.count - int(count)
    return math.inf, 0
