"""Triangles of dot products become one call; what is another triangle, order or use stays as it is."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import recpress
from recpress.artifact import lower_gpu
from recpress.artifact.load import check_golden
from recpress.artifact.lower import lower
from recpress.artifact.lower_gpu import lower_to_gpu
from recpress.artifact.lower_interactions import lower_interactions
from recpress.layers import Int8Linear
from recpress.zoo.dlrm import DLRM
from recpress_kernels import dot_interaction, int8_cross, int8_cross_packed, int8_mlp_packed, look_up_rows
from recpress_kernels.support import Support

V, D = 5, 8
TRIL = torch.tril_indices(V, V, -1)


class Net(nn.Module):
    """A graph around vectors: ``form(v, x, dots)``, dots being all products."""

    def __init__(self, form, product=lambda v: torch.bmm(v, v.transpose(1, 2))):
        super().__init__()
        self.form, self.product = form, product
        self.register_buffer("lower", TRIL.clone())
        self.register_buffer("upper", torch.triu_indices(V, V, 1))

    def forward(self, x, v):
        return self.form(self, x, self.product(v))


def slices(dots, first=1, more=0):
    return [dots[:, i, : i + more] for i in range(first, V)]


def by_lists(net, x, dots):
    i = torch.tensor([i for i in range(V) for _ in range(i)])
    j = torch.tensor([j for i in range(V) for j in range(i)])
    return torch.cat([x, dots[:, i, j]], dim=1)


def by_tril(net, x, dots):
    i, j = torch.tril_indices(V, V, 0)
    return torch.cat([x, dots[:, i, j]], dim=-1)


FORMS = {
    "slices behind a tensor": lambda n, x, d: torch.cat([x, *slices(d)], dim=1),
    "slices": lambda n, x, d: torch.cat(slices(d), dim=-1),
    "slices with the diagonal": lambda n, x, d: torch.cat([x, *slices(d, 0, 1)], dim=1),
    "indices in a buffer": lambda n, x, d: torch.cat([x, d[:, n.lower[0], n.lower[1]]], dim=1),
    "indices made of lists": by_lists,
    "indices with the diagonal": by_tril,
    "indices alone": lambda n, x, d: d[:, n.lower[0], n.lower[1]] * 2,
    "indices between tensors": lambda n, x, d: torch.cat([x, d[:, n.lower[0], n.lower[1]], x], dim=1),
}
PRODUCTS = {
    "matmul": lambda v: torch.matmul(v, v.mT),
    "matmul by negative dims": lambda v: v @ v.transpose(-1, -2),
}
OTHERS = {
    "the upper triangle": lambda n, x, d: torch.cat([x, d[:, n.upper[0], n.upper[1]]], dim=1),
    "columns before rows": lambda n, x, d: d[:, n.lower[1], n.lower[0]],
    "indices of fewer vectors": lambda n, x, d: d[:, n.lower[0][:-1], n.lower[1][:-1]],
    "a slice is missing": lambda n, x, d: torch.cat([x, *slices(d)[:-1]], dim=1),
    "slices out of order": lambda n, x, d: torch.cat([x, *slices(d)[::-1]], dim=1),
    "a slice one longer": lambda n, x, d: torch.cat([x, *slices(d)[:-1], d[:, V - 1, :]], dim=1),
    "a slice begins later": lambda n, x, d: torch.cat([x, *slices(d)[:-1], d[:, V - 1, 1:V]], dim=1),
    "a step": lambda n, x, d: torch.cat([x, *slices(d)[:-1], d[:, V - 1, : V - 1 : 2]], dim=1),
    "along the batch": lambda n, x, d: torch.cat([d[:, i, :1] for i in range(1, V)], dim=0),
    "one used twice": lambda n, x, d: (torch.cat([x, *(s := slices(d))], dim=1), s[1]),
    "the products used too": lambda n, x, d: torch.cat([x, *slices(d)], dim=1) + d.sum(),
    "behind two": lambda n, x, d: torch.cat([x, x, *slices(d)], dim=1),
    "rows of columns": lambda n, x, d: torch.cat([x, *[d[:, :i, i] for i in range(1, V)]], dim=1),
    "an index that is computed": lambda n, x, d: d[:, (x[0] > 9).long(), n.lower[1][:8]],
}
OTHER_PRODUCTS = {
    "of other vectors": lambda v: torch.bmm(v, (v + 1).transpose(1, 2)),
    "not turned": lambda v: torch.bmm(v, v[:, :, :V].transpose(1, 2).transpose(1, 2)[:, :, :V].repeat(1, 2, 1)[:, :D]),
    "of doubles": lambda v: torch.bmm(v.double(), v.double().transpose(1, 2)),
}


def exported(net):
    batch = torch.export.Dim("batch", min=1)
    given = (torch.randn(6, D), torch.randn(6, V, D))
    return torch.export.export(net.eval(), given, dynamic_shapes=({0: batch}, {0: batch}))


def calls(module, target):
    return sum(node.target is target for node in module.graph.nodes)


def check(net, made):
    program = exported(net)
    before, after = program.module(), program.module()
    text, _ = lower(after)
    assert calls(after, dot_interaction) == made, after.code
    assert ("1 triangles of dot products" in text) == bool(made)
    after.graph.lint()
    for rows in (1, 2, 33):
        x, v = torch.randn(rows, D), torch.randn(rows, V, D)
        torch.testing.assert_close(after(x, v), before(x, v), rtol=1e-5, atol=1e-5)
    return after


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_triangle_becomes_one_call(form):
    after = check(Net(form), 1)
    left = {str(node.target) for node in after.graph.nodes}
    assert not left & {"aten.bmm.default", "aten.index.Tensor", "aten.select.int", "aten.detach_.default"}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_products_in_other_words(product):
    check(Net(FORMS["slices behind a tensor"], product), 1)


@pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
def test_other_forms_stay_as_they_are(form):
    check(Net(form), 0)


@pytest.mark.parametrize("product", OTHER_PRODUCTS.values(), ids=OTHER_PRODUCTS)
def test_other_products_stay_as_they_are(product):
    check(Net(FORMS["slices"], product), 0)


def test_a_graph_that_writes_in_place_stays_as_it_is():
    def form(net, x, dots):
        own = x.clone()
        own.add_(1)
        return torch.cat([own, *slices(dots)], dim=1)

    check(Net(form), 0)


def test_a_graph_without_traced_shapes_stays_as_it_is():
    module = exported(Net(FORMS["slices"])).module()
    for node in module.graph.nodes:
        node.meta.pop("val", None)
    assert lower_interactions(module) == 0 and calls(module, torch.ops.aten.bmm.default) == 1


def test_a_dlrm_takes_four_calls(tmp_path):
    """bottom MLP, look-ups that write the vectors, their products, top MLP; the golden rows pass."""
    torch.manual_seed(0)
    model = DLRM(num_dense=3, table_rows=[40, 7, 30], dim=D, bottom=[16], top=[24])
    inputs = (torch.randn(16, 3), torch.stack([torch.randint(0, n, (16,)) for n in (40, 7, 30)], dim=1))
    compressed = recpress.compress(model, "int8")
    recpress.export(compressed, tmp_path / "a", example_inputs=inputs, input_names=("dense", "sparse"))
    loaded = recpress.load(tmp_path / "a")
    assert "1 triangles of dot products in a call each; 3 look-ups in 1 call" in loaded.kernels
    graph = loaded.module.graph
    assert calls(loaded.module, dot_interaction) == calls(loaded.module, look_up_rows) == 1
    assert sum(node.op == "call_function" for node in graph.nodes) <= 6, loaded.module.code
    check_golden(loaded, tmp_path / "a")
    want = compressed.model(*inputs)
    torch.testing.assert_close(loaded.module(*inputs)[0], want, rtol=0, atol=1e-5)


def test_on_a_gpu_a_dlrm_takes_the_same_calls():
    """The graph for a GPU, run here; its layers stay a call each."""
    torch.manual_seed(0)
    model = DLRM(num_dense=3, table_rows=[40, 7, 30], dim=D, bottom=[16], top=[24])
    inputs = (torch.randn(16, 3), torch.stack([torch.randint(0, n, (16,)) for n in (40, 7, 30)], dim=1))
    program = torch.export.export(recpress.compress(model, "int8").model, inputs)
    before, after = program.module(), program.module()
    text, _ = lower_to_gpu(after, "a GPU", Support(True, ""))
    assert "1 triangles of dot products in a call each; 3 look-ups in 1 call" in text
    wanted = {dot_interaction: 1, look_up_rows: 1, torch.ops.recpress.int8_linear.default: 4}
    assert {target: calls(after, target) for target in wanted} == wanted
    assert not calls(after, torch.ops.recpress.embedding_bag_rows.default)
    torch.testing.assert_close(after(*inputs), before(*inputs), rtol=0, atol=1e-5)


class Crossing(nn.Module):
    """``form(x0, x, y)`` around an int8 stack y of x, ``biased`` throughout or in its last layer alone."""

    def __init__(self, form, *widths, biased=True):
        super().__init__()
        torch.manual_seed(3)
        self.form = form
        layers = [nn.Linear(k, n, bias=biased or n == D) for k, n in pairwise(widths)]
        self.stack = nn.Sequential(*map(Int8Linear.from_linear, layers))

    def forward(self, x0, x):
        return self.form(x0, x, self.stack(x))


CROSSES = {
    "product first": lambda x0, x, y: x0 * y + x,
    "sum first": lambda x0, x, y: x + y * x0,
    "addcmul": lambda x0, x, y: torch.addcmul(x, y, x0),
    "of x by itself": lambda x0, x, y: x * y + x,
}
NO_CROSSES = {
    "another is added": lambda x0, x, y: x0 * y + x0,
    "scaled": lambda x0, x, y: torch.add(x, x0 * y, alpha=2),
    "addcmul scaled": lambda x0, x, y: torch.addcmul(x, y, x0, value=2),
    "a square": lambda x0, x, y: y * y + x,
    "a column": lambda x0, x, y: x0[:, :1] * y + x,
    "a number": lambda x0, x, y: 2.0 * y + x,
    "the stack used too": lambda x0, x, y: x0 * y + x + y,
    "the product used too": lambda x0, x, y: (p := x0 * y) + x + p.sum(),
    "doubles": lambda x0, x, y: x0.double() * y + x,
    "less": lambda x0, x, y: x0 * y - x,
}


def exported_cross(net):
    batch = torch.export.Dim("batch", min=1)
    given = (torch.randn(6, D), torch.randn(6, D))
    return torch.export.export(net.eval(), given, dynamic_shapes=({0: batch}, {0: batch}))


def check_cross(net, made):
    program = exported_cross(net)
    before, after = program.module(), program.module()
    text, _ = lower(after)
    assert (calls(after, int8_cross_packed), calls(after, int8_mlp_packed)) == (made, 1 - made), after.code
    assert ("1 of them cross layers" in text) == bool(made)
    for rows in (1, 2, 50):
        x0, x = torch.randn(rows, D), torch.randn(rows, D)
        torch.testing.assert_close(after(x0, x), before(x0, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", CROSSES.values(), ids=CROSSES)
@pytest.mark.parametrize("widths", [(D, D), (D, 3, D)], ids=["full rank", "low rank"])
def test_a_cross_layer_becomes_one_call(form, widths):
    check_cross(Crossing(form, *widths), 1)


@pytest.mark.parametrize("form", NO_CROSSES.values(), ids=NO_CROSSES)
def test_what_is_no_cross_layer_stays_as_it_is(form):
    check_cross(Crossing(form, D, D), 0)


def check_cross_on_a_gpu(net, made):
    """The graph for a GPU, run here: its ops answer on either device. addcmul may fuse: the last bit may differ."""
    program = exported_cross(net)
    before, after = program.module(), program.module()
    text, _ = lower_to_gpu(after, "a GPU", Support(True, ""))
    assert calls(after, int8_cross) == made, after.code
    assert calls(after, torch.ops.recpress.int8_linear.default) == (0 if made else len(net.stack))
    assert ("1 of them cross layers" in text) == bool(made)
    after.graph.lint()
    for rows in (1, 2, 50):
        x0, x = torch.randn(rows, D), torch.randn(rows, D)
        torch.testing.assert_close(after(x0, x), before(x0, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", CROSSES.values(), ids=CROSSES)
@pytest.mark.parametrize("widths", [(D, D), (D, 3, D)], ids=["full rank", "low rank"])
def test_a_cross_layer_becomes_one_call_on_a_gpu(form, widths):
    check_cross_on_a_gpu(Crossing(form, *widths, biased=False), 1)


@pytest.mark.parametrize("form", NO_CROSSES.values(), ids=NO_CROSSES)
def test_what_is_no_cross_layer_stays_as_it_is_on_a_gpu(form):
    check_cross_on_a_gpu(Crossing(form, D, D), 0)


def test_a_low_rank_with_a_bias_between_is_no_cross_layer_on_a_gpu():
    check_cross_on_a_gpu(Crossing(CROSSES["product first"], D, 3, D), 0)


@pytest.mark.parametrize(("most", "made"), [(V, 1), (V - 1, 0)])
def test_on_a_gpu_a_triangle_of_as_many_vectors_as_its_kernel_takes_becomes_one_call(monkeypatch, most, made):
    monkeypatch.setattr(lower_gpu, "MAX_VECTORS", most)
    program = exported(Net(FORMS["slices"]))
    before, after = program.module(), program.module()
    lower_to_gpu(after, "a GPU", Support(True, ""))
    assert calls(after, dot_interaction) == made
    x, v = torch.randn(3, D), torch.randn(3, V, D)
    torch.testing.assert_close(after(x, v), before(x, v), rtol=1e-5, atol=1e-5)
