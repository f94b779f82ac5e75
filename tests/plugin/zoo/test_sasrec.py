import numpy as np
import pytest
import torch
from torch import nn

import recpress
from recpress.data.sequences import Ranking, Sequences, histories, leave_out
from recpress.errors import DataError
from recpress.zoo.sasrec import SASRec
from recpress.zoo.sasrec_train import by_length, ranked, train, trimmed

ITEMS, LENGTH = 130, 8


pytestmark = pytest.mark.usefixtures("one_thread")


def small(**options):
    torch.manual_seed(0)
    model = SASRec(**{"num_items": ITEMS, "length": LENGTH, "dim": 12, "heads": 2, "dropout": 0.0} | options)
    nn.init.normal_(model.items.weight)
    with torch.no_grad():
        model.items.weight[0] = 0.0
    return model.eval()


def users(count=20, candidates=7):
    generator = np.random.default_rng(count)
    events = [generator.integers(1, ITEMS + 1, generator.integers(0, LENGTH + 1)) for _ in range(count)]
    return histories(events, LENGTH), torch.from_numpy(generator.integers(1, ITEMS + 1, (count, candidates)))


def test_the_formula():
    """A user at a time, without filling up: attention by hand over the items that are there."""
    model, (history, candidates) = small(), users()
    with torch.no_grad():
        scores = model(history, candidates)
        for row in range(len(history)):
            items = history[row][history[row] != 0]
            if not len(items):
                continue
            x = model.items(items) * 12**0.5 + model.positions.weight[LENGTH - len(items) :]
            for block in model.blocks:
                normed = block.attention_norm(x)
                q, k, v = block.query(normed), block.key(x), block.value(x)
                seen = []
                for part in (slice(0, 6), slice(6, 12)):
                    weights = q[:, part] @ k[:, part].T / 6**0.5
                    future = torch.ones(len(items), len(items)).triu(1).bool()
                    seen.append(weights.masked_fill(future, -torch.inf).softmax(dim=1) @ v[:, part])
                x = normed + block.out(torch.cat(seen, dim=1))
                normed = block.feed_norm(x)
                x = normed + block.feed(normed)
            expected = model.items(candidates[row]) @ model.norm(x)[-1]
            torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-4)


def test_a_place_knows_nothing_of_what_comes_after_it():
    model, (history, _) = small(), users()
    changed = history.clone()
    changed[:, -1] = 1
    with torch.no_grad():
        before, after = model.states(history), model.states(changed)
    assert torch.equal(before[:, :-1], after[:, :-1]) and not torch.equal(before[:, -1], after[:, -1])


def test_what_is_filled_up_can_be_left_out():
    model, (history, candidates) = small(), users()
    short = history[(history[:, :4] == 0).all(dim=1)]
    assert len(short) > 3 and trimmed(short).shape[1] <= 4
    with torch.no_grad():
        torch.testing.assert_close(
            model(trimmed(short), candidates[: len(short)]), model(short, candidates[: len(short)])
        )
        assert torch.isfinite(model(torch.zeros(2, LENGTH).long(), candidates[:2])).all(), "a user without a history"


def test_compressed_exported_and_loaded(tmp_path):
    model, given = small(), users(64)
    compressed = recpress.compress(model, "int8", calibration=[given])
    statuses = {name: row.status for row in compressed.report.rows for name in row.names}
    assert {n for n, s in statuses.items() if s == "kept"} == {n for n in statuses if n.endswith("norm")}
    recpress.export(compressed, tmp_path / "a", example_inputs=given, input_names=("history", "candidates"))
    loaded = recpress.load(tmp_path / "a")
    assert [set(spec.table_high) for spec in loaded.manifest.inputs] == [{ITEMS}, {ITEMS}]
    history, candidates = users(9)
    with torch.no_grad():
        mine, truth = compressed.model(history, candidates), model(history, candidates)
    found = loaded.score({"history": history, "candidates": candidates})["output"]
    torch.testing.assert_close(found, mine, rtol=1e-4, atol=1e-4)
    assert 0 < (mine - truth).abs().max() < 0.2 * truth.std()


class Fixed(nn.Module):
    def forward(self, history, candidates):
        return candidates.float()


class Nan(nn.Module):
    def forward(self, history, candidates):
        return candidates * torch.nan


def test_ranked():
    candidates = torch.tensor([[50, *range(1, 40), 90], [50, *range(41, 81)], [50, *range(1, 41)], [50, *([50] * 40)]])
    given = Ranking(torch.tensor([[0, 1], [0, 0], [2, 3], [0, 1]]), candidates)
    found = ranked(Fixed(), given, batch_size=2)
    assert found.hit.tolist() == [1, 0, 1, 0], "who scores all the same has found nothing"
    assert found.ndcg.tolist() == [1 / np.log2(3), 0, 1, 0]
    with pytest.raises(DataError, match="not finite"):
        ranked(Nan(), given)


def walks(count=300, step=7):
    """Users who go on from item to item by the same step."""
    generator = np.random.default_rng(0)
    events = []
    for _ in range(count):
        start, length = generator.integers(ITEMS), generator.integers(5, 12)
        events.append((start + step * np.arange(length)) % ITEMS + 1)
    return Sequences(tuple(events), ITEMS)


def test_it_learns_and_keeps_its_best():
    data = walks()
    valid, test = (leave_out(data, length=LENGTH, last=last, seed=last) for last in (2, 1))
    torch.manual_seed(0)
    model = SASRec(num_items=ITEMS, length=LENGTH, dim=24, dropout=0.1)
    assert ranked(model, test).hit.mean() < 0.3
    seen = []
    done = train(model, data, valid, epochs=16, batch_size=32, lr=5e-3, judge_every=4, on_epoch=seen.append)
    assert [epoch.number for epoch in done] == [4, 8, 12, 16] and seen == done
    assert done[-1].loss < done[0].loss
    assert ranked(model, valid).ndcg.mean() == pytest.approx(max(epoch.ndcg for epoch in done))
    assert ranked(model, test).hit.mean() > 0.8 and not model.training
    assert torch.equal(model.items.weight[0], torch.zeros(24)), "what fills up stays nothing"


def test_the_seed_decides_everything():
    data = walks(60)
    valid = leave_out(data, length=LENGTH, last=2, seed=0)
    runs = []
    for seed, disturb in ((3, 0), (3, 1), (4, 0)):
        model = small(dropout=0.3)
        torch.manual_seed(disturb)
        expected = torch.rand(2)
        torch.manual_seed(disturb)
        train(model, data, valid, epochs=1, seed=seed)
        assert torch.equal(torch.rand(2), expected), "the global generator is left alone"
        runs.append(model.blocks[0].query.weight)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_what_is_left_out_is_not_learned_from():
    """The last two events of a user change nothing that is learned."""
    data = walks(60)
    other = Sequences(tuple(np.append(items[:-2], [1, 2]) for items in data.events), ITEMS)
    valid = leave_out(data, length=LENGTH, last=2, seed=0)
    models = [small(), small()]
    for model, given in zip(models, (data, other), strict=True):
        train(model, given, valid, epochs=1)
    assert torch.equal(models[0].items.weight, models[1].items.weight)


def test_by_length():
    given = histories([np.arange(1, n + 1) for n in (3, 0, 5, 3, 1)], 6)
    assert by_length(given).tolist() == [1, 4, 0, 3, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_items": 0}, "num_items"),
        ({"heads": 5}, "5 does not divide 12"),
        ({"blocks": 0}, "blocks"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_training_that_cannot_be():
    valid = leave_out(walks(20), length=LENGTH, last=2, seed=0)
    with pytest.raises(ValueError, match="epochs must be at least 1, not 0"):
        train(small(), walks(20), valid, epochs=0)
    with pytest.raises(DataError, match="no user has four events"):
        train(small(), Sequences((np.array([1, 2, 3]),), ITEMS), valid, epochs=1)
    model = small()
    with torch.no_grad():
        model.items.weight[1:] = torch.inf
    with pytest.raises(DataError, match="the loss is not finite"):
        train(model, walks(20), valid, epochs=1)
