"""Whole units: chains that are certain, removal that equals masking, and orders that change nothing."""

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn
from torch.nn import functional

import recpress
from recpress import PruneSpec
from recpress.errors import PruningError
from recpress.pruning import chains, criteria, masks, permute, targets
from recpress.zoo.dlrm import DLRM


def dlrm() -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    net = DLRM(num_dense=7, table_rows=(30, 5), bottom=(32, 24), top=(40, 16), dropout=0.1).eval()
    return net, (torch.randn(64, 7), torch.randint(0, 5, (64, 2)))


def test_chains_of_a_dlrm():
    found = [(chain.first_name, chain.last_name) for chain in chains.find(dlrm()[0])]
    assert found == [("bottom.0", "bottom.2"), ("bottom.2", "bottom.4"), ("top.0", "top.3"), ("top.3", "top.6")]


@pytest.mark.parametrize(
    ("criterion", "ranking"), [("activation", "layer"), ("weight-norm", "layer"), ("weight-norm", "global")]
)
def test_removal_is_masking(criterion, ranking):
    net, inputs = dlrm()
    spec = PruneSpec(pattern="units", criterion=criterion, sparsity=0.5, ranking=ranking)
    pruned = recpress.prune(net, spec, calibration=[inputs])
    units = {name: pruned.model.get_submodule(name).out_features for name in ("bottom.0", "bottom.2", "top.0", "top.3")}
    assert sum(units.values()) == 56 and (ranking == "global" or list(units.values()) == [16, 12, 20, 8])
    for name, behind in (("bottom.0", "bottom.2"), ("bottom.2", "bottom.4"), ("top.0", "top.3"), ("top.3", "top.6")):
        biases = pruned.model.get_submodule(name).bias
        gone = ~torch.isin(net.get_submodule(name).bias, biases)
        assert int(gone.sum()) == len(gone) - units[name]
        with torch.no_grad():
            net.get_submodule(behind).weight[:, gone] = 0
    torch.testing.assert_close(pruned.model(*inputs), net(*inputs), rtol=1e-5, atol=1e-6)
    rows = {row.name: row for row in pruned.rows}
    assert {name: row.after for name, row in rows.items()} == {n: p.numel() for n, p in pruned.model.named_parameters()}
    assert sum(row.before for row in rows.values()) == sum(p.numel() for p in net.parameters())
    assert rows["bottom.4.bias"].reason == "no unit of its layer went"
    assert "Embedding" in rows["tables.0.weight"].reason


def test_units_by_activation_go_by_what_they_pass_on():
    net, inputs = dlrm()
    with torch.no_grad():
        net.top[0].weight[:8] *= 10
        net.top[0].bias[:8] = -1000  # large weights, dead units
    pruned = recpress.prune(
        net, PruneSpec(pattern="units", sparsity=0.2, keep=("bottom*", "top.3")), calibration=[inputs]
    )
    assert pruned.model.top[0].out_features == 32 and not (pruned.model.top[0].bias == -1000).any()
    torch.testing.assert_close(pruned.model(*inputs), net(*inputs), rtol=1e-5, atol=1e-6)
    by_norm = PruneSpec(pattern="units", criterion="weight-norm", sparsity=0.2, keep=("bottom*", "top.3"))
    assert (recpress.prune(net, by_norm, calibration=[inputs]).model.top[0].bias == -1000).sum() == 8


class Seen(nn.Module):
    """Units that are seen by more than the layer behind them, in the way that ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.how = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1), how
        self.norm = nn.LayerNorm(8)
        if how == "tied":
            self.b.weight = self.a.weight
        if how == "named":
            self.again = self.a
        if how == "hooked":
            self.a.register_forward_hook(lambda *_: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.a(x))
        if self.how == "twice":
            h = self.a(h)
        if self.how == "norm":
            h = self.norm(h)
        y = torch.relu(self.b(h))
        y = y + h if self.how == "residual" else y
        return self.c(y) if self.how != "returned" else (self.c(y), h)


@pytest.mark.parametrize("how", ["tied", "named", "hooked", "twice", "norm", "residual", "returned"])
def test_units_seen_elsewhere_are_in_no_chain(how):
    found = [chain.first_name for chain in chains.find(Seen(how))]
    assert "a" not in found
    assert [chain.first_name for chain in chains.find(Seen("plain"))] == ["a", "b"]


def test_a_forward_that_cannot_be_followed_is_refused():
    net = nn.ModuleDict({"a": nn.Linear(4, 4)})  # it has no forward
    with pytest.raises(PruningError, match="torch.fx cannot follow the forward of ModuleDict"):
        chains.find(net)
    with pytest.raises(PruningError, match="no units of this model can be removed"):
        recpress.prune(nn.Linear(4, 4), PruneSpec(pattern="units", criterion="weight-norm", sparsity=0.5))


def test_another_order_of_hidden_units_computes_the_same_and_keeps_more():
    net, inputs = dlrm()
    plain, better = (recpress.prune(net, PruneSpec(permute=permute)).model for permute in (False, True))
    kept = [float(m.top[3].weight.detach().abs().sum()) for m in (plain, better)]
    assert kept[1] > 1.02 * kept[0]
    assert torch.equal((better.top[3].weight != 0).view(16, -1, 4).sum(dim=2), torch.full((16, 10), 2))
    found = targets.find(net, (), 4)[0]
    with torch.no_grad():
        before = net.double()(inputs[0].double(), inputs[1])
        permute.improve(net, found, {t.name: criteria.score("magnitude", t.weight) for t in found}, (2, 4))
        after = net(inputs[0].double(), inputs[1])
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-13)
    assert not torch.equal(net.top[0].weight.float(), dlrm()[0].top[0].weight), "they did move"


def test_hidden_units_stay_as_they_are_where_the_model_cannot_be_followed():
    net = nn.ModuleDict({"one": nn.Linear(8, 8)})
    plain, same = (recpress.prune(net, PruneSpec(permute=permute)).model for permute in (False, "auto"))
    assert torch.equal(plain["one"].weight, same["one"].weight)
    with pytest.raises(PruningError, match="torch.fx cannot follow"):
        recpress.prune(net, PruneSpec(permute=True))


def test_units_keep_their_masks_when_they_move():
    net, _ = dlrm()
    pruned = recpress.prune(net, PruneSpec(pattern="unstructured", sparsity=0.5)).model
    fewer = recpress.prune(pruned, PruneSpec(pattern="units", criterion="weight-norm", sparsity=0.5)).model
    found = masks.masks(fewer)
    assert found["top.3.weight"].shape == (8, 20)
    assert torch.equal(found["top.3.weight"], fewer.top[3].weight != 0)


def test_layers_called_by_a_recommender_of_other_parts():
    pruned = recpress.prune(small_model(), PruneSpec(pattern="units", sparsity=0.5), calibration=[small_inputs(32)])
    assert pruned.model.bottom[0].out_features == 8 and pruned.model.top[2].in_features == 12
    assert pruned.model(*small_inputs(4)).shape == (4,)
