"""Whether a compressed model is as good as its original: both judged on the same rows or users.

Two scores of the same row differ far less than scores of different rows, so that the interval of the difference is many
times narrower than those of the two figures.

>>> paired_auc(before, after, label).low          # DeLong's interval: rows are independent
>>> paired_auc(before, after, label, units=user)  # bootstrap over users: the rows of a user are not
>>> paired_mean(hit_before, hit_after)            # bootstrap over users of a value each
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 1000


@dataclass(frozen=True)
class Paired:
    """A figure ``before`` and ``after``, and the interval ``low`` to ``high`` of ``after - before``."""

    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else float("nan")


def paired_auc(
    before: np.ndarray,
    after: np.ndarray,
    label: np.ndarray,
    *,
    units: np.ndarray | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """AUC of two scores ``[N]`` of the same rows of label 0 or 1, ties counted half.

    Without ``units`` the interval is that of E. DeLong, D. DeLong and D. Clarke-Pearson, "Comparing the Areas under
    Two or More Correlated Receiver Operating Characteristic Curves", Biometrics 44, 1988, computed from mid-ranks as X.
    Sun and W. Xu, "Fast Implementation of DeLong's Algorithm", IEEE Signal Processing Letters 21, 2014. With ``units``
    ``[N]``, the user of each row, it is that of :func:`bootstrap` over users.

    Raises:
        ValueError: the arrays are not of one length, a score is not finite, or the rows lack one of the labels.
    """
    before, after = _scores(before, label), _scores(after, label)
    positive = np.asarray(label) == 1
    if not 0 < positive.sum() < len(positive):
        raise ValueError(f"AUC needs rows of both labels, and all of the {len(positive)} rows have one")
    if units is not None:
        ranks = [np.unique(scores, return_inverse=True)[1] for scores in (before, after)]

        def difference(weights: np.ndarray) -> float:
            first, second = (_weighted_auc(r, positive, weights) for r in ranks)
            return second - first

        every = np.ones(len(positive))
        a, b = (_weighted_auc(r, positive, every) for r in ranks)
        low, high = bootstrap(difference, np.asarray(units), confidence=confidence, draws=draws, seed=seed)
        return Paired(a, b, low, high)
    (a, of_positive_a, of_negative_a), (b, of_positive_b, of_negative_b) = (
        _placements(scores, positive) for scores in (before, after)
    )
    variance = _variance_of_mean(of_positive_b - of_positive_a) + _variance_of_mean(of_negative_b - of_negative_a)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * variance**0.5
    return Paired(a, b, b - a - half, b - a + half)


def paired_mean(
    before: np.ndarray,
    after: np.ndarray,
    *,
    units: np.ndarray | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """Means of two values ``[N]`` of the same rows, with :func:`bootstrap`'s interval over units, by default the rows.

    Raises:
        ValueError: the arrays are not of one length, are empty, or hold what is not finite.
    """
    before, after = _scores(before, after), _scores(after, before)
    if not len(before):
        raise ValueError("a mean needs values, and there are none")
    change = after - before
    groups = np.arange(len(change)) if units is None else np.asarray(units)
    low, high = bootstrap(
        lambda weights: float(weights @ change / weights.sum()), groups, confidence=confidence, draws=draws, seed=seed
    )
    return Paired(float(before.mean()), float(after.mean()), low, high)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    units: np.ndarray,
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of ``statistic`` over units drawn with replacement, as many as there are.

    B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. All rows of a unit are drawn
    together.

    Args:
        statistic: called with how often each row was drawn, float64 ``[N]``; NaN, as of an AUC where all drawn rows
            have one label, leaves the draw out.
        units: the unit of each row, ``[N]``.
        draws: 1000 settle the ends of a 95 % interval to about 3 % of its width.
    """
    rows = np.unique(units, return_inverse=True)[1]
    count = int(rows.max()) + 1
    generator = np.random.default_rng(seed)
    found = [
        statistic(np.bincount(generator.integers(count, size=count), minlength=count)[rows].astype(np.float64))
        for _ in range(draws)
    ]
    low, high = np.nanquantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """AUC, and for each positive and each negative row the share of the other kind that it stands right to."""
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = midranks(scores)
    of_positive = (ranks[positive] - midranks(scores[positive])) / n
    of_negative = 1 - (ranks[~positive] - midranks(scores[~positive])) / m
    return float(of_positive.mean()), of_positive, of_negative


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _weighted_auc(ranks: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """AUC of rows that stand for ``weights`` rows each; NaN where one label has none. ``ranks`` are from 0."""
    right = np.bincount(ranks, weights * positive)
    wrong = np.bincount(ranks, weights * ~positive)
    pairs = right.sum() * wrong.sum()
    return float((right * (wrong.cumsum() - wrong / 2)).sum() / pairs) if pairs else float("nan")


def _scores(scores: np.ndarray, other: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != np.asarray(other).shape:
        raise ValueError(f"values are of shapes {scores.shape} and {np.asarray(other).shape}; give one value a row")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} values are not finite")
    return scores
