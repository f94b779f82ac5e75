import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from recpress.data.movielens import Rows
from recpress.errors import DataError
from recpress.zoo.quality import quality


def rows_of(logits, label):
    """Rows whose only dense column is the logit that :func:`echo` gives back."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return Rows(logits[:, None], torch.zeros(len(logits), 1, dtype=torch.int64), torch.as_tensor(label).float())


def echo(dense, sparse):
    return dense[:, 0]


def drawn(n, seed=0, *, scale=2.0, steps=None):
    generator = np.random.default_rng(seed)
    label = (generator.random(n) < 0.4).astype(np.float32)
    logits = (generator.normal(size=n) + label) * scale
    return (np.round(logits * steps) / steps if steps else logits).astype(np.float32), label


@pytest.mark.parametrize(
    "made",
    [
        drawn(5000),
        drawn(5000, 1, steps=2),
        drawn(5000, 2, scale=20.0),
        drawn(5000, 3, scale=0.01),
        (np.zeros(10, np.float32), np.arange(10) % 2),
        (np.array([1.0, -1.0], np.float32), np.array([1, 0])),
        (np.array([1.0, -1.0], np.float32), np.array([0, 1])),
        (np.array([0.0, -0.0, 1.0], np.float32), np.array([0, 1, 1])),
    ],
    ids=["plain", "ties", "beyond the sigmoid", "close", "all tied", "perfect", "worst", "two zeros"],
)
def test_scikit_learn_agrees(made):
    logits, label = made
    found = quality(echo, rows_of(logits, label))
    assert found["auc"] == pytest.approx(roc_auc_score(label, logits), abs=1e-6)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    truth = log_loss(label, np.column_stack([1 - p, p])) if np.abs(logits).max() < 30 else None
    if truth is not None:
        assert found["logloss"] == pytest.approx(truth, rel=1e-12)
    assert list(found) == ["auc", "logloss"] and all(type(value) is float for value in found.values())


def test_large_logits_stay_apart():
    """A float32 sigmoid gives 1 for both 20 and 30, and would give an AUC of 0.5."""
    found = quality(echo, rows_of([20.0, 30.0], [0, 1]))
    assert found["auc"] == 1.0
    assert found["logloss"] == pytest.approx(10.0, abs=1e-8)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 4096])
def test_batches_do_not_matter(batch_size):
    rows, sizes = rows_of(*drawn(100)), []

    def watched(dense, sparse):
        assert len(dense) == len(sparse)
        sizes.append(len(dense))
        return dense[:, 0]

    assert quality(watched, rows, batch_size=batch_size) == quality(echo, rows)
    assert sum(sizes) == 100 and max(sizes) == min(batch_size, 100)


class Noisy(nn.Module):
    """The logits of :func:`echo`, spoilt by dropout in training."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.9)

    def forward(self, dense, sparse):
        return self.dropout(dense[:, 0]) * self.scale


@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_called_in_eval_mode(training):
    model = Noisy().train(training)
    model.dropout.train()
    rows = rows_of(*drawn(100))
    assert quality(model, rows) == quality(echo, rows)
    assert model.training is training and model.dropout.training, "each module is put back in its own mode"


def test_an_exported_module():
    rows, batch = rows_of(*drawn(100)), torch.export.Dim("batch")
    shapes = {"dense": {0: batch}, "sparse": {0: batch}}
    program = torch.export.export(Noisy().eval(), (rows.dense[:8], rows.sparse[:8]), dynamic_shapes=shapes)
    assert quality(program.module(), rows, batch_size=30) == quality(echo, rows)


@pytest.mark.parametrize(
    ("model", "label", "message"),
    [
        (echo, [1, 1, 1], "both labels"),
        (echo, [0, 0, 0], "both labels"),
        (lambda dense, sparse: dense[:, 0] / 0, [0, 1, 1], "not finite"),
        (lambda dense, sparse: dense, [0, 1, 1], r"gave \(3, 1\) for 3 rows"),
        (lambda dense, sparse: dense[1:, 0], [0, 1, 1], r"gave \(2,\) for 3 rows"),
    ],
)
def test_what_has_no_quality(model, label, message):
    with pytest.raises(DataError, match=message):
        quality(model, rows_of([1.0, -2.0, 3.0], label))


def test_no_rows():
    with pytest.raises(DataError, match="both labels"):
        quality(echo, rows_of([], []))
