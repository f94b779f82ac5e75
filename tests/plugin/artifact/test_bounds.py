import pytest
import torch
from torch import nn
from torch.export import Dim

import recpress_kernels  # noqa: F401
from recpress.artifact.bounds import table_bounds
from recpress.layers import MappedTable, compressed


def bounds(model, *examples):
    batch = Dim("batch", min=1)
    program = torch.export.export(model.eval(), examples, dynamic_shapes=({0: batch},) * len(examples))
    return [{c: (b.low, b.high, *["any"] * b.any_id) for c, b in t.items()} for t in table_bounds(program, examples)]


class Columns(nn.Module):
    """Columns picked, moved and reshaped on their way to tables."""

    def __init__(self, rows=(10, 20, 5), make=lambda e: e):
        super().__init__()
        self.tables = nn.ModuleList([make(nn.Embedding(n, 4)) for n in rows])

    def forward(self, ids):
        a = self.tables[0](ids[:, 2])
        b = self.tables[1](ids.t()[0].unsqueeze(1).flatten())
        c = self.tables[2](torch.cat([ids[:, 1:2], ids[:, 3:]], dim=1)).sum(1)
        return a + b + c


@pytest.mark.parametrize("make", [lambda e: e, lambda e: compressed(e, "int8")])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_columns_are_followed_to_their_tables(make, dtype):
    ids = torch.zeros(3, 4, dtype=dtype)
    assert bounds(Columns(make=make), ids) == [{2: (0, 9), 0: (0, 19), 1: (0, 4), 3: (0, 4)}]


class Offsets(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 4)
        self.register_buffer("offsets", torch.tensor([0, 10, 25]))

    def forward(self, ids):
        return self.table(ids + self.offsets).sum(1)


def test_one_table_for_all_fields_with_offsets():
    assert bounds(Offsets(), torch.zeros(3, 3, dtype=torch.int64)) == [{0: (0, 29), 1: (-10, 19), 2: (-25, 4)}]


class Hashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 4)

    def forward(self, dense, ids):
        return self.table(ids % 30).sum(1) + dense.sum(1, keepdim=True)


def test_arithmetic_leaves_a_column_unbounded_and_floats_are_none():
    assert bounds(Hashed(), torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)) == [{}, {}]


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Embedding(5, 4), nn.EmbeddingBag(50, 4, mode="sum")

    def forward(self, ids):
        return self.small(ids[:, 0]) + self.large(ids)


def test_a_column_of_two_tables_gets_what_both_allow():
    assert bounds(Shared(), torch.zeros(3, 2, dtype=torch.int64)) == [{0: (0, 4), 1: (0, 49)}]


def with_policy(oov_row, make=lambda e: e):
    def mapped(e):
        return MappedTable(make(e), e.num_embeddings, oov_row, torch.arange(e.num_embeddings).int())

    return mapped


@pytest.mark.parametrize("make", [lambda e: e, lambda e: compressed(e, "int4")])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_columns_of_tables_with_a_policy_take_any_id(make, dtype):
    ids = torch.zeros(3, 4, dtype=dtype)
    want = {2: (0, 9), 0: (0, 19), 1: (0, 4), 3: (0, 4)}
    assert bounds(Columns(make=with_policy(-1, make)), ids) == [want]
    assert bounds(Columns(make=with_policy(2, make)), ids) == [{c: (*ends, "any") for c, ends in want.items()}]


class Two(nn.Module):
    """A column of two tables."""

    def __init__(self, *policies):
        super().__init__()
        tables = (nn.Embedding(5, 4), nn.EmbeddingBag(50, 4, mode="sum"))
        self.small, self.large = (
            t if p is None else MappedTable(t, len(t.weight), p) for t, p in zip(tables, policies, strict=True)
        )

    def forward(self, ids):
        return self.large(ids) + self.small(ids[:, 0])


def test_a_column_takes_any_id_where_all_of_its_tables_do():
    ids = torch.zeros(3, 2, dtype=torch.int64)
    assert bounds(Two(0, 0), ids) == [{0: (0, 4, "any"), 1: (0, 49, "any")}]
    assert bounds(Two(None, 0), ids) == [{0: (0, 4), 1: (0, 49, "any")}]
    assert bounds(Two(0, None), ids) == [{0: (0, 49), 1: (0, 49)}]
    assert bounds(Two(-1, 0), ids) == [{0: (0, 4), 1: (0, 49, "any")}]


def test_offsets_before_a_policy_move_its_range():
    model = Offsets()
    model.table = MappedTable(model.table, 30, 0)
    want = {0: (0, 29, "any"), 1: (-10, 19, "any"), 2: (-25, 4, "any")}
    assert bounds(model, torch.zeros(3, 3, dtype=torch.int64)) == [want]
