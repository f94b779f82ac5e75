"""Fake quantisation: what it computes is what the ops compute, and its gradients are those that are stated."""

from functools import partial

import pytest
import torch
from torch import nn

from recpress.quantize.fake import (
    FakeEmbedding,
    FakeEmbeddingBag,
    FakeLinear,
    clipped_integers,
    fake_rows,
    learned,
    row_integers,
)
from recpress_kernels.formats.rows import dequantize_rows, quantize_rows_int4, quantize_rows_int8
from recpress_kernels.int8_linear.reference import quantize_activations


def linear(scheme="int8", learn_scales=False, folded=False, **inputs):
    torch.manual_seed(0)
    return FakeLinear(nn.Linear(13, 7), scheme, inputs=inputs, learn_scales=learn_scales, folded=folded)


@pytest.mark.parametrize("row", ["random", "zeros", "positive", "negative", "one value"])
def test_rows_are_quantised_as_the_op_does(row):
    x = torch.randn(5, 13, generator=torch.Generator().manual_seed(1)) * 3
    x[2] = {"random": x[2], "zeros": 0 * x[2], "positive": x[2].abs(), "negative": -x[2].abs(), "one value": 0.1}[row]
    q, scale = row_integers(x)
    truth, truth_scale = quantize_activations(x)
    assert torch.equal(q, truth.float()) and torch.equal(scale[:, 0], truth_scale)


def test_gradients_go_through_rows_and_tables_as_if_nothing_were_rounded():
    x = torch.randn(5, 13, requires_grad=True)
    g = torch.randn(5, 13)
    q, scale = row_integers(x)
    (q * scale * g).sum().backward()
    assert torch.allclose(x.grad, g, rtol=1e-6)
    table = nn.Parameter(torch.randn(9, 13))
    ids = torch.tensor([3, 3, 0, 8, 5])
    rows = fake_rows(table[ids], table, ids, quantize_rows_int4)
    assert not torch.equal(rows, table[ids])
    (rows * g).sum().backward()
    assert torch.equal(table.grad, torch.zeros(9, 13).index_add_(0, ids, g))


def test_beyond_the_range_there_is_no_gradient():
    x = torch.tensor([-9.0, -1.0, 0.3, 2.0, 9.0], requires_grad=True)
    y = clipped_integers(x, torch.tensor(0.5), -3, 5) * 0.5
    assert y.tolist() == [-1.5, -1.0, 0.5, 2.0, 2.5]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_the_gradient_of_a_scale_is_that_of_the_stated_formula():
    """Finite differences of ``s * (clamp(v / s) + r)``, with r the rounding at s, in float64."""
    v = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 4
    g = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    s = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    assert ((v / s).abs() > 4).any() and ((v / s).abs() < 4).any()

    def formula(scale):
        return (scale * ((v / scale).clamp(-4, 4) + residue) * g).sum()

    clamped = (v / s.detach()).clamp(-4, 4)
    residue = clamped.round() - clamped
    factor = 1 / (40 * 4) ** 0.5
    scale = learned(s, 40, 4)
    (clipped_integers(v, scale, -4, 4) * scale * g).sum().backward()
    with torch.no_grad():
        difference = (formula(s + 1e-6) - formula(s - 1e-6)) / 2e-6
    assert s.grad.item() == pytest.approx(difference.item() * factor, rel=1e-6)
    inside = (v / 0.7).abs() <= 4
    stated = torch.where(inside, (v / 0.7).round() - v / 0.7, 4 * v.sign())
    assert s.grad.item() == pytest.approx((stated * g).sum().item() * factor, rel=1e-9)


def test_a_learned_scale_stays_positive():
    layer = linear(learn_scales=True, x_scale=torch.tensor([0.1]), x_zero_point=torch.tensor([60], dtype=torch.int32))
    with torch.no_grad():
        layer.weight_scale[2] = -1.0
        layer.x_scale.fill_(-1.0)
    assert (layer.integer_weight()[1] > 0).all() and (layer.input_pair()[0] > 0).all()


def test_a_weight_of_two_four_keeps_its_zeros():
    torch.manual_seed(0)
    plain = nn.Linear(8, 3)
    with torch.no_grad():
        plain.weight.view(3, 2, 4)[:, :, 2:] = 0
    layer = FakeLinear(plain, "int8-24", inputs={}, learn_scales=False, folded=False)
    layer(torch.randn(6, 8)).square().sum().backward()
    gradient = layer.weight.grad.view(3, 2, 4)
    assert (gradient[:, :, 2:] == 0).all() and (gradient[:, :, :2] != 0).all()


@pytest.mark.parametrize("quantize", [quantize_rows_int8, partial(quantize_rows_int4, search="greedy")])
def test_only_the_rows_of_the_batch_are_quantised(quantize):
    table = nn.Embedding(1000, 6)
    seen = []
    layer = FakeEmbedding(table, lambda rows: (seen.append(len(rows)), quantize(rows))[1])
    ids = torch.tensor([[5, 7], [7, 999], [0, 5]])
    assert torch.equal(layer(ids), dequantize_rows(quantize(table.weight), 6)[ids])
    assert seen == [4]


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("last", [False, True])
def test_bags_pool_the_quantised_rows(mode, last):
    plain = nn.EmbeddingBag(50, 6, mode=mode, include_last_offset=last)
    layer = FakeEmbeddingBag(plain, quantize_rows_int4)
    truth = nn.EmbeddingBag.from_pretrained(
        dequantize_rows(quantize_rows_int4(plain.weight), 6), mode=mode, include_last_offset=last
    )
    ids, offsets = torch.tensor([4, 49, 4, 0, 7]), torch.tensor([0, 0, 3, 5] if last else [0, 0, 3])
    assert torch.allclose(layer(ids, offsets), truth(ids, offsets), atol=1e-6)
    assert torch.allclose(layer(ids.view(1, 5)), truth(ids.view(1, 5)), atol=1e-6)
    if mode == "sum":
        weights = torch.randn(5)
        assert torch.allclose(layer(ids, offsets, weights), truth(ids, offsets, weights), atol=1e-6)


def test_sparse_gradients_stay_sparse():
    for plain, twin in ((nn.Embedding, FakeEmbedding), (nn.EmbeddingBag, FakeEmbeddingBag)):
        layer = twin(plain(100, 4, sparse=True), quantize_rows_int8)
        layer(torch.tensor([[1, 5]])).sum().backward()
        assert layer.weight.grad.is_sparse and layer.weight.grad.coalesce().indices().tolist() == [[1, 5]]


def test_autocast_does_not_reach_into_the_integers():
    layer, x = linear(), torch.randn(4, 13)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.matmul(x, x.T).dtype == torch.bfloat16
        within = layer(x)
    assert torch.equal(within, layer(x))
