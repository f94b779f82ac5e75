import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from recpress.report.paired import bootstrap, midranks, paired_auc, paired_mean


def drawn(n=600, seed=0, *, noise=0.3, steps=None):
    """Labels, an original's scores and those of one that errs by ``noise``; with ``steps`` many scores are equal."""
    generator = np.random.default_rng(seed)
    label = (generator.random(n) < 0.4).astype(np.float64)
    before = generator.normal(size=n) + label
    after = before + noise * generator.normal(size=n)
    return label, *((np.round(x * steps) / steps if steps else x) for x in (before, after))


def delong_by_the_definition(before, after, label):
    """The paper's formula: kernels of all pairs, and covariances of their means over each kind of row."""
    right, wrong = label == 1, label == 0

    def kernel(scores):
        gap = scores[right][:, None] - scores[wrong][None, :]
        return (gap > 0) + 0.5 * (gap == 0)

    kernels = [kernel(scores) for scores in (before, after)]
    of_right, of_wrong = (np.stack([k.mean(axis=axis) for k in kernels]) for axis in (1, 0))
    covariance = np.cov(of_right) / right.sum() + np.cov(of_wrong) / wrong.sum()
    return [k.mean() for k in kernels], covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@pytest.mark.parametrize("steps", [None, 2], ids=["plain", "ties"])
def test_delong_is_the_papers_formula(steps):
    label, before, after = drawn(steps=steps)
    (a, b), variance = delong_by_the_definition(before, after, label)
    found = paired_auc(before, after, label)
    assert found.before == pytest.approx(a, abs=1e-12) and found.after == pytest.approx(b, abs=1e-12)
    half = 1.959963984540054 * variance**0.5
    assert (found.low, found.high) == pytest.approx((b - a - half, b - a + half), abs=1e-12)
    wider = paired_auc(before, after, label, confidence=0.99)
    assert wider.high - found.difference == pytest.approx(half * 2.5758293 / 1.9599640, rel=1e-6)


@pytest.mark.parametrize("steps", [None, 2], ids=["plain", "ties"])
def test_scikit_learn_agrees_on_auc_and_on_its_bootstrap(steps):
    label, before, after = drawn(300, 1, steps=steps)
    found = paired_auc(before, after, label, units=np.arange(300), draws=200)
    assert found.before == pytest.approx(roc_auc_score(label, before), abs=1e-12)
    assert found.after == pytest.approx(roc_auc_score(label, after), abs=1e-12)
    generator = np.random.default_rng(0)
    rows = [generator.integers(300, size=300) for _ in range(200)]
    gaps = [roc_auc_score(label[i], after[i]) - roc_auc_score(label[i], before[i]) for i in rows]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])), abs=1e-9)


def test_delong_and_the_bootstrap_over_rows_have_the_same_width():
    label, before, after = drawn(3000, 2)
    delong = paired_auc(before, after, label)
    drawn_anew = paired_auc(before, after, label, units=np.arange(3000))
    assert drawn_anew.high - drawn_anew.low == pytest.approx(delong.high - delong.low, rel=0.1)
    assert delong.low < delong.difference < delong.high < 0, "the noise costs something, and 3000 rows show it"


def test_the_pairing_is_used():
    """The same scores in another order of rows are as good, and paired with nothing: the interval is far wider."""
    label, before, after = drawn(2000, 3, noise=0.05)
    paired = paired_auc(before, after, label)
    shuffled = after.copy()
    for kind in (0, 1):
        rows = np.flatnonzero(label == kind)
        shuffled[rows] = shuffled[np.random.default_rng(0).permutation(rows)]
    unpaired = paired_auc(before, shuffled, label)
    assert unpaired.after == pytest.approx(paired.after, abs=1e-12)
    assert unpaired.high - unpaired.low > 10 * (paired.high - paired.low)


def test_95_of_100_intervals_hold_the_truth():
    """The truth from many rows; of 200 intervals 95 % hold it, give or take what chance allows."""
    label, before, after = drawn(400_000, 4)
    truth = paired_auc(before, after, label).difference
    found = [paired_auc(*(x[part] for x in (before, after, label))) for part in np.split(np.arange(200_000), 200)]
    assert 0.91 <= np.mean([interval.low <= truth <= interval.high for interval in found]) <= 0.99


def test_rows_of_a_user_that_err_together_widen_the_interval_over_users():
    generator = np.random.default_rng(5)
    user = np.repeat(np.arange(200), 20)
    label = (generator.random(4000) < 0.5).astype(float)
    before = generator.normal(size=4000) + label
    after = before + 0.5 * generator.normal(size=200)[user] * (2 * label - 1)
    by_row, by_user = (paired_auc(before, after, label, units=u, draws=400) for u in (np.arange(4000), user))
    assert by_user.high - by_user.low > 2 * (by_row.high - by_row.low)


def test_the_same_scores_differ_by_nothing():
    label, before, _ = drawn()
    for found in (paired_auc(before, before, label), paired_auc(before, before, label, units=label * 0 + 3)):
        assert (found.low, found.high, found.difference, found.ratio) == (0.0, 0.0, 0.0, 1.0)


def test_means_over_users_are_those_of_the_normal_interval():
    generator = np.random.default_rng(6)
    before = (generator.random(4000) < 0.7).astype(float)
    after = np.where(generator.random(4000) < 0.02, 1 - before, before)
    found = paired_mean(before, after)
    change = after - before
    half = 1.96 * change.std(ddof=1) / 4000**0.5
    assert found.difference == pytest.approx(change.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.15 * half)
    assert found == paired_mean(before, after) != paired_mean(before, after, seed=1)


def test_all_rows_of_a_unit_are_drawn_together():
    seen = []
    bootstrap(lambda weights: seen.append(weights) or 0.0, np.array([7, 3, 7, 3, 9]), draws=50)
    weights = np.stack(seen)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 3]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 4] == 3).all() and len(np.unique(weights, axis=0)) > 5


def test_midranks():
    assert midranks(np.array([2.0, 1.0, 2.0, 5.0, 2.0])).tolist() == [3, 1, 3, 5, 3]


@pytest.mark.parametrize(
    ("before", "after", "label", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], [1, 1], "rows of both labels, and all of the 2 rows"),
        ([1.0, np.nan], [1.0, 2.0], [0, 1], "1 of 2 values are not finite"),
        ([1.0, 2.0], [1.0, np.inf], [0, 1], "1 of 2 values are not finite"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], [0, 1], r"\(3,\) and \(2,\)"),
        ([[1.0], [2.0]], [1.0, 2.0], [0, 1], r"\(2, 1\) and \(2,\)"),
    ],
)
def test_what_has_no_auc(before, after, label, message):
    with pytest.raises(ValueError, match=message):
        paired_auc(np.array(before), np.array(after), np.array(label))


def test_a_mean_needs_values():
    with pytest.raises(ValueError, match="there are none"):
        paired_mean(np.zeros(0), np.zeros(0))
