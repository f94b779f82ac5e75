import copy
import sys

import pytest
import torch
from torch import nn

from recpress.data import movielens
from recpress.data.movielens import Rows
from recpress.errors import DataError, MissingDependencyError
from recpress.zoo.dlrm import DLRM
from recpress.zoo.quality import quality
from recpress.zoo.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


def made(n, seed):
    """Rows whose label depends on the first dense column and on the pair of ids."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, 3, generator=generator)
    sparse = torch.randint(0, 6, (n, 2), generator=generator)
    chance = torch.sigmoid(2 * dense[:, 0] + 2.0 * (sparse.sum(1) % 2) - 1)
    return Rows(dense, sparse, torch.bernoulli(chance, generator=generator))


TRAIN, VALID = made(2000, 0), made(500, 1)


def small(dropout=0.0):
    torch.manual_seed(0)
    return DLRM(num_dense=3, table_rows=(6, 6), dim=4, bottom=(8,), top=(16,), dropout=dropout)


def state(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns():
    model = small()
    before = quality(model, VALID)
    history = train(model, TRAIN, VALID, epochs=10, batch_size=64, lr=0.01)
    after = quality(model, VALID)
    assert after["auc"] > max(0.8, before["auc"] + 0.2) and after["logloss"] < before["logloss"]
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert [epoch.number for epoch in history.epochs] == list(range(1, len(history.epochs) + 1))
    assert 0 < sum(epoch.seconds for epoch in history.epochs) <= history.seconds


def test_the_best_pass_is_restored_and_training_ends_after_patience():
    model = small()
    history = train(model, TRAIN, VALID, epochs=60, batch_size=100, lr=0.05, patience=2)
    aucs = [epoch.auc for epoch in history.epochs]
    assert history.best.auc == max(aucs)
    assert len(history.epochs) == history.best.number + 2 < 60
    assert quality(model, VALID) == {"auc": history.best.auc, "logloss": history.best.logloss}
    assert not any(module.training for module in model.modules())


def test_the_seed_decides_everything():
    runs = []
    for seed, disturb in ((3, 0), (3, 1), (4, 0)):
        model = small(dropout=0.3)
        torch.manual_seed(disturb)
        train(model, TRAIN, VALID, epochs=2, seed=seed)
        runs.append(state(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_global_generator_is_left_alone():
    model = small(dropout=0.3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, TRAIN, VALID, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_decay_of_tables_is_apart_from_that_of_the_rest():
    norms = {}
    for name, options in {
        "neither": {"weight_decay": 0.0, "embedding_weight_decay": 0.0},
        "tables": {"weight_decay": 0.0, "embedding_weight_decay": 1.0},
        "rest": {"weight_decay": 1.0, "embedding_weight_decay": 0.0},
    }.items():
        model = small()
        for table in model.tables:
            nn.init.normal_(table.weight)
        train(model, TRAIN, VALID, epochs=3, batch_size=64, lr=0.01, **options)
        weights = [m.weight.detach() for m in (model.tables[0], model.top[0])]
        norms[name] = [float(weight.norm()) for weight in weights]
    small_tables = [now / before for now, before in zip(norms["tables"], norms["neither"], strict=True)]
    small_rest = [now / before for now, before in zip(norms["rest"], norms["neither"], strict=True)]
    assert small_tables[0] < 0.7 < small_tables[1]
    assert small_rest[1] < 0.7 < small_rest[0]


def test_progress_is_reported():
    calls = []
    history = train(small(), TRAIN, VALID, epochs=2, on_epoch=lambda *args: calls.append(args))
    assert calls == [(e.number, 2, f"validation AUC {e.auc:.4f}") for e in history.epochs]


@pytest.mark.parametrize("name", ["epochs", "batch_size", "patience"])
def test_options_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        train(small(), TRAIN, VALID, **{"epochs": 1, name: 0})


def test_rows_that_do_not_do():
    nothing = Rows(TRAIN.dense[:0], TRAIN.sparse[:0], TRAIN.label[:0])
    with pytest.raises(ValueError, match="train has no rows"):
        train(small(), nothing, VALID)
    with pytest.raises(DataError, match="both labels"):
        train(small(), TRAIN, Rows(VALID.dense, VALID.sparse, torch.ones(500)), epochs=1)


def test_without_torchmetrics(monkeypatch):
    monkeypatch.delitem(sys.modules, "recpress.zoo.quality")
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    with pytest.raises(MissingDependencyError, match="recpress\\[demo\\]"):
        train(small(), TRAIN, VALID)


def test_one_pass_over_movielens():
    try:
        data = movielens.load()
    except DataError as error:
        pytest.skip(f"no source of MovieLens-100K can be reached: {error}")
    torch.manual_seed(0)
    model = DLRM(num_dense=len(data.dense_names), table_rows=data.table_rows)
    tables = copy.deepcopy(model.tables)
    train(model, data.train, data.valid, epochs=1, batch_size=2048, lr=0.004)
    assert quality(model, data.test)["auc"] > 0.76
    assert all(not torch.equal(a.weight, b.weight) for a, b in zip(model.tables, tables, strict=True))
