"""Batches with ids of other rows: what changes, what does not, and what cannot be recombined."""

import pytest
import torch

import recpress
from recpress.errors import TrainingError

ROWS = 40
DENSE = torch.arange(ROWS, dtype=torch.float32)[:, None]
IDS = torch.arange(ROWS)[:, None] + torch.tensor([0, 100, 200])
LABEL = torch.arange(ROWS) % 2


def test_ids_come_from_the_same_column_of_other_rows_and_all_else_stays():
    torch.manual_seed(0)
    drawn = [next(iter(recpress.Recombined([((DENSE, IDS), LABEL)], share=0.75))) for _ in range(20)]
    moved = torch.stack([(ids != IDS) for (_, ids), _ in drawn])
    assert not moved[:, 30:].any() and moved[:, :30].any(0).all(), "the last quarter stays; of the others each moves"
    assert all(torch.equal(dense, DENSE) and torch.equal(label, LABEL) for (dense, _), label in drawn)
    for (_, ids), _ in drawn:
        assert all(set(ids[:, c].tolist()) <= set(IDS[:, c].tolist()) for c in range(3))
        assert all(len(ids[:30, c].unique()) == 30 for c in range(3)), "drawn without replacement"
    taken = moved.any(1)
    assert 0.25 < taken.float().mean() < 0.75, "a column is taken or left"
    assert torch.equal(IDS[:, 0], torch.arange(ROWS)), "the batch that was given is as it was"


@pytest.mark.parametrize(
    "batch",
    [(IDS[:, 0], LABEL), ({"user": IDS[:, 0], "age": DENSE}, LABEL), {"user": IDS, "label": LABEL}],
    ids=["a tensor", "a mapping", "a mapping with its labels"],
)
def test_batches_of_every_form(batch):
    torch.manual_seed(3)
    mixed = recpress.Recombined([batch, batch, batch, batch, batch, batch])
    assert len(mixed) == 6
    given = batch[0] if isinstance(batch, tuple) else {"user": batch["user"]}
    seen = [inputs for inputs, _ in mixed]
    first = given["user"] if isinstance(given, dict) else given
    found = [inputs["user"] if isinstance(given, dict) else inputs for inputs in seen]
    assert all(ids.shape == first.shape and ids.dtype == first.dtype for ids in found)
    assert any(not torch.equal(ids, first) for ids in found)


def test_what_cannot_be_recombined_is_refused():
    with pytest.raises(TrainingError, match="share is 0; give the share"):
        recpress.Recombined([], share=0)
    with pytest.raises(TrainingError, match="no ids to recombine"):
        list(recpress.Recombined([(DENSE, LABEL)]))
