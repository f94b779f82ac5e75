"""Pooled bags of a loaded graph in one call: the bits stay, and what is certain to be no such bag stays as it is."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from recpress import layers
from recpress.artifact.lower import lower
from recpress.errors import IndexBoundsError, KernelInputError
from recpress_kernels import RowTables, embedding_bag_rows, look_up_rows
from recpress_kernels.embedding_bag_rows import joined
from recpress_kernels.embedding_bag_rows.joined import pool_bags
from recpress_kernels.formats.rows import quantize_rows_int8

OP, MAP = torch.ops.recpress.embedding_bag_rows.default, torch.ops.recpress.map_ids.default
ROWS, DIMS = (40, 7, 30, 11), (8, 5, 8, 16)


class Net(nn.Module):
    """A graph around bags of int8 and int4 rows: ``form(bags, x, ids, w)``."""

    def __init__(self, form, *, mode="sum", dims=DIMS, dtype=torch.float32, last=False, mapped=False):
        super().__init__()
        torch.manual_seed(1)
        self.form = form
        schemes = ("int8", "int4", "int4", "int8")
        given = {"mode": mode, "include_last_offset": last}
        tables = [nn.EmbeddingBag(n, d, **given).to(dtype) for n, d in zip(ROWS, dims, strict=True)]
        self.bags = nn.ModuleList(layers.compressed(t, s) for t, s in zip(tables, schemes, strict=True))
        if mapped:
            remap = torch.randint(0, 30, (1000,), dtype=torch.int32)
            self.bags[0] = layers.MappedTable(self.bags[0], 40, 3)
            self.bags[2] = layers.MappedTable(self.bags[2], 1000, -1, remap)

    def forward(self, x, ids, w):
        return self.form(self.bags, x, ids, w)


def inputs(batch, dtype=torch.int64):
    """Dense numbers [B, 8], ids [B, 4, 3] of table t at [:, t], weights [B, 4, 3]."""
    g = torch.Generator().manual_seed(batch)
    ids = torch.stack([torch.randint(0, n, (batch, 3), generator=g) for n in ROWS], dim=1)
    return torch.randn(batch, 8, generator=g), ids.to(dtype), torch.randn(batch, 4, 3, generator=g)


def exported(net, dtype=torch.int64):
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(net.eval(), inputs(6, dtype), dynamic_shapes=({0: batch},) * 3)


def calls(module, target):
    return sum(node.target is target for node in module.graph.nodes)


def check(net, made, left=0, dtype=torch.int64, given=inputs):
    """``net`` lowered to ``made`` calls and ``left`` ops: the bits of the graph as it was, contiguous where it was."""
    program = exported(net, dtype)
    before, after = program.module(check_guards=False), program.module(check_guards=False)
    assert calls(before, OP) >= made
    lower(after)
    after.graph.lint()
    assert (calls(after, pool_bags), calls(after, OP)) == (made, left), after.code
    for batch in (1, 2, 64):
        operands = given(batch, dtype)
        want, got = (torch.utils._pytree.tree_leaves(module(*operands)) for module in (before, after))
        for a, b in zip(want, got, strict=True):
            assert torch.equal(a, b) and a.is_contiguous() == b.is_contiguous() and a.dtype == b.dtype
    return after


def square(bags, ids):
    """Rows of ids, of as many columns as the table has bits for: three, two, three and one."""
    return [bag(ids[:, t, : (3, 2, 3, 1)[t]]) for t, bag in enumerate(bags)]


JOINS = {
    "cat": lambda b, x, i, w: torch.cat(square(b, i), dim=1),
    "behind a tensor": lambda b, x, i, w: torch.cat([x, *square(b, i)], dim=1),
    "between tensors": lambda b, x, i, w: torch.cat([x, w[:, 0], *square(b, i), x], dim=1),
}


@pytest.mark.parametrize("form", JOINS.values(), ids=JOINS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_bags_that_are_joined_become_one_call(form, mode, dtype):
    after = check(Net(form, mode=mode), 1, dtype=dtype)
    gone = ("arange.default", "mul.Tensor", "split_with_sizes.default", "to.dtype")
    assert not [node for node in after.graph.nodes if str(node.target).removeprefix("aten.") in gone]
    assert calls(after, torch.ops.aten.cat.default) == (form is not JOINS["cat"])


def test_bags_that_are_stacked_become_one_call():
    after = check(Net(lambda b, x, i, w: torch.stack([x, *square(b, i)], dim=1), dims=(8,) * 4), 1)
    assert calls(after, torch.ops.aten.stack.default) == 0
    check(Net(lambda b, x, i, w: torch.stack(square(b, i), dim=2), dims=(8,) * 4), 1)


def test_weighted_bags_are_a_call_of_their_own():
    def form(bags, x, ids, w):
        return torch.cat([x, *(bag(ids[:, t], None, w[:, t]) for t, bag in enumerate(bags))], dim=1)

    def mixed(bags, x, ids, w):
        return torch.cat([bags[0](ids[:, 0], None, w[:, 0]), bags[1](ids[:, 1]), bags[2](ids[:, 2], None, w[:, 2])], 1)

    check(Net(form), 1)
    check(Net(mixed), 2)


SPLITS = {
    "given out": lambda b, x, i, w: square(b, i),
    "out of order": lambda b, x, i, w: torch.cat(square(b, i)[::-1], dim=1),
    "used twice": lambda b, x, i, w: (torch.cat(rows := square(b, i), dim=1), rows[1] * 2),
    "used before the next": lambda b, x, i, w: [rows.relu() for rows in map(lambda t: b[t](i[:, t]), range(4))],
    "ids made later": lambda b, x, i, w: (b[0](i[:, 0]) * 2, b[1]((i[:, 1] + 1) % 7)),
}


@pytest.mark.parametrize("form", SPLITS.values(), ids=SPLITS)
def test_other_bags_of_one_batch_become_one_call(form):
    check(Net(form), 1)


def test_bags_in_two_joins_and_of_two_poolings_are_two_calls():
    check(Net(lambda b, x, i, w: (torch.cat((r := square(b, i))[:2], 1), torch.cat(r[2:], 1))), 2)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.sum, self.mean = (Net(JOINS["cat"], mode=mode) for mode in ("sum", "mean"))

        def forward(self, x, ids, w):
            return self.sum(x, ids, w) + self.mean(x, ids, w)

    check(Two(), 2)


def test_bags_of_half_tables_are_cast_behind_the_call():
    check(Net(JOINS["cat"], dtype=torch.float16), 1)


def ragged(bags, x, ids, w):
    """Bags by offsets, two ids of each row in all: some empty, the last with what is left."""
    rows = torch.arange(ids.shape[0])
    offsets = [rows, rows * 2, rows // 2 * 2, rows // 3]
    return torch.cat([x, *(bag(ids[:, t, :2].reshape(-1), offsets[t]) for t, bag in enumerate(bags))], dim=1)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_bags_by_offsets_become_one_call(mode, dtype):
    check(Net(ragged, mode=mode), 1, dtype=dtype)


def with_last(bags, x, ids, w):
    """Offsets with the last, which table 0 takes from the first input."""
    last = 2 * ids.shape[0] * torch.ones(1, dtype=torch.int64)
    steps = 2 * torch.arange(ids.shape[0])
    ends = [torch.cat([steps, last - (x[:1, 0] > 100).long()]), *[torch.cat([steps, last])] * 3]
    given = zip(bags, ends, range(4), strict=True)
    return [bag(ids[:, t, :2].reshape(-1), o, w[:, t, :2].reshape(-1)) for bag, o, t in given]


def test_offsets_that_are_wrong_in_themselves_are_refused_though_joined_they_would_hold():
    """Table 0's last bag ends one index early: joined, its last index would fall to that bag unseen."""
    after = check(Net(with_last, last=True), 1)
    x, ids, w = inputs(5)
    x[0, 0] = 1000.0
    for module in (exported(Net(with_last, last=True)).module(check_guards=False), after):
        with pytest.raises(IndexBoundsError, match="offsets run from 0 to 9; .* number of indices, 10"):
            module(x, ids, w)


def test_bags_whose_operands_come_from_each_other_are_a_call_each():
    def weights_of(out, ids):
        return out[:, :3].contiguous()

    def chain(bags, x, ids, w):
        first = bags[0](ids[:, 0], None, w[:, 0])
        return first, bags[1](ids[:, 1], None, weights_of(first, ids))

    def crossed(bags, x, ids, w):
        plain, weighted = bags[0](ids[:, 0]), bags[1](ids[:, 1], None, w[:, 1])
        return bags[2](ids[:, 2], None, weights_of(plain, ids)), bags[3]((weighted.abs() > 0.1).long()[:, :2])

    check(Net(chain), 2)
    check(Net(crossed), 3)


def test_ids_out_of_vocabulary_and_remaps_are_part_of_the_call():
    def given(batch, dtype):
        x, ids, w = inputs(batch, dtype)
        ids[:, 0] = ids[:, 0] * 7 - 60
        ids[:, 2] *= 33
        ids[0, 0, 0] = torch.iinfo(dtype).min
        return x, ids, w

    for form in (JOINS["behind a tensor"], ragged):
        after = check(Net(form, mapped=True), 1, given=given)
        assert calls(after, MAP) == 0
    x, ids, w = inputs(3)
    ids[1, 2, 0] = 1000
    with pytest.raises(IndexBoundsError, match="index 1000 .* is outside table 2; allowed are 0 to 999"):
        after(x, ids, w)


class Others(nn.Module):
    """What is no bag of one table, pooled."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", quantize_rows_int8(torch.randn(50, 8)))

    def forward(self, x, ids, w):
        flat = ids[:, 1, 0].reshape(-1)
        twice = embedding_bag_rows([self.rows, self.rows], torch.cat([flat, flat]), torch.arange(2 * flat.shape[0] + 1))
        rows = embedding_bag_rows([self.rows], flat, torch.arange(flat.shape[0] + 1), "none")
        made = embedding_bag_rows([self.rows + 0], flat, torch.arange(flat.shape[0] + 1), "mean")
        return twice, rows, made


def test_what_is_no_pooled_bag_of_one_table_stays_as_it_is():
    check(Others(), 0, left=3)


class ByHand(nn.Module):
    """Bags of one index that are weighted, by steps that are computed, and rows of two halves of the indices."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", quantize_rows_int8(torch.randn(50, 8)))

    def forward(self, x, ids, w):
        flat = ids[:, 1, 0].reshape(-1)
        offsets = torch.arange(flat.shape[0] + 1)
        weighted = embedding_bag_rows([self.rows], flat, offsets, "sum", x[:, 0].reshape(-1))
        shifted = embedding_bag_rows([self.rows], flat, torch.cumsum(torch.ones_like(offsets), 0) - 1)
        halves = embedding_bag_rows([self.rows], torch.cat([flat, flat]), 2 * offsets)
        return weighted, shifted, halves


def test_bags_by_hand_become_calls_too():
    check(ByHand(), 2)


def test_a_graph_that_writes_in_place_stays_as_it_is():
    def form(bags, x, ids, w):
        first = bags[0](ids[:, 0])
        own = ids.clone()
        own[:, 1] = 0
        return first, bags[1](own[:, 1])

    check(Net(form), 0, left=2)


def test_look_ups_and_bags_are_joined_in_one_cat():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(None)
            self.one = nn.ModuleList(layers.compressed(nn.Embedding(7, 8), "int4") for _ in range(2))

        def forward(self, x, ids, w):
            columns = ids[:, 1]
            rows = [table(columns[:, t]) for t, table in enumerate(self.one)]
            return torch.cat([x, *rows, *square(self.net.bags, ids), x], dim=1)

    program = exported(Mixed())
    after = check(Mixed(), 1)
    assert calls(program.module(), OP) == 6 and calls(after, look_up_rows) == 1
    (cat,) = [node for node in after.graph.nodes if node.target is torch.ops.aten.cat.default]
    assert [node.target for node in cat.args[0]] == [look_up_rows, pool_bags, "x"]


def test_the_check_of_bits_sees_a_call_that_is_wrong(monkeypatch):
    """The negative control: the first table's last bag begins one index early."""

    def wrong(bags, batch, dtype):
        offsets = joined._fixed(bags, batch, dtype)
        offsets[batch - 1] -= int(batch > 1)
        return offsets

    monkeypatch.setattr(joined, "_kept", wrong)
    with pytest.raises(AssertionError):
        check(Net(JOINS["cat"]), 1)


def test_offsets_that_are_made_in_a_trace_are_not_kept():
    tables = RowTables([quantize_rows_int8(torch.randn(5, 4)), quantize_rows_int8(torch.randn(9, 4))])
    ids = [torch.arange(5).repeat(3)[:12], torch.arange(8)]
    joined._kept.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = pool_bags(tables, [mode.from_tensor(part) for part in ids], [3, 2])
    assert fake.shape == (4, 8)
    offsets = torch.tensor([0, 3, 6, 9, 12, 14, 16, 18, 20])
    want = embedding_bag_rows(tables, torch.cat(ids), offsets)
    assert torch.equal(pool_bags(tables, ids, [3, 2]), want)


def test_weights_of_another_length_are_refused_though_joined_they_would_fit():
    tables = RowTables([quantize_rows_int8(torch.randn(5, 4))] * 2)
    ids, weights = torch.zeros(4, dtype=torch.int64), torch.ones(8)
    with pytest.raises(
        KernelInputError, match=r"weights of table 0 have shape \(3,\); give that of its indices, \(4,\)"
    ):
        pool_bags(tables, [ids, ids], [2, 2], "sum", [weights[:3], weights[3:]])
    with pytest.raises(KernelInputError, match="weights with pooling 'mean'"):
        pool_bags(tables, [ids, ids], [2, 2], "mean", [weights[:4], weights[4:]])


def test_pool_bags_refuses_tables_of_other_batches():
    tables = RowTables([quantize_rows_int8(torch.randn(5, 4))] * 2)
    ids = torch.zeros(4, dtype=torch.int64)
    for bags in ([2, 4], [2, 3], [torch.tensor([0, 2, 4]), torch.tensor([0, 4])]):
        with pytest.raises(KernelInputError, match="give the same number of (whole )?bags for all"):
            pool_bags(tables, [ids, ids], bags)
    assert pool_bags(tables, [ids[:0], ids[:0]], [2, 3]).shape == (0, 8)
