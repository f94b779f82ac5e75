"""map_ids, and tables that are looked up through it: every path gives the bits of the reference."""

import copy

import pytest
import torch
from int8_cases import PATHS, guarded, path

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.formats.rows import quantize_rows_int4, quantize_rows_int8
from recpress_kernels.map_ids import reference
from recpress_kernels.map_ids.op import supports

INT32, INT64 = (torch.iinfo(t) for t in (torch.int32, torch.int64))
OUTSIDE = (-1, 5, INT32.min, INT32.max, -(2**31) - 1, 2**31, 2**32, 2**32 + 3, -(2**62), INT64.min, INT64.max)


@pytest.mark.parametrize("name", PATHS)
def test_by_hand(name):
    ids, remap = torch.tensor([[0, 4], [5, -1], [2, 2**62]]), torch.tensor([3, 1, 4, 1, 5], dtype=torch.int32)
    with path(name):
        assert rk.map_ids(ids, 5, 2).tolist() == [[0, 4], [2, 2], [2, 2]]
        assert rk.map_ids(ids, 5, 2, remap).tolist() == [[3, 5], [4, 4], [4, 4]]
        assert rk.map_ids(ids[:1], 5, -1, remap).tolist() == [[3, 5]]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("remapped", [False, True])
def test_every_path_has_the_numbers_of_the_reference(name, dtype, remapped):
    g = torch.Generator().manual_seed(1)
    remap = torch.randint(0, 1000, (1000,), generator=g, dtype=torch.int32) if remapped else None
    wide = torch.randint(-2000, 3000, (7, 3, 41), generator=g).to(dtype)
    for ids in (wide, wide[:0], wide[0, 0], wide.transpose(0, 2), wide[..., 5], wide[0, 0, 0], guarded(wide)):
        want = reference.map_ids(ids, 1000, 17, remap)
        with path(name):
            got = rk.map_ids(ids, 1000, 17, remap)
            assert torch.equal(got, want) and got.dtype == dtype and got.is_contiguous()
            assert torch.equal(torch.ops.recpress.map_ids(ids, 1000, 17, remap), want)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("value", OUTSIDE)
def test_what_is_outside_is_found_on_the_whole_value(name, value):
    for dtype in (torch.int32, torch.int64):
        if not torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max:
            continue
        ids = torch.tensor([[1, 2], [4, value]], dtype=dtype)
        with path(name):
            assert rk.map_ids(ids, 5, 3).tolist() == [[1, 2], [4, 3]]
            with pytest.raises(rk.IndexBoundsError, match=rf"id {value} at \[1, 1\] is outside.*allowed are 0 to 4"):
                rk.map_ids(ids, 5)


@pytest.mark.parametrize("name", PATHS)
def test_a_table_of_no_rows_takes_no_id(name):
    none = torch.zeros(0, dtype=torch.int64)
    with path(name):
        assert rk.map_ids(none, 0).shape == (0,)
        assert rk.map_ids(none, 0, -1, none.int()).shape == (0,)
        with pytest.raises(rk.IndexBoundsError, match="id 0 at .0. is outside the table; the table has no rows"):
            rk.map_ids(torch.tensor([0]), 0)


@pytest.mark.parametrize(
    "given, message",
    [
        ((torch.zeros(2), 5), "ids is torch.float32; give int32 or int64"),
        ((torch.tensor([True]), 5), "ids is torch.bool"),
        ((torch.tensor([1]), -1), "rows is -1"),
        ((torch.tensor([1]), 5, 5), "oov_row is 5; allowed are -1, .* and 0 to 4"),
        ((torch.tensor([1]), 5, -2), "oov_row is -2"),
        ((torch.tensor([1]), 5, 0, torch.zeros(5)), r"remap is torch.float32 of shape \(5,\); give int32 \[5\]"),
        ((torch.tensor([1]), 5, 0, torch.zeros(4, dtype=torch.int32)), r"of shape \(4,\); give int32 \[5\]"),
        ((torch.tensor([1], dtype=torch.int32), 2**33, 2**32), "oov_row is 4294967296, which ids of torch.int32"),
    ],
)
def test_refuses(given, message):
    assert not supports(*given)
    with pytest.raises(rk.KernelInputError, match=message):
        rk.map_ids(*given)


def test_more_rows_than_the_dtype_of_the_ids_can_name():
    ids = torch.tensor([INT32.max, -1, 0], dtype=torch.int32)
    assert rk.map_ids(ids, 2**40, 7).tolist() == [INT32.max, 7, 0]


def test_is_a_proper_op():
    op, remap = torch.ops.recpress.map_ids.default, torch.arange(5, dtype=torch.int32).flip(0)
    torch.library.opcheck(op, (torch.tensor([[0, 9], [4, 1]]).t(), 5, 2))
    torch.library.opcheck(op, (torch.tensor([0, 4], dtype=torch.int32), 5, -1, remap))
    assert supports(torch.tensor([1]), 5).reason == native.status().reason


def mapped():
    """Tables of int8 and int4 rows, the maps of their ids, and the same ids as rows."""
    g = torch.Generator().manual_seed(3)
    floats = [torch.randn(n, d, generator=g) for n, d in ((30, 7), (5, 64), (9, 33), (12, 8))]
    dims = [t.shape[1] for t in floats]
    tables = [(quantize_rows_int4 if t % 2 else quantize_rows_int8)(table) for t, table in enumerate(floats)]
    remap = torch.randint(0, 9, (200,), generator=g, dtype=torch.int32)
    maps = [rk.IdMap(30, 4), None, rk.IdMap(200, 199, remap), rk.IdMap(12, -1, torch.arange(12).flip(0).int())]
    return tables, dims, maps


def ids_of(batch, dtype):
    g = torch.Generator().manual_seed(batch)
    columns = [(-50, 60), (0, 5), (-500, 500), (0, 12)]
    ids = torch.stack([torch.randint(a, b, (batch,), generator=g) for a, b in columns], dim=1).to(dtype)
    if batch > 2:
        ids[1, 0], ids[2, 2] = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    return ids


def rows_of(maps, ids):
    parts = [ids[:, t] if m is None else reference.map_ids(ids[:, t], m.rows, m.oov_row, m.remap) for t, m in maps]
    return torch.stack(parts, dim=1)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("batch", [0, 1, 33, 600])
def test_look_ups_through_maps_are_those_of_the_rows(name, dtype, batch):
    tables, dims, maps = mapped()
    order = [2, 0, 3, 1, 0]  # table 0 twice, by one column, through a map and through another
    tables, dims, maps = ([given[t] for t in order] for given in (tables, dims, maps))
    maps[4] = rk.IdMap(30, 29)
    ids, front = ids_of(batch, dtype), torch.randn(batch, 3)
    with path(name):
        parts = [
            rk.look_up_rows(rk.RowTables([t], [0], [d]), rows_of([(c, m)], ids))
            for t, d, c, m in zip(tables, dims, order, maps, strict=True)
        ]
        looked = rk.RowTables(tables, order, dims, maps)
        for given in (ids, ids.t().contiguous().t(), torch.cat([ids, ids], dim=1)):
            assert torch.equal(rk.look_up_rows(looked, given, front), torch.cat([front, *parts], dim=1))
        assert torch.equal(rk.look_up_rows(copy.deepcopy(looked), ids), torch.cat(parts, dim=1))
    assert given is not ids and torch.equal(given[:, :4], ids), "the ids are left as they are"


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bags_through_maps_are_those_of_the_rows(name, dtype):
    tables, dims, maps = mapped()
    ids = ids_of(40, dtype)
    rows = rows_of(list(enumerate(maps)), ids)
    offsets = torch.cat([torch.arange(0, 160, 2), torch.tensor([160])])  # bags of two
    offsets[3:5] = 6  # an empty one, one of four
    offsets = offsets.to(dtype)
    flat, mapped_flat, weights = ids.t().reshape(-1), rows.t().reshape(-1), torch.randn(160)
    given, plain = rk.RowTables(tables, None, dims, maps), rk.RowTables(tables, None, dims)
    with path(name):
        for rest in (("sum", None), ("mean", None), ("sum", weights)):
            want = rk.embedding_bag_rows(plain, mapped_flat, offsets, *rest)
            assert torch.equal(rk.embedding_bag_rows(given, flat, offsets, *rest), want)
        one, none = torch.arange(41, dtype=dtype), torch.zeros(1, dtype=dtype)
        alone = rk.RowTables(tables[:1], None, dims[:1], maps[:1])
        got = rk.embedding_bag_rows(alone, flat[:40], one, "none")
        assert torch.equal(got, rk.embedding_bag_rows(alone, flat[:40], one))
        assert rk.embedding_bag_rows(given, flat[:0], none).shape == (0, sum(dims))


@pytest.mark.parametrize("name", PATHS)
def test_an_id_outside_a_table_without_a_policy_is_named(name):
    tables, dims, maps = mapped()
    looked, ids = rk.RowTables(tables, None, dims, maps), ids_of(6, torch.int64)
    offsets = torch.arange(25)
    for column, value, last in ((1, 5, 4), (3, -1, 11), (3, 2**40, 11)):
        bad = ids.clone()
        bad[4, column] = value
        with path(name):
            with pytest.raises(rk.IndexBoundsError, match=f"index {value} at row 4, column {column} is .*0 to {last}$"):
                rk.look_up_rows(looked, bad)
            at = 6 * column + 4
            with pytest.raises(rk.IndexBoundsError, match=f"index {value} at position {at} is .*0 to {last}$"):
                rk.embedding_bag_rows(looked, bad.t().reshape(-1), offsets)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("entry, value", [(0, 1), (24, 23), (24, 25), (6, 23), (6, -1), (12, 25), (18, 2**40)])
def test_offsets_of_mapped_bags_are_checked_first(name, entry, value):
    tables, dims, maps = mapped()
    offsets = torch.arange(25)
    offsets[entry] = value
    flat = ids_of(6, torch.int64).t().reshape(-1)
    with path(name), pytest.raises(rk.IndexBoundsError, match="offsets"):
        rk.embedding_bag_rows(rk.RowTables(tables, None, dims, maps), flat, offsets)


@pytest.mark.parametrize(
    "maps, message",
    [
        ([rk.IdMap(5)] * 2, "2 maps for 1 tables"),
        ([rk.IdMap(6)], "has ids up to 5, the table 5 rows"),
        ([rk.IdMap(5, 5)], "the map of table 0: oov_row is 5"),
        ([rk.IdMap(2, 0, torch.tensor([4, 5], dtype=torch.int32))], "takes id 1 to row 5; allowed are 0 to 4"),
        ([rk.IdMap(2, 0, torch.tensor([-1, 4], dtype=torch.int32))], "takes id 0 to row -1"),
    ],
)
def test_row_tables_refuse_maps_that_do_not_fit(maps, message):
    with pytest.raises(rk.KernelInputError, match=message):
        rk.RowTables([quantize_rows_int8(torch.randn(5, 4))], None, None, maps)


@pytest.mark.parametrize("name", native.isas())
def test_a_remap_that_is_changed_later_reads_nothing_outside(name):
    remap = torch.zeros(3, dtype=torch.int32)
    tables = rk.RowTables([quantize_rows_int8(torch.randn(5, 4))], None, None, [rk.IdMap(3, -1, remap)])
    remap[1] = 1 << 30
    with path(name), pytest.raises(rk.KernelInputError, match="index is outside its table"):
        rk.look_up_rows(tables, torch.tensor([1]))
