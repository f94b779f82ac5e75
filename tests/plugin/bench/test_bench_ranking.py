"""What SASRec is distilled by in the benchmark of quality: every place of a history, against the same rivals."""

import copy

import pytest
import torch

from recpress.bench.ranking import _divergence, _Places, _scores
from recpress.zoo.sasrec import SASRec

ITEMS = 30


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = SASRec(num_items=ITEMS, length=6, dim=8).eval()
    with torch.no_grad():
        made.items.weight *= 50  # scores that differ
    return made


def test_the_scores_of_places_are_those_of_their_states_and_the_last_ones_the_models_own(model):
    history, nexts = torch.tensor([[0, 0, 3, 7, 9], [1, 2, 3, 4, 5]]), torch.tensor([[0, 0, 7, 9, 4], [2, 3, 4, 5, 6]])
    rivals = torch.tensor([11, 12, 13])
    got = _scores(model, history, nexts, rivals)
    assert got.shape == (3 + 5, 4)
    states = model.states(history)
    places = [(row, place) for row in range(2) for place in range(5) if nexts[row, place]]
    for scores, (row, place) in zip(got, places, strict=True):
        items = model.items(torch.cat([nexts[row, place : place + 1], rivals]))
        torch.testing.assert_close(scores, items @ states[row, place], rtol=1e-5, atol=1e-5)
    last = torch.cat([nexts[:, -1:], rivals.expand(2, -1)], dim=1)
    torch.testing.assert_close(got[[2, 7]], model(history, last), rtol=1e-5, atol=1e-5)


def test_the_divergence_is_nothing_from_itself_and_more_from_another(model):
    batch = (torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]), torch.arange(5, 15))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.items.weight[2] += 1.0
    assert _divergence(model, model, batch).item() == pytest.approx(0.0, abs=1e-6)
    assert _divergence(other, model, batch).item() > 1e-4
    assert _divergence(other, model, (batch[0], torch.arange(1, 9)[None])).item() > 1e-4


def test_each_pass_has_every_history_once_and_rivals_of_its_own():
    histories = torch.arange(1, 301)[:, None].repeat(1, 2)
    places = _Places(histories, histories, 300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = list(places), list(places)
    assert len(first) == len(places) == 3
    for batches in (first, second):
        assert sorted(torch.cat([batch[0][:, 0] for batch in batches]).tolist()) == list(range(1, 301))
    assert not torch.equal(first[0][2], second[0][2])
