import pytest
import torch
from torch import nn

import recpress
from recpress.artifact import golden
from recpress.artifact.manifest import Golden, InputSpec

BOUNDS = Golden(rows=64, atol=0.1, outlier_atol=1.0, blind=())


def moved(count, by):
    scores = torch.zeros(64)
    scores[:count] = by
    return golden.judge((scores,), (torch.zeros(64),), BOUNDS)


@pytest.mark.parametrize(
    "count, by, ok",
    [(0, 0.0, True), (64, 0.0999, True), (8, 0.5, True), (9, 0.5, False), (1, 1.1, False), (64, 0.2, False)],
)
def test_a_few_rows_may_move_further_than_the_rest(count, by, ok):
    verdict = moved(count, by)
    assert verdict.ok is ok and verdict.worst == pytest.approx(by) and verdict.rows == 64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_right(bad):
    assert not moved(1, bad).ok
    same = torch.full((64,), bad)
    assert not golden.judge((same,), (same,), BOUNDS).ok


def test_another_form_is_never_right():
    zeros = torch.zeros(64)
    assert not golden.judge((zeros[:, None],), (zeros,), BOUNDS).ok
    assert not golden.judge((zeros.double(),), (zeros,), BOUNDS).ok


def test_every_output_counts():
    zeros = torch.zeros(64, 2)
    assert not golden.judge((zeros, zeros + 2), (zeros, zeros), BOUNDS).ok


def spec(dtype, low, high, table_high):
    return InputSpec(
        name="x",
        dtype=dtype,
        shape=(len(low),),
        low=low,
        high=high,
        table_low=tuple(None if t is None else 0 for t in table_high),
        table_high=table_high,
    )


def test_rows_fill_their_ranges_a_column_at_a_time():
    (rows,) = golden.draw_rows((spec("int64", (3, -2, 0), (5, 2, 0), (9, None, None)),), rows=2000)
    assert rows.dtype == torch.int64
    assert rows[0].tolist() == [0, -2, 0] and rows[1].tolist() == [9, 2, 0], "the first two rows are the ends"
    assert sorted(rows[:, 0].unique().tolist()) == list(range(10))
    assert sorted(rows[:, 1].unique().tolist()) == [-2, -1, 0, 1, 2]
    (floats,) = golden.draw_rows((spec("float32", (-1.0,), (3.0,), (None,)),), rows=2000)
    assert floats.min() >= -1 and floats.max() <= 3 and abs(float(floats.mean()) - 1) < 0.1


class Deep(nn.Module):
    """Activations at which last bits decide now and then: many layers behind a float operation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(128, 128), nn.ReLU())), nn.Linear(128, 1))

    def forward(self, x):
        return self.layers(torch.tanh(x) * 3).squeeze(1)


def test_tight_for_most_rows_and_wide_for_the_rare_step(tmp_path):
    torch.manual_seed(0)
    model = recpress.compress(Deep())
    manifest = recpress.export(model, tmp_path / "a", example_inputs=(torch.randn(50, 128),), input_names=("x",))
    bounds = manifest.golden
    assert bounds.atol <= bounds.outlier_atol < 0.05
    assert not bounds.blind, "a change of any layer's scales by 2^-10 is noticed"
