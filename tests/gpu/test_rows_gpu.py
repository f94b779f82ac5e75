"""embedding_bag_rows on a real GPU: the bits of the reference, one wait a call, and inside a CUDA graph."""

import warnings

import pytest
import torch
from support.rows_oracle import EQUAL, MIXED, ONE_TABLE, UNEQUAL, Bags, bags, expected, padded, same

import recpress_kernels as rk
from recpress_kernels.embedding_bag_rows.op import supports

SHAPES = {"equal": EQUAL, "unequal": UNEQUAL, "mixed": MIXED, **{str(shape): (shape,) for shape in ONE_TABLE}}


def on_gpu(b: Bags) -> Bags:
    return Bags([t.cuda() for t in b.tables], b.indices.cuda(), b.offsets.cuda(), b.weights.cuda(), b.dims)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_to_the_bit(shapes, dtype):
    for batch, longest in ((1, 1), (9, 20), (300, 7)):
        b = bags(shapes, batch, longest, dtype)
        moved = on_gpu(b)
        tables = rk.RowTables(moved.tables, None, b.dims)
        for pooling, weighted in (("sum", False), ("mean", False), ("sum", True)):
            weights, given = (moved.weights, b.weights) if weighted else (None, None)
            want = expected(b, pooling, given)
            operands = (moved.indices, moved.offsets, pooling, weights)
            same(rk.embedding_bag_rows(tables, *operands).cpu(), want)
            same(rk.embedding_bag_rows(moved.tables, *operands, b.dims).cpu(), want)
    if len(shapes) == 1:
        same(rk.embedding_bag_rows(tables, moved.indices, moved.offsets, "none").cpu(), expected(b, "none"))


def test_padded_rows_and_strided_tables():
    b = bags(EQUAL, 33, 5)
    moved = on_gpu(b)
    moved.tables[:] = [padded(t).cuda()[:, : t.shape[1]] for t in b.tables]
    same(rk.embedding_bag_rows(moved.tables, moved.indices, moved.offsets, "sum", None, b.dims).cpu(), expected(b))
    turned = [t.t().contiguous().t() for t in moved.tables]
    assert "torch look-ups, slower" in supports(turned, moved.indices, moved.offsets, "sum", None, b.dims).reason
    same(rk.embedding_bag_rows(turned, moved.indices, moved.offsets, "sum", None, b.dims).cpu(), expected(b))


@pytest.mark.parametrize("batch", [1, 9, 1000])
def test_look_ups_behind_a_front(batch):
    b = bags(MIXED, 1, 1)
    tables = rk.RowTables([t.cuda() for t in b.tables], [3, 0, 1, 2], b.dims)
    columns = [torch.randint(0, len(b.tables[t]), (batch,)) for t in (1, 2, 3, 0)]
    ids = torch.stack(columns, dim=1)
    host = rk.RowTables(b.tables, [3, 0, 1, 2], b.dims)
    for front in (None, torch.randn(batch, 64), torch.randn(batch, 5)):
        given = None if front is None else front.cuda()
        same(rk.look_up_rows(tables, ids.cuda(), given).cpu(), rk.look_up_rows(host, ids, front))


@pytest.mark.parametrize("value", [-1, 4, 2**40])
def test_an_index_outside_its_table_is_named_and_the_device_goes_on(value):
    b = bags(EQUAL, 9, 3)
    moved = on_gpu(b)
    tables = rk.RowTables(moved.tables)
    at = int(b.offsets[9])
    moved.indices[at] = value
    with pytest.raises(rk.IndexBoundsError, match=f"index {value} at position {at} is outside table 1"):
        rk.embedding_bag_rows(tables, moved.indices, moved.offsets)
    moved.indices[at] = int(b.indices[at])
    same(rk.embedding_bag_rows(tables, moved.indices, moved.offsets).cpu(), expected(b))


def test_inside_a_cuda_graph_and_its_index_outside_gives_nan():
    b = bags(EQUAL, 9, 3)
    moved = on_gpu(b)
    tables = rk.RowTables(moved.tables)
    rk.embedding_bag_rows(tables, moved.indices, moved.offsets)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = rk.embedding_bag_rows(tables, moved.indices, moved.offsets)
    graph.replay()
    same(out.cpu(), expected(b))
    at = int(b.offsets[9])
    bag = int((b.offsets[9:19] > at).nonzero()[0]) - 1
    moved.indices[at] = 10**6
    graph.replay()
    nan = out.isnan().nonzero()
    assert set(nan[:, 0].tolist()) == {bag} and nan[:, 1].tolist() == list(range(64, 128))


@pytest.mark.parametrize("form", [list, rk.RowTables])
def test_a_call_waits_once(form):
    b = bags(EQUAL, 9, 3)
    moved = on_gpu(b)
    tables = form(moved.tables)
    rk.embedding_bag_rows(tables, moved.indices, moved.offsets)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            rk.embedding_bag_rows(tables, moved.indices, moved.offsets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1
