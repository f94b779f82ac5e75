import pytest
import torch

from recpress.artifact.manifest import read_manifest
from recpress.serving.rows import RowChecker, join, split


@pytest.fixture
def checker(artifact):
    return RowChecker(read_manifest(artifact))


def good(rows=3):
    return torch.zeros(rows, 5), torch.zeros(rows, 4, dtype=torch.int64)


def test_the_ends_of_every_range_pass(checker):
    dense, sparse = good()
    sparse[1] = torch.tensor([39, 6, 299, 299])
    assert checker.clean((dense, sparse)) and checker.complaint((dense, sparse)) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_floats_must_be_finite(checker, bad):
    dense, sparse = good()
    dense[2, 4] = bad
    assert not checker.clean((dense, sparse))
    assert checker.complaint((dense, sparse)) == f"input 'dense', row 2, column 4 is {bad}; it must be finite"


@pytest.mark.parametrize("column, high", [(0, 39), (1, 6), (3, 299)])
@pytest.mark.parametrize("value", [-1, None, 2**62, -(2**63)])
def test_indices_must_lie_in_their_table(checker, column, high, value):
    dense, sparse = good()
    sparse[1, column] = high + 1 if value is None else value
    assert not checker.clean((dense, sparse))
    assert checker.complaint((dense, sparse)) == (
        f"input 'sparse', row 1, column {column} is {sparse[1, column]}; allowed are 0 to {high}"
    )


def test_join_and_split_are_inverse():
    requests = [(torch.randn(n, 3), torch.randn(n)) for n in (1, 4, 2)]
    parts = split(join(requests), [1, 4, 2])
    for part, request in zip(parts, requests, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part, request, strict=True))
    assert join(requests[:1]) is requests[0]
