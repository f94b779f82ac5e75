"""Dimensions of tables: which of them go together, removal that equals zeros, and what cannot go."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import recpress
from recpress import PruneSpec
from recpress.errors import PruningError
from recpress.pruning import masks
from recpress.zoo.dcn import DCNv2
from recpress.zoo.deepfm import DeepFM
from recpress.zoo.dlrm import DLRM
from recpress.zoo.sasrec import SASRec
from recpress.zoo.two_tower import TwoTower

HALF = PruneSpec(pattern="dimensions", sparsity=0.5)
CLICKS = {"num_dense": 3, "table_rows": (30, 5, 9), "dim": 8}
MODELS = {
    "dlrm": lambda: DLRM(**CLICKS, bottom=(12,), top=(20, 16), dropout=0.1),
    "deepfm": lambda: DeepFM(**CLICKS, deep=(20, 16)),
    "dcn": lambda: DCNv2(**CLICKS, deep=(20, 16)),
    "towers": lambda: TwoTower(**CLICKS, item_dense=[1], item_tables=[2], tower=(20,), out=6),
    "sasrec": lambda: SASRec(num_items=30, length=6, dim=8, blocks=2, heads=2),
}


def made(name: str) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    net = MODELS[name]().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    if name == "sasrec":
        return net, (torch.randint(0, 31, (40, 6)), torch.randint(1, 31, (40, 7)))
    return net, (torch.randn(40, 3), torch.randint(0, 5, (40, 3)))


def gone(before: Tensor, after: Tensor) -> list[int]:
    """Columns of ``before`` that ``after`` lacks; the others are there in order."""
    there = (before.T[:, None] == after.T[None]).all(dim=2)
    assert torch.equal(there.nonzero()[:, 1], torch.arange(after.shape[1]))
    return (~there.any(dim=1)).nonzero()[:, 0].tolist()


def zero_by_hand(name: str, net: nn.Module, lost: dict[str, list[int]]) -> None:
    """Columns of tables at zero, and what else writes where they are read."""
    written = []
    if name == "dlrm":
        written = [(net.bottom[2], lost["tables.0"])]
    if name == "dcn":
        places = [3 + 8 * t + column for t in range(3) for column in lost[f"tables.{t}"]]
        written = [(cross, places) for cross in net.crosses]
    if name == "sasrec":
        layers = [part for b in net.blocks for part in (b.attention_norm, b.feed_norm, b.out, b.feed[3])]
        written = [(layer, lost["items"]) for layer in (*layers, net.norm)]
    with torch.no_grad():
        for table, columns in lost.items():
            net.get_submodule(table).weight[:, columns] = 0
        for layer, rows in written:
            layer.weight[rows] = 0
            layer.bias[rows] = 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("criterion", ["ablation", "weight-norm"])
def test_removal_is_zeros(name, criterion):
    net, inputs = made(name)
    spec = PruneSpec(pattern="dimensions", criterion=criterion, sparsity=0.5)
    pruned = recpress.prune(net, spec, calibration=[inputs])
    tables = [n for n, m in net.named_modules() if isinstance(m, nn.Embedding) and m.embedding_dim > 1]
    lost = {n: gone(net.get_submodule(n).weight, pruned.model.get_submodule(n).weight) for n in tables}
    assert {len(columns) for columns in lost.values()} == {4}
    tied = name in ("dlrm", "deepfm", "sasrec")
    assert (len({tuple(columns) for columns in lost.values()}) == 1) is tied, "only side by side they lose their own"
    zeroed, other = copy.deepcopy(net), copy.deepcopy(net)
    zero_by_hand(name, zeroed, lost)
    zero_by_hand(name, other, {n: [column for column in range(8) if column not in lost[n]] for n in tables})
    now = pruned.model(*inputs)
    torch.testing.assert_close(now, zeroed(*inputs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(now, other(*inputs), rtol=0.1, atol=0.1)
    assert not torch.allclose(now, net(*inputs), rtol=1e-2, atol=1e-2)
    rows = {row.name: row for row in pruned.rows}
    assert {n: row.after for n, row in rows.items()} == {n: p.numel() for n, p in pruned.model.named_parameters()}
    assert {n: row.before for n, row in rows.items()} == {n: p.numel() for n, p in net.named_parameters()}
    assert f"4 of 8 columns stay (dimensions of tables, by {criterion})" in rows[f"{tables[0]}.weight"].reason


def test_smaller_layers_train_export_and_quantise(tmp_path):
    net, inputs = made("sasrec")
    pruned = recpress.prune(net, HALF, calibration=[inputs]).model
    pruned.train()(*inputs).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pruned.parameters())
    compressed = recpress.compress(pruned.eval(), recpress.Recipe(embedding="keep"), calibration=[inputs])
    recpress.export(compressed, tmp_path / "a", example_inputs=inputs, input_names=("history", "candidates"))
    scores = recpress.load(tmp_path / "a").score(dict(zip(("history", "candidates"), inputs, strict=True)))
    torch.testing.assert_close(next(iter(scores.values())), compressed.model(*inputs), rtol=1e-3, atol=1e-3)


def test_what_matters_least_goes():
    net, inputs = made("deepfm")
    with torch.no_grad():
        for table in net.tables:
            table.weight[:, [1, 6]] *= 1e-3
    pruned = recpress.prune(net, PruneSpec(pattern="dimensions", sparsity=0.25), calibration=[inputs])
    assert gone(net.tables[0].weight, pruned.model.tables[0].weight) == [1, 6]


def test_a_ranking_over_all_tables_and_a_table_that_is_kept():
    net, inputs = made("towers")
    with torch.no_grad():
        net.tables[1].weight[:, :6] *= 1e-3
    spec = PruneSpec(pattern="dimensions", sparsity=0.25, ranking="global")
    pruned = recpress.prune(net, spec, calibration=[inputs])
    assert [table.embedding_dim for table in pruned.model.tables] == [8, 2, 8]
    kept = recpress.prune(net, PruneSpec(pattern="dimensions", sparsity=0.25, keep=("tables.1",)), calibration=[inputs])
    assert [table.embedding_dim for table in kept.model.tables] == [6, 8, 6]
    assert {row.name: row.reason for row in kept.rows}["tables.1.weight"] == "keep 'tables.1'"


class Meets(nn.Module):
    """A bag and a table that meet in the way that ``how`` says, before a linear layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Embedding(9, 6), nn.EmbeddingBag(7, 6, mode="sum")
        self.last, self.norm, self.gate = nn.Linear(6, 1), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.register_buffer("shift", torch.ones(6))
        self.scale = nn.Parameter(torch.rand(6))
        if how == "tied":
            self.b.weight = nn.Parameter(self.a.weight[:7].detach().clone())
            self.a = nn.Embedding(7, 6, _weight=self.b.weight)
            self.a.weight = self.b.weight

    def forward(self, ids: Tensor) -> Tensor:
        a, b = self.a(ids[:, 0]), self.b(ids)
        if self.how == "out":
            return a, b.sum(1)
        x = a * b
        match self.how:
            case "dot":
                return (functional.normalize(a) * b).sum(1)
            case "einsum":
                return torch.einsum("bd,bd->b", a, b)
            case "catalogue":
                return a @ self.b.weight.T
            case "norm":
                x = self.norm(a + b)
            case "gate":
                x = a * torch.sigmoid(self.gate(b)) + b
            case "scale":
                x = x * self.scale
            case "shift":
                x = x + self.shift
            case "sigmoid":
                return (torch.sigmoid(a) * b).sum(1)
            case "mean":
                return a.mean(1) + b.sum(1)
            case "softmax":
                x = torch.softmax(x, 1)
            case "cumulative":
                x = x.cumsum(1)
            case "formula":
                x = x * self.a.embedding_dim**0.5
            case "view":
                x = x.view(-1, 6)
            case "branch":
                x = x if ids.sum() > 0 else -x
        return self.last(x)


def meeting(how: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = Meets(how).eval()
    nn.init.uniform_(net.norm.running_mean)
    return net, torch.randint(0, 7, (30, 4))


@pytest.mark.parametrize("how", ["product", "dot", "einsum", "catalogue", "norm", "scale", "shift", "tied"])
def test_what_is_followed(how):
    net, ids = meeting(how)
    pruned = recpress.prune(net, PruneSpec(pattern="dimensions", sparsity=0.5), calibration=[ids]).model
    columns = gone(net.a.weight, pruned.a.weight)
    assert len(columns) == 3 and columns == gone(net.b.weight, pruned.b.weight)
    assert (pruned.a.weight is pruned.b.weight) is (how == "tied")
    with torch.no_grad():
        net.a.weight[:, columns] = net.b.weight[:, columns] = 0
        net.norm.weight[columns] = net.norm.bias[columns] = net.shift[columns] = 0
    torch.testing.assert_close(pruned(ids), net(ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("branch", "torch.export cannot follow the forward of Meets"),
        ("gate", "a.weight: it meets numbers that do not go with it"),
        ("sigmoid", "aten.sigmoid.default is not zero at zero"),
        ("mean", "a mean divides by how many there are"),
        ("softmax", "aten.softmax.int is not followed"),
        ("cumulative", "aten.cumsum.default is not followed"),
        ("formula", "is off by .* embedding_dim in a formula"),
        ("view", "without 3 dimensions of its tables the model fails .*shape"),
    ],
)
def test_what_cannot_be_followed_is_refused(how, why):
    net, ids = meeting(how)
    before = copy.deepcopy(net.state_dict())
    spec = PruneSpec(pattern="dimensions", sparsity=0.5, keep=("b",) if how == "mean" else ())
    with pytest.raises(PruningError, match=why):
        recpress.prune(net, spec, calibration=[ids])
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())


def test_a_table_that_is_given_out_stays_and_others_shrink():
    net, ids = meeting("out")
    pruned = recpress.prune(net, PruneSpec(pattern="dimensions", sparsity=0.5), calibration=[ids])
    assert pruned.model.a.embedding_dim == 6 and pruned.model.b.embedding_dim == 3
    assert {row.name: row.reason for row in pruned.rows}["a.weight"] == "the model gives it out"


def test_masks_move_with_their_columns():
    net, inputs = made("dcn")
    pruned = recpress.prune(net, PruneSpec(pattern="unstructured", sparsity=0.5)).model
    fewer = recpress.prune(pruned, HALF, calibration=[inputs]).model
    assert torch.equal(masks.masks(fewer)["crosses.0.weight"], fewer.crosses[0].weight != 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": 0.95}, "sparsity 0.95 leaves nothing of 'tables.0.weight', of 8 dimensions"),
        ({"sparsity": 1.0}, "sparsity is 1.0; give a share over 0 and under 1"),
        ({"sparsity": -0.5}, "sparsity is -0.5"),
        ({}, "pattern 'dimensions' does not say how much goes"),
        ({"sparsity": 0.5, "threshold": 0.1}, "both sparsity and threshold"),
        ({"sparsity": 0.5, "ranking": "row"}, "dimensions have no rows"),
        ({"sparsity": 0.5, "criterion": "magnitude"}, "allowed there are ablation, weight-norm"),
        ({"sparsity": 0.5, "keep": ("weights*", "nothing")}, "keep 'nothing' matches no table .* 'tables.0'"),
        ({"sparsity": 0.5, "keep": ("tables.*",)}, "no dimension .* can be removed: .*weights.0.weight: it has one"),
    ],
)
def test_bad_input(given, message):
    net, inputs = made("deepfm")
    with pytest.raises(PruningError, match=message):
        recpress.prune(net, PruneSpec(pattern="dimensions", **given), calibration=[inputs])


def test_without_inputs_or_a_graph_nothing_is_cut():
    net, inputs = made("deepfm")
    with pytest.raises(PruningError, match="dimensions are followed and proved on inputs; give calibration"):
        recpress.prune(net, HALF)
    with pytest.raises(PruningError, match="no dimension of this model's tables can be removed: it looks up none"):
        recpress.prune(nn.Linear(3, 1), HALF, calibration=[inputs[0]])
