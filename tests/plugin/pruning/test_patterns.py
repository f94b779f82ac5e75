"""Exact counts of what stays, and who goes first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recpress.errors import PruningError
from recpress.pruning import criteria, patterns
from recpress.pruning.permute import search


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 19), st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)]), st.integers(0, 9)
)
def test_n_m_keeps_n_of_each_m_and_the_best(rows, columns, n_m, seed):
    n, m = n_m
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, columns), generator=generator).float()  # with ties
    sizes = torch.rand(rows, columns, generator=generator)
    keep = patterns.keep_n_m(scores, sizes, n, m)
    for row in range(rows):
        for start in range(0, columns, m):
            places = range(start, min(start + m, columns))
            best = sorted(places, key=lambda i: (scores[row, i], sizes[row, i]), reverse=True)[:n]
            assert [i for i in places if keep[row, i]] == sorted(best)


def test_a_part_of_n_m_takes_the_groups_that_lose_least():
    scores = torch.tensor([[9.0, 9, 9, 9, 1, 1, 1, 1, 5, 5, 5, 5, 2, 2]])
    keep = patterns.keep_n_m(scores, scores, 2, 4)
    assert patterns.part_n_m(keep, scores, 4, 0.5).sum(dim=1) == 12  # 1s lose 2; the last group has 2 and loses none
    half = patterns.part_n_m(keep, scores, 4, 0.5)
    assert half[0, :4].all() and half[0, 4:8].sum() == 2 and half[0, 8:].all()
    assert torch.equal(patterns.part_n_m(keep, scores, 4, 1.0), keep)


def test_rankings_within_rows_layers_and_all():
    scores = {"a": torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), "b": torch.tensor([[0.1, 0.2], [9, 9.5]])}
    row = patterns.keep_share(scores, scores, 0.5, "row")
    assert row["a"].tolist() == [[False, False, True, True]] * 2 and row["b"].tolist() == [[False, True]] * 2
    layer = patterns.keep_share(scores, scores, 0.5, "layer")
    assert layer["a"].tolist() == [[False] * 4, [True] * 4] and layer["b"].tolist() == [[False] * 2, [True] * 2]
    both = patterns.keep_share(scores, scores, 0.25, "global")
    assert both["a"].tolist() == [[False] + [True] * 3, [True] * 4] and both["b"].tolist() == [[False] * 2, [True] * 2]
    low = {"low": torch.full((2, 2), 0.1), "a": scores["a"]}
    with pytest.raises(PruningError, match="leaves nothing of layer 'low'"):
        patterns.keep_share(low, low, 0.5, "global")


@pytest.mark.parametrize(("share", "count"), [(0.29, 71), (0.7, 30), (0.999, 0), (0.001, 100)])
def test_counts_of_shares_are_exact_even_among_ties(share, count):
    keep = patterns.keep_share({"a": torch.zeros(10, 10)}, {"a": torch.rand(10, 10)}, share, "layer")["a"]
    assert int(keep.sum()) == count


@pytest.mark.parametrize("pattern", ["4:4", "0:4", "5:4"])
def test_patterns_that_take_nothing_or_all_are_refused(pattern):
    with pytest.raises(PruningError, match="give n:m with 0 < n < m"):
        patterns.n_m(pattern)


def test_scores_are_their_formulas():
    weight, inputs, gradient = torch.tensor([[1.0, -3], [2, 0.5]]), torch.tensor([[3.0, 0], [4, 2]]), torch.rand(2, 2)
    assert criteria.score("magnitude", weight).tolist() == [[1, 3], [2, 0.5]]
    assert criteria.score("wanda", weight, inputs=inputs).tolist() == [[5, 6], [10, 1]]
    assert torch.equal(criteria.score("gradient", weight, gradient=gradient), gradient)
    assert torch.equal(criteria.score("taylor", weight, gradient=gradient), gradient * weight.abs())


def test_an_order_of_inputs_keeps_more_and_finds_the_planted_one():
    torch.manual_seed(0)
    good = torch.rand(32, 8, 4) * 0.01
    good[:, :, :2] += 1  # two strong inputs a group: 2:4 keeps nearly all
    planted = good.view(32, 32)
    shuffled = torch.cat([planted[:, torch.randperm(32)], torch.rand(32, 3)], dim=1)
    order = search(shuffled, 2, 4)
    assert order.sort().values.tolist() == list(range(35)) and order[32:].tolist() == [32, 33, 34]
    kept = lambda s: float(s[:, :32].reshape(32, -1, 4).topk(2).values.sum())  # noqa: E731
    assert kept(shuffled) < 0.9 * kept(planted)
    assert kept(shuffled[:, order]) > 0.99 * kept(planted)
    assert search(shuffled[:, :6], 2, 4).tolist() == list(range(6)), "one whole group has nothing to swap with"
