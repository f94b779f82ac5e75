"""Heads of attention: removal that equals zeros, of attentions of torch's own and of others, and what cannot go."""

import copy

import pytest
import torch
from torch import Tensor, nn

import recpress
from recpress import PruneSpec
from recpress.errors import PruningError
from recpress.pruning.narrowed import NarrowedAttention, NarrowedLayerNorm
from recpress.zoo.sasrec import SASRec

HALF = PruneSpec(pattern="heads", sparsity=0.5)


def sasrec() -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    net = SASRec(num_items=30, length=6, dim=12, blocks=2, heads=4).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net, (torch.randint(0, 31, (40, 6)), torch.randint(1, 31, (40, 7)))


@pytest.mark.parametrize("criterion", ["ablation", "weight-norm"])
def test_removal_from_sasrec_is_zeros(criterion):
    net, inputs = sasrec()
    spec = PruneSpec(pattern="heads", criterion=criterion, sparsity=0.5)
    pruned = recpress.prune(net, spec, calibration=[inputs])
    zeroed = copy.deepcopy(net)
    for small, block in zip(pruned.model.blocks, zeroed.blocks, strict=True):
        assert small.heads == 2 and small.query.weight.shape == (6, 12) and small.out.weight.shape == (12, 6)
        there = (block.query.bias[:, None] == small.query.bias).any(dim=1)
        heads = there.view(4, 3)
        assert (heads.all(dim=1) | ~heads.any(dim=1)).all() and int(there.sum()) == 6, "heads stay whole"
        assert torch.equal(block.value.bias[there], small.value.bias)
        with torch.no_grad():
            block.out.weight[:, ~there] = 0
    now = pruned.model(*inputs)
    torch.testing.assert_close(now, zeroed(*inputs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(now, net(*inputs), rtol=1e-2, atol=1e-2)
    rows = {row.name: row for row in pruned.rows}
    assert {n: row.after for n, row in rows.items()} == {n: p.numel() for n, p in pruned.model.named_parameters()}
    assert rows["blocks.1.out.weight"].reason == f"6 of 12 columns stay (heads of attention, by {criterion})"
    assert rows["items.weight"].status == "kept"


def test_smaller_attention_exports_and_heads_that_matter_stay(tmp_path):
    net, inputs = sasrec()
    with torch.no_grad():
        for block in net.blocks:
            block.out.weight[:, 3:9] *= 1e-3
    pruned = recpress.prune(net, HALF, calibration=[inputs]).model
    assert torch.equal(pruned.blocks[0].query.bias, net.blocks[0].query.bias[[0, 1, 2, 9, 10, 11]])
    compressed = recpress.compress(pruned, "int8", calibration=[inputs])
    recpress.export(compressed, tmp_path / "a", example_inputs=inputs, input_names=("history", "candidates"))
    scores = recpress.load(tmp_path / "a").score(dict(zip(("history", "candidates"), inputs, strict=True)))
    torch.testing.assert_close(next(iter(scores.values())), compressed.model(*inputs), rtol=1e-3, atol=1e-3)


class Encoder(nn.Module):
    """Attention as ``how`` says over rows of a table, and scores."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.table, self.last = nn.Embedding(20, 16), nn.Linear(16, 1)
        first = how != "sequence first"
        if how == "encoder":
            self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        else:
            self.layer = nn.MultiheadAttention(16, 4, batch_first=first, kdim=10 if how == "kdim" else None)
        self.narrow = nn.Linear(16, 10)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        match self.how:
            case "encoder":
                x = self.layer(x, src_key_padding_mask=ids == 0)
            case "sequence first":
                x = self.layer(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)
            case "masked":
                mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
                x = self.layer(x, x, x, key_padding_mask=ids == 0, attn_mask=mask, need_weights=False)[0]
            case "kdim":
                key = self.narrow(x)
                x = self.layer(x, key, x, need_weights=False)[0]
            case "weights":
                x, weights = self.layer(x, x, x)
                return self.last(x.mean(1)), weights
        return self.last(x.mean(1))


def encoder(how: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = Encoder(how).eval()
    ids = torch.randint(0, 20, (30, 5))
    ids[:, 0] = 1
    return net, ids


@pytest.mark.parametrize("how", ["encoder", "sequence first", "masked", "kdim"])
def test_torch_attention_with_fewer_heads(how):
    net, ids = encoder(how)
    pruned = recpress.prune(net, PruneSpec(pattern="heads", sparsity=0.25), calibration=[ids]).model
    new, old = (m.layer.self_attn if how == "encoder" else m.layer for m in (pruned, net))
    assert type(new) is NarrowedAttention and new.num_heads == 3 and not new.training
    there = (old.out_proj.weight.T[:, None] == new.out_proj.weight.T).all(dim=2).any(dim=1)
    assert int(there.sum()) == 12
    with torch.no_grad():
        old.out_proj.weight[:, ~there] = 0
    torch.testing.assert_close(pruned(ids), net(ids), rtol=1e-5, atol=1e-5)
    exported = torch.export.export(pruned, (ids,), strict=False).module()
    torch.testing.assert_close(exported(ids), pruned(ids), rtol=1e-5, atol=1e-5)


def test_dimensions_go_through_torch_attention_and_norms():
    net, ids = encoder("encoder")
    pruned = recpress.prune(net, PruneSpec(pattern="dimensions", sparsity=0.5), calibration=[ids]).model
    assert type(pruned.layer.norm1) is NarrowedLayerNorm and pruned.layer.self_attn.out_proj.weight.shape == (8, 16)
    norm, x = nn.LayerNorm(8), torch.randn(5, 8)
    torch.testing.assert_close(NarrowedLayerNorm(norm, 8)(x), norm(x))


class Shared(nn.Module):
    """Four heads of queries, and as many of keys and values as ``how`` says; the count has a name of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.count, self.num_heads = how, 4, 4
        self.q, self.k, self.v = nn.Linear(8, 16), *(nn.Linear(8, 4 if how == "shared" else 16) for _ in range(2))
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        heads = self.count if self.how == "hidden" else self.num_heads
        q = self.q(x).view(b, n, heads, -1).transpose(1, 2)
        k, v = (f(x).view(b, n, -1, 4).transpose(1, 2).expand(b, heads, n, 4) for f in (self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) / 2, dim=-1)
        seen = (weights @ v).transpose(1, 2).flatten(2)
        return (self.out(seen), weights) if self.how == "given out" else self.out(seen)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Shared("shared"), "no head .* can be removed: the model: it has one head, or its heads share keys"),
        (Shared("given out"), "the model: the model gives it out"),
        (Shared("hidden"), "without 2 heads of attention the model .*counted under a name without 'head'"),
        (nn.Linear(8, 8), "it has no attention"),
        (nn.Sequential(nn.TransformerEncoderLayer(8, 1, 16, batch_first=True)), "0.self_attn: it has one head, or"),
    ],
)
def test_heads_that_cannot_go(net, message):
    with pytest.raises(PruningError, match=message):
        recpress.prune(net.eval(), HALF, calibration=[torch.randn(6, 3, 8)])


def test_an_attention_of_matrices_is_followed():
    torch.manual_seed(0)
    net, x = Shared("plain").eval(), torch.randn(6, 3, 8)
    pruned = recpress.prune(net, HALF, calibration=[x]).model
    assert pruned.num_heads == 2 and pruned.count == 4 and pruned.q.out_features == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": 0.9}, "sparsity 0.9 leaves none of the 4 heads of 'blocks.0'"),
        ({"sparsity": 1.5}, "sparsity is 1.5"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "allowed there are ablation, weight-norm"),
        ({"sparsity": 0.5, "keep": ("query",)}, "keep 'query' matches no attention; the model's are: 'blocks.0', 'b"),
        ({"sparsity": 0.5, "keep": ("blocks.*",)}, "blocks.0: keep 'blocks.\\*'"),
    ],
)
def test_bad_input(given, message):
    net, inputs = sasrec()
    with pytest.raises(PruningError, match=message):
        recpress.prune(net, PruneSpec(pattern="heads", **given), calibration=[inputs])
