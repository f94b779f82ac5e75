"""Lowering a graph for the CPU: the bits stay, the calls go, and what is no look-up of this form stays as it is."""

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress.artifact.lower import lower
from recpress.artifact.lower_gpu import lower_to_gpu
from recpress.artifact.lower_tables import lower_tables
from recpress.errors import IndexBoundsError
from recpress.layers import MappedTable, RowsEmbedding
from recpress_kernels import RowTables, embedding_bag_rows, int8_mlp_packed, look_up_rows, unpack
from recpress_kernels.embedding_bag_rows.joined import pool_bags
from recpress_kernels.formats.rows import quantize_rows_int4, quantize_rows_int8
from recpress_kernels.formats.sparse24 import Sparse24
from recpress_kernels.int8_mlp import choice
from recpress_kernels.support import Support

OP = torch.ops.recpress.embedding_bag_rows.default
ROWS = (40, 7, 30, 11)


def embeddings(*dims):
    torch.manual_seed(1)
    return nn.ModuleList(
        RowsEmbedding.from_embedding(nn.Embedding(n, d), "int8") for n, d in zip(ROWS, dims, strict=False)
    )


def ids(batch, dtype=torch.int64):
    g = torch.Generator().manual_seed(batch)
    return torch.stack([torch.randint(0, n, (batch,), generator=g) for n in ROWS], dim=1).to(dtype)


class Net(nn.Module):
    """A graph around tables: ``form(tables, x, sparse)``."""

    def __init__(self, form, *dims):
        super().__init__()
        self.tables, self.form = embeddings(*dims), form

    def forward(self, x, sparse):
        return self.form(self.tables, x, sparse)


def exported(net, dtype=torch.int64):
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, {0: batch})
    return torch.export.export(net.eval(), (torch.randn(6, 8), ids(6, dtype)), dynamic_shapes=shapes)


def each(tables, sparse):
    return [table(sparse[:, i]) for i, table in enumerate(tables)]


def calls(module, target):
    return sum(node.target is target for node in module.graph.nodes)


def check(net, made, left=0, dtype=torch.int64):
    """``net`` lowered to ``made`` calls and ``left`` ops: the bits of the graph as it was, contiguous where it was."""
    program = exported(net, dtype)
    before, after = program.module(), program.module()
    lower(after)
    assert (calls(after, look_up_rows), calls(after, OP)) == (made, left), after.code
    after.graph.lint()
    for batch in (1, 2, 64):
        x = torch.randn(batch, 8)
        want, got = before(x, ids(batch, dtype)), after(x, ids(batch, dtype))
        for a, b in zip(torch.utils._pytree.tree_leaves(want), torch.utils._pytree.tree_leaves(got), strict=True):
            assert torch.equal(a, b) and a.is_contiguous() == b.is_contiguous() and a.dtype == b.dtype
    return after


JOINS = {
    "stack behind a tensor": lambda t, x, s: torch.stack([x, *each(t, s)], dim=1),
    "stack": lambda t, x, s: torch.stack(each(t, s), dim=1),
    "cat behind a tensor": lambda t, x, s: torch.cat([x, *each(t, s)], dim=1),
    "cat": lambda t, x, s: torch.cat(each(t, s), dim=1) * x[:, :1],
    "behind another look-up": lambda t, x, s: torch.cat([t[0](s[:, 3] % 40), *[t[1](s[:, 1]), t[2](s[:, -2])]], 1),
}


@pytest.mark.parametrize("form", JOINS.values(), ids=JOINS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_look_ups_that_are_joined_become_one_call_that_joins(form, dtype):
    # What no column holds, as in the last form, is a call of its own, in front of the others' tensor.
    apart = form is JOINS["behind another look-up"]
    after = check(Net(form, 8, 8, 8, 8), 1 + apart, dtype=dtype)
    gone = ("stack.default", "cat.default", "arange.default", "split_with_sizes.default")
    assert not [node for node in after.graph.nodes if str(node.target).removeprefix("aten.") in gone]
    assert calls(after, torch.ops.aten.select.int) == apart


SPLITS = {
    "between tensors": lambda t, x, s: torch.cat([x, *each(t, s), x], dim=1),
    "two before": lambda t, x, s: torch.cat([x, x, *each(t, s)], dim=1),
    "out of order": lambda t, x, s: torch.cat(each(t, s)[::-1], dim=1),
    "along the batch": lambda t, x, s: torch.cat(each(t, s), dim=0),
    "stacked along the last": lambda t, x, s: torch.stack(each(t, s), dim=2),
    "used twice": lambda t, x, s: (torch.stack(rows := each(t, s), dim=1), rows[1] * x),
    "one joined twice": lambda t, x, s: torch.cat([(rows := each(t, s))[0], *rows], dim=1),
    "sum and difference": lambda t, x, s: (rows := each(t, s))[0] + rows[1] - rows[2] * rows[3],
    "given out": lambda t, x, s: each(t, s),
    "viewed flat": lambda t, x, s: [row.view(-1) for row in each(t, s)],
    "with a double in front": lambda t, x, s: torch.cat([x.double(), *each(t, s)], dim=1),
}


@pytest.mark.parametrize("form", SPLITS.values(), ids=SPLITS)
def test_other_look_ups_in_columns_of_one_input_become_one_call(form):
    check(Net(form, 8, 8, 8, 8), 1)


def test_tables_of_other_widths():
    after = check(Net(JOINS["cat behind a tensor"], 1, 7, 16, 3), 1)
    assert calls(after, torch.ops.aten.cat.default) == 0
    check(Net(SPLITS["given out"], 1, 7, 16, 3), 1)


def test_look_ups_of_no_column_become_a_call_each():
    whole = Net(lambda t, x, s: (t[0](s[:, 0]), t[1](s % 7), t[2](s[:, 2:3])), 8, 8, 8)
    check(whole, 3)
    check(Net(lambda t, x, s: t[0](s.unbind(1)[0]) + x, 8), 1)


class Rows(nn.Module):
    """One look-up in a table of int8 rows and two in tables of int4 rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.register_buffer("whole", quantize_rows_int8(torch.randn(40, 8)))
        self.register_buffer("even", quantize_rows_int4(torch.randn(7, 8)))
        self.register_buffer("odd", quantize_rows_int4(torch.randn(30, 5)))

    def forward(self, x, sparse):
        offsets = torch.arange(sparse.shape[0] + 1)
        given = zip((self.whole, self.even, self.odd), (None, [8], [5]), range(3), strict=True)
        rows = [embedding_bag_rows([t], sparse[:, i], offsets, "sum", None, dims) for t, dims, i in given]
        return torch.cat([x, *rows], dim=1)


def test_int8_and_int4_tables_become_one_call():
    check(Rows(), 1)


MAPPED = {
    "columns": lambda t, x, s: torch.cat([x, *each(t, 3 * s - 9)], dim=1),
    "one column twice": lambda t, x, s: torch.cat([x, t[0](s[:, 0] - 3), t[1](s[:, 0])], dim=1),
    "rows of ids": lambda t, x, s: t[0](s - 2).sum(1) + x,
    "rows of ids, a part": lambda t, x, s: t[0](s[:, 1:] * 5).sum(1) + t[2](s[:, :2]).sum(1),
}


@pytest.mark.parametrize("form, made", list(zip(MAPPED.values(), (1, 2, 1, 2), strict=True)), ids=MAPPED)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_what_ids_go_through_before_is_part_of_the_call(form, made, dtype):
    net = Net(form, 8, 8, 8, 8)
    for t in (0, 1, 2, 3):
        remap = None if t == 2 else torch.randperm(ROWS[t], dtype=torch.int32)
        net.tables[t] = MappedTable(net.tables[t], ROWS[t], t, remap)
    after = check(net, made, dtype=dtype)
    assert calls(after, torch.ops.recpress.map_ids.default) == 0


def test_a_map_that_is_made_while_the_model_runs_stays_a_node():
    def form(tables, x, sparse):
        remap = torch.arange(40, dtype=torch.int32) + 0
        return tables[0](torch.ops.recpress.map_ids(sparse[:, 0], 40, 3, remap)) + x

    after = check(Net(form, 8), 1)
    assert calls(after, torch.ops.recpress.map_ids.default) == 1


def test_float_tables_stay_as_they_are():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = nn.Embedding(40, 8)
            self.int8 = embeddings(8, 8)[1]

        def forward(self, x, sparse):
            return torch.cat([x, self.kept(sparse[:, 0]), self.int8(sparse[:, 1])], dim=1)

    after = check(Mixed(), 1)
    assert calls(after, torch.ops.aten.embedding.default) == 1


def test_a_graph_that_writes_in_place_stays_as_it_is():
    def form(tables, x, sparse):
        first = tables[0](sparse[:, 0])
        own = sparse.clone()
        own[:, 1] = 0
        return torch.cat([first, tables[1](own[:, 1])], dim=1)

    check(Net(form, 8, 8), 0, left=2)


def test_a_graph_without_traced_shapes_stays_as_it_is():
    module = exported(Net(JOINS["stack"], 8, 8)).module()
    for node in module.graph.nodes:
        node.meta.pop("val", None)
    assert lower_tables(module) == (0, 0) and calls(module, OP) == 2


def test_an_index_out_of_range_is_named_by_its_column():
    after = check(Net(JOINS["stack behind a tensor"], 8, 8, 8, 8), 1)
    bad = ids(5)
    bad[3, 2] = 30
    with pytest.raises(IndexBoundsError, match="index 30 at row 3, column 2 is outside table 2; allowed are 0 to 29"):
        after(torch.randn(5, 8), bad)


def test_a_loaded_model_holds_what_it_reads_and_says_what_runs(artifact, compressed):
    model = recpress.load(artifact)
    assert "; 2 look-ups in 1 call; 1 bag layer in 1 call;" in model.kernels
    assert [calls(model.module, target) for target in (look_up_rows, pool_bags, OP)] == [1, 1, 0]
    assert [type(v) for v in vars(model.module).values() if isinstance(v, RowTables)] == [RowTables] * 2
    assert not [name for name, _ in model.module.named_buffers() if name.startswith("tables")]
    assert not model.module._forward_pre_hooks and not model.module._forward_hooks
    dense, sparse = small_inputs(9, seed=4)
    want = compressed.model(dense, sparse)
    torch.testing.assert_close(model.score({"dense": dense, "sparse": sparse})["logit"], want, rtol=0, atol=1e-5)


def test_int4_and_int8_tables_are_exported_and_loaded(tmp_path):
    compressed = recpress.compress(small_model(), recpress.Recipe(embedding="int4", overrides={"tables.1": "int8"}))
    schemes = [row.scheme[:4] for row in compressed.report.rows if row.layer.startswith("Embedding")]
    assert schemes == ["int4", "int8", "int4"]
    recpress.export(compressed, tmp_path / "a", example_inputs=small_inputs(8), input_names=("dense", "sparse"))
    model = recpress.load(tmp_path / "a")
    assert model.manifest.recipe.embedding == "int4" and not model.manifest.golden.blind
    looked, pooled = (getattr(model.module, name) for name in ("row_tables_0", "bag_tables_0"))
    assert [t.shape[1] for t in (*looked.tables, *pooled.tables)] == [8, 12, 8] and looked.dims == [8, 8]
    dense, sparse = small_inputs(9, seed=4)
    want = compressed.model(dense, sparse)
    torch.testing.assert_close(model.score({"dense": dense, "sparse": sparse})["output"], want, rtol=0, atol=1e-5)


def test_layers_of_both_kinds_become_one_call(tmp_path):
    recipe = recpress.Recipe(overrides={"top.0": "int8-weights", "bottom.*": "int8-weights"})
    compressed = recpress.compress(small_model(), recipe)
    assert {row.scheme for row in compressed.report.rows if row.layer == "Linear"} == {
        "int8 weights a channel, activations not quantised",
        "int8 weights a channel, 7-bit activations a row",
    }
    recpress.export(compressed, tmp_path / "a", example_inputs=small_inputs(8), input_names=("dense", "sparse"))
    model = recpress.load(tmp_path / "a")
    assert "4 int8 layers in 2 calls" in model.kernels and calls(model.module, int8_mlp_packed) == 2
    kinds = [[one.keeps_floats for one in unpack(b)] for n, b in model.module.named_buffers() if n.startswith("packed")]
    assert sorted(kinds) == [[True, False], [True, True]]
    dense, sparse = small_inputs(9, seed=4)
    want = compressed.model(dense, sparse)
    torch.testing.assert_close(model.score({"dense": dense, "sparse": sparse})["output"], want, rtol=0, atol=1e-5)


def test_on_a_gpu_rows_of_weights_are_padded_and_give_the_same_bits(compressed):
    inputs = small_inputs(8)
    module = torch.export.export(compressed.model, inputs).module()
    want = module(*inputs)
    said = "4 int8 layers through Triton-language kernels; 2 look-ups in 1 call"
    assert lower_to_gpu(module, "a GPU", Support(True, "")) == (said, [])
    assert calls(module, look_up_rows) == 1
    strides = {name: b.stride(0) for name, b in module.named_buffers() if b.dtype == torch.int8}
    assert strides == {"bottom.0.weight": 16, "bottom.2.weight": 16, "top.0.weight": 32, "top.2.weight": 32}
    assert torch.equal(module(*inputs), want)


def pruned_model():
    """A model of which two in four weights are zero, in int8."""
    model = small_model()
    with torch.no_grad():
        for layer in (*model.bottom, *model.top):
            if isinstance(layer, nn.Linear):
                layer.weight[:, 2::4] = 0
                layer.weight[:, 3::4] = 0
    return recpress.compress(model, recpress.Recipe(linear="int8-24"))


@pytest.mark.parametrize(("faster", "sparse"), [(True, True), (True, False), (False, True)])
def test_on_a_gpu_2_4_layers_are_put_in_order_or_decompressed_once(monkeypatch, faster, sparse):
    compressed = pruned_model()
    monkeypatch.setattr(choice.Table, "judge", lambda _, n, k, *__: choice.Choice(n, k, faster, (16, 16), {1: 1.25}))
    inputs = small_inputs(8)
    module = torch.export.export(compressed.model, inputs).module()
    want = module(*inputs)
    kernels, choices = lower_to_gpu(module, "a GPU", Support(sparse, "as the test says"))
    run = 4 if faster and sparse else 0
    assert f"{run} of 4 2:4 layers as 2:4 (as the test says)" in kernels
    assert [c.sparse24 for c in choices] == [run == 4] * 4
    assert calls(module, torch.ops.recpress.int8_sparse24_linear_fragments.default) == run
    assert calls(module, torch.ops.recpress.int8_linear.default) == 4 - run
    assert torch.equal(module(*inputs), want)


def test_2_4_layers_run_in_the_form_that_is_measured_faster(tmp_path, monkeypatch):
    compressed = pruned_model()
    assert sum("2:4" in row.scheme for row in compressed.report.rows) == 4
    recpress.export(compressed, tmp_path / "a", example_inputs=small_inputs(8), input_names=("dense", "sparse"))
    dense, sparse = small_inputs(9, seed=4)
    want = compressed.model(dense, sparse)
    for faster, run in ((False, 0), (True, 4)):
        monkeypatch.setattr(
            choice.Table, "judge", lambda _, n, k, *__, faster=faster: choice.Choice(n, k, faster, (16, 16), {1: 1.25})
        )
        loaded = recpress.load(tmp_path / "a")
        assert [(c.n, c.k, c.sparse24) for c in loaded.choices] == [
            (n, k, faster) for n, k in ((16, 5), (8, 16), (24, 32), (1, 24))
        ]
        assert f"4 int8 layers in 2 calls, {run} of 4 2:4 layers as 2:4" in loaded.kernels
        kinds = [
            isinstance(o.weight, Sparse24) for n, b in loaded.module.named_buffers() if "packed" in n for o in unpack(b)
        ]
        assert kinds == [faster] * 4
        got = loaded.score({"dense": dense, "sparse": sparse})["output"]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
