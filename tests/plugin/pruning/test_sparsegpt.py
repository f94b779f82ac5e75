"""SparseGPT against a slow oracle, which inverts what is left of the Hessian anew for each input."""

import pytest
import torch

from recpress.errors import PruningError
from recpress.pruning import patterns, sparsegpt
from recpress.pruning.sparsegpt import DAMPING


def correlated(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 2, columns, generator=generator)
    noise = torch.randn(rows, columns, generator=generator)
    return torch.randn(rows, columns // 2, generator=generator) @ mixing + 0.3 * noise


def oracle(weight: torch.Tensor, x: torch.Tensor, n: int, m: int) -> torch.Tensor:
    h = 2 * x.double().T @ x.double()
    h += DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    w = weight.double().clone()
    columns = w.shape[1]
    for first in range(0, columns, m):
        last = min(first + m, columns)
        inverses = {j: torch.linalg.inv(h[j:, j:]) for j in range(first, last)}
        goes = {}
        for row in range(len(w)):
            cost = sorted(range(first, last), key=lambda j: float(w[row, j] ** 2 / inverses[j][0, 0]))
            goes[row] = cost[: max(last - first - n, 0)]
        for j in range(first, last):
            for row in range(len(w)):
                if j in goes[row]:
                    w[row, j:] -= w[row, j].clone() / inverses[j][0, 0] * inverses[j][0]
                    w[row, j] = 0
    return w


@pytest.mark.parametrize(("columns", "n_m"), [(12, (2, 4)), (13, (2, 4)), (15, (1, 4)), (8, (4, 8))])
def test_it_is_the_oracle(columns, n_m):
    torch.manual_seed(0)
    weight, x = torch.randn(5, columns), correlated(200, columns)
    got, keep = sparsegpt.sparsegpt(weight, x, n_m=n_m)
    torch.testing.assert_close(got.double(), oracle(weight, x, *n_m), rtol=1e-4, atol=1e-5)
    assert torch.equal(got != 0, keep)
    whole = columns // n_m[1] * n_m[1]
    assert (keep[:, :whole].reshape(5, -1, n_m[1]).sum(dim=2) == n_m[0]).all()
    assert (keep[:, whole:].sum(dim=1) == min(columns - whole, n_m[0])).all()


@pytest.mark.parametrize("given", [{"n_m": (2, 4)}, {"sparsity": 0.5}], ids=str)
def test_on_correlated_inputs_it_errs_far_less_than_magnitude(given):
    torch.manual_seed(0)
    weight, x = torch.randn(64, 192), correlated(1000, 192)
    got, keep = sparsegpt.sparsegpt(weight, x, **given)
    assert int(keep.sum()) == keep.numel() // 2
    plain = weight * (
        patterns.keep_n_m(weight.abs(), weight.abs(), 2, 4)
        if "n_m" in given
        else patterns.keep_share({"": weight.abs()}, {"": weight.abs()}, 0.5, "layer")[""]
    )
    error = [float((x @ (w - weight).T).square().mean()) for w in (got, plain, weight * keep)]
    assert error[0] < 0.5 * error[1], "than magnitude"
    assert error[0] < 0.5 * error[2], "than its own mask without the update"


def test_inputs_that_say_nothing_are_refused_and_dead_ones_are_not():
    weight = torch.randn(4, 8)
    with pytest.raises(PruningError, match="all calibration inputs of the layer are zero"):
        sparsegpt.sparsegpt(weight, torch.zeros(9, 8), n_m=(2, 4))
    x = correlated(50, 8)
    x[:, 3] = 0
    got, _ = sparsegpt.sparsegpt(weight, x, n_m=(2, 4))
    assert got.isfinite().all()
