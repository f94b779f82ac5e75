"""embedding_bag_rows' GPU kernels under triton's interpreter, on awkward tables and bags: the reference's bits."""

import contextlib
import mmap
from dataclasses import replace

import pytest
import torch
from support.rows_oracle import EQUAL, MIXED, ONE_TABLE, UNEQUAL, Bags, bags, expected, mapped_bags, padded, same, table

import recpress_kernels as rk
from recpress_kernels.embedding_bag_rows import cuda, kernel
from recpress_kernels.embedding_bag_rows.launch import Config
from recpress_kernels.errors import IndexBoundsError, KernelInputError

POOLINGS = (("sum", False), ("mean", False), ("sum", True))


def run(b: Bags, pooling: str = "sum", weights=None, config: Config | None = None) -> torch.Tensor:
    described = cuda.describe(b.tables, b.dims, range(len(b.tables)))
    return cuda.embedding_bag_rows(described, b.indices, b.offsets, pooling, weights, config=config)


@pytest.mark.parametrize("shape", ONE_TABLE, ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_one_table_to_the_bit(shape, dtype):
    b = bags([shape], 4, 6, dtype)
    for pooling, weighted in POOLINGS:
        weights = b.weights if weighted else None
        same(run(b, pooling, weights), expected(b, pooling, weights))
    same(run(b, "none"), expected(b, "none"))


@pytest.mark.parametrize("shapes", [EQUAL, UNEQUAL, MIXED], ids=["equal", "unequal", "mixed"])
def test_tables_of_one_launch_to_the_bit(shapes):
    same(run(b := bags(shapes, 1, 5)), expected(b))
    b = bags(shapes, 5, 5)
    for pooling, weighted in POOLINGS:
        weights = b.weights if weighted else None
        same(run(b, pooling, weights), expected(b, pooling, weights))


@pytest.mark.parametrize("config", [Config(1, 16, 1), Config(8, 32, 3), Config(2, 256, 4)], ids=str)
def test_any_block(config):
    b = bags(MIXED, 3, 7)
    same(run(b, config=config), expected(b))


@pytest.mark.parametrize("bits", [8, 4])
def test_padded_rows_are_read_16_bytes_at_a_time(bits):
    b = bags([(9, 64, bits), (30, 24, bits)], 5, 4)
    wide = replace(b, tables=[padded(t) for t in b.tables])
    assert cuda.describe(b.tables, b.dims, (0, 1)).kind.align == 4
    assert cuda.describe(wide.tables, b.dims, (0, 1)).kind.align == 16
    same(run(wide), expected(b))


def test_no_bags_empty_bags_and_a_table_of_no_rows():
    b = bags(EQUAL, 3, 4)
    none = b.indices[:0]
    empty = replace(b, indices=none, offsets=torch.zeros(10, dtype=torch.int64), tables=[t[:0] for t in b.tables])
    same(run(empty), torch.zeros(3, 192))
    same(run(empty, "mean"), torch.zeros(3, 192))
    assert run(replace(b, indices=none, offsets=torch.zeros(1, dtype=torch.int64))).shape == (0, 192)
    alone = Bags(b.tables[:1], none, torch.zeros(4, dtype=torch.int64), b.weights, [64])
    assert run(alone, "none").shape == (0, 64)


def test_negative_zeros_become_positive():
    rows = torch.zeros(2, 12, dtype=torch.uint8)
    rows[:, 11] = 0x80  # the bias is -0
    b = Bags([rows], torch.tensor([0, 1, 1]), torch.tensor([0, 1, 3]), torch.tensor([-1.0, -0.0, 1.0]), [8])
    for weights in (None, b.weights):
        same(run(b, "sum", weights), expected(b, "sum", weights))
    same(run(b, "none"), expected(b, "none"))


@pytest.mark.parametrize("value", [-1, 4, 2**31, 2**32 + 1, -(2**62)])
def test_an_index_outside_its_table_is_named_and_read_nowhere(monkeypatch, value):
    b = bags(EQUAL, 4, 3)
    at = int(b.offsets[4])
    b.indices[at] = value
    with pytest.raises(
        IndexBoundsError, match=f"index {value} at position {at} is outside table 1; allowed are 0 to 3"
    ):
        run(b)
    b.indices[at] = 0
    want = expected(b)
    b.indices[at] = value
    described = cuda.describe(b.tables, b.dims, range(3))
    monkeypatch.setattr(cuda, "_capturing", lambda on: True)  # nothing can wait, nothing is raised
    with pytest.raises(KernelInputError, match="make RowTables"):
        cuda.describe(b.tables, b.dims, range(3))
    given = cuda.embedding_bag_rows(described, b.indices, b.offsets, "sum")
    bag = int((b.offsets[4:9] > at).nonzero()[0]) - 1
    assert given[bag, 64:128].isnan().all()
    given[bag, 64:128] = want[bag, 64:128]
    same(given, want)


@pytest.mark.parametrize("offsets", [[1, 2, 3], [0, 1, 2], [0, 4, 3], [-1, 2, 3], [0, 2**40, 3]])
@pytest.mark.parametrize("pooling", ["sum", "none"])
def test_offsets_that_describe_no_bags(pooling, offsets):
    b = Bags([table(5, 8, 8)], torch.tensor([0, 1, 2]), torch.tensor(offsets), None, [8])
    with pytest.raises(IndexBoundsError, match="offsets"):
        run(b, pooling)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_that_no_index_is_to_blame_for_is_no_error():
    b = bags(EQUAL, 3, 4)
    weights = torch.full_like(b.weights, float("inf"))
    same(run(b, "sum", weights), expected(b, "sum", weights))


@pytest.mark.parametrize("shapes", [EQUAL, UNEQUAL, MIXED], ids=["equal", "unequal", "mixed"])
def test_single_look_ups_behind_a_front_to_the_bit(shapes):
    b = bags(shapes, 1, 1)
    columns = list(range(len(shapes)))[::-1]
    described = cuda.describe(b.tables, b.dims, columns)
    for batch, width in ((1, 0), (0, 3), (3, 64), (5, 301)):
        ids = torch.stack([torch.randint(0, len(b.tables[c]), (batch,)) for c in columns], dim=1)
        front = torch.randn(width, batch).t() if width else None
        parts = [table_rows(t, dim, ids[:, c]) for t, dim, c in zip(b.tables, b.dims, columns, strict=True)]
        want = torch.cat([*([] if front is None else [front]), *parts], dim=1)
        turned = ids.int().t().contiguous().t()
        same(cuda.look_up_rows(described, turned if batch == 5 else ids, front, never), want)
    same(cuda.look_up_rows(described, ids, front, never, config=Config(8, 64, 1)), want)


def table_rows(rows: torch.Tensor, dim: int, at: torch.Tensor) -> torch.Tensor:
    return expected(Bags([rows], at, torch.arange(len(at) + 1), None, [dim]))


def never() -> None:
    raise AssertionError("nothing was wrong")


def test_a_look_up_outside_its_table_is_asked_about():
    described = cuda.describe([table(5, 8, 8), table(3, 8, 8)], [8, 8], [0, 1])
    with pytest.raises(AssertionError, match="nothing was wrong"):
        cuda.look_up_rows(described, torch.tensor([[4, 2], [2, 3]]), None, never)


@pytest.mark.parametrize("batch", [1, 5])
def test_ids_are_mapped_on_the_way(batch):
    b, maps, ids = mapped_bags(batch)
    described = cuda.describe(b.tables, b.dims, range(4), maps)
    assert described.kind.mapped
    for pooling, weights in (("mean", None), ("sum", b.weights)):
        given = cuda.embedding_bag_rows(described, ids, b.offsets, pooling, weights)
        same(given, expected(b, pooling, weights))


def test_an_id_without_a_policy_outside_its_table_is_named():
    b, maps, ids = mapped_bags(5)
    at = int(b.offsets[15])
    ids[at] = 12
    with pytest.raises(IndexBoundsError, match=f"index 12 at position {at} is outside table 3; allowed are 0 to 11"):
        cuda.embedding_bag_rows(cuda.describe(b.tables, b.dims, range(4), maps), ids, b.offsets, "sum")


def test_row_tables_are_described_once_and_lead_to_the_kernels(monkeypatch):
    """All of the way but the device: RowTables as they would be on a GPU."""
    b = bags(MIXED, 3, 4)
    maps = [None, rk.IdMap(9, 3), None, rk.IdMap(3, -1, torch.tensor([4, 0, 2], dtype=torch.int32))]
    tables = rk.RowTables(b.tables, None, b.dims, maps)
    tables.on_gpu, tables.address = cuda.describe(b.tables, b.dims, tables.columns, tables.maps), None
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    launches = []
    for name in ("bags_kernel", "rows_kernel"):
        function = getattr(kernel, name)
        stand_in = Counted(function, launches, name)
        monkeypatch.setattr(kernel, name, stand_in)
    b.indices[b.offsets[9] :] = 2  # which is row 2
    same(rk.embedding_bag_rows(tables, b.indices, b.offsets), expected(b))
    ids, front = torch.tensor([[0, 1, 0, 0], [29, -9, 0, 1]]), torch.randn(2, 3)
    rows = torch.tensor([0, 29, 1, 3, 0, 0, 4, 0])
    looked = Bags(b.tables, rows, torch.arange(9), None, b.dims)
    same(rk.look_up_rows(tables, ids, front), torch.cat([front, expected(looked)], dim=1))
    assert launches == ["bags_kernel", "rows_kernel"]
    ids[1, 2] = 1
    with pytest.raises(IndexBoundsError, match="look_up_rows: index 1 at row 1, column 2 is outside table 2"):
        rk.look_up_rows(tables, ids)


class Counted:
    """A kernel that writes down its launches."""

    def __init__(self, function, launches: list[str], name: str) -> None:
        self.function, self.launches, self.name = function, launches, name

    def __getitem__(self, grid):
        self.launches.append(self.name)
        return self.function[grid]


def test_rows_beyond_two_gibibytes():
    """Memory that is mapped and never touched but for its last rows."""
    rows = torch.frombuffer(mmap.mmap(-1, 36 << 26), dtype=torch.uint8).view(-1, 36)
    rows[-3:] = table(3, 32, 8)
    assert len(rows) * 36 > 2**31
    b = Bags([rows], torch.tensor([len(rows) - 1, len(rows) - 3, 0]), torch.tensor([0, 2, 3]), None, [32])
    same(run(b), expected(b))
