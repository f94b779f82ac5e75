"""What pruning is asked for and cannot do: a clear error, or a skip with its name and reason, never silence."""

import math

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress import PruneSpec, Recipe
from recpress.errors import PruningError, RecipeError
from recpress.pruning import oneshot

BATCHES = [(small_inputs(32), torch.arange(32) % 2.0)]


class Odd(nn.Module):
    """Layers with parameters that are no weights, a tied one, and one too small for a group of four."""

    def __init__(self) -> None:
        super().__init__()
        self.index = nn.Parameter(torch.arange(8).flip(0), requires_grad=False)
        self.keep = nn.Parameter(torch.rand(8) > 0.5, requires_grad=False)
        self.register_buffer("places", torch.arange(8))
        self.table, self.tied = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.tied.weight = self.table.weight
        self.codes = nn.Linear(8, 8, bias=False)
        self.codes.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
        self.small, self.top = nn.Linear(3, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.small(x)[:, self.index] * self.keep + nn.functional.linear(
            x[:, :1].expand(-1, 8), self.codes.weight * 1.0
        )
        return self.tied(self.top(x[:, self.places])).sum(dim=1)


@pytest.mark.parametrize("sparsity", [-0.1, 0.0, 1.0, 1.5, math.nan, math.inf, "half"], ids=str)
@pytest.mark.parametrize("pattern", ["unstructured", "units"])
def test_sparsity_outside_its_range(pattern, sparsity):
    with pytest.raises(PruningError, match="sparsity"):
        PruneSpec(pattern=pattern, sparsity=sparsity)
    with pytest.raises(RecipeError, match="'prune': what to prune: .*sparsity"):
        Recipe(prune={"pattern": pattern, "sparsity": sparsity})


def test_no_layer_is_large_enough_for_the_pattern():
    names = "bottom.0.weight: it has 5 inputs, fewer than the 64 of a group"
    with pytest.raises(PruningError, match=f"nothing of this model can be pruned to 2:64: {names}"):
        recpress.prune(small_model(), "2:64")
    with pytest.raises(PruningError, match=names):
        recpress.finetune(small_model(), Recipe(prune="2:64"), BATCHES, BATCHES)
    with pytest.raises(PruningError, match="sparsity 0.99 leaves no unit of layer 'bottom.0'; give less"):
        recpress.compress(
            small_model(), Recipe(prune={"pattern": "units", "criterion": "weight-norm", "sparsity": 0.99})
        )


@pytest.mark.parametrize("prune", ["2:4", {"pattern": "unstructured", "sparsity": 0.5}], ids=str)
def test_what_is_no_weight_is_tied_or_too_small_is_left_with_its_reason(prune):
    torch.manual_seed(0)
    model = Odd().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    made = recpress.compress(model, Recipe(linear="keep", embedding="keep", prune=prune))
    rows = {row.name: row for row in made.report.pruning}
    assert list(rows) == [name for name, _ in model.named_parameters()]
    reasons = {
        "index": "it is the index of a Odd; weights of linear layers are pruned",
        "keep": "it is the keep of a Odd; weights of linear layers are pruned",
        "codes.weight": "it is torch.int8; floats are pruned",
        "table.weight": "it is the weight of a Embedding; weights of linear layers are pruned",
    }
    if prune == "2:4":
        reasons["small.weight"] = "it has 3 inputs, fewer than the 4 of a group"
    assert {name: rows[name].reason for name in reasons} == reasons
    assert all(rows[name].status == "kept" for name in reasons)
    assert {name for name, row in rows.items() if row.status == "pruned"} == {"top.weight", "small.weight"} - {*reasons}
    changed = {name for name, t in made.model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {name for name, row in rows.items() if row.status == "pruned"}
    assert "places" in before and made.report.parameters == sum(row.before for row in rows.values())
    with pytest.raises(
        PruningError, match="nothing of this model can be pruned to 2:4: .*codes.weight: it is torch.int8"
    ):
        recpress.prune(model, PruneSpec(keep=("top", "small", "tied")))


def test_a_tied_layer_that_comes_first_says_with_what_it_is_shared():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    model[1].weight = model[0].weight
    rows = {row.name: row for row in recpress.compress(model, "prune-24-int8").report.pruning}
    assert rows["0.weight"].reason == "it is shared by 0.weight, 1.weight; pruning it would change all of them"
    assert rows["0.weight"].zeros == 0 and rows["2.weight"].status == "pruned"


@pytest.mark.parametrize("share", [0.39, 0.5, 0.63])
def test_half_goes_by_the_median_of_gradients_however_many_are_zero(share):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 25, generator=generator) + 0.01
    scores.view(-1)[torch.randperm(1000, generator=generator)[: round(share * 1000)]] = 0
    net = nn.Sequential(nn.Linear(25, 40))
    spec = PruneSpec(pattern="unstructured", criterion="gradient", threshold="median")
    found, _ = oneshot.find(net, spec)
    keep, theta = oneshot.decide(spec, found, {"0": scores}, None)
    assert (theta["0"] == 0) == (share >= 0.5)
    assert int((~keep["0"]).sum()) == 500, "a count, where a threshold of 0 would take all that have no gradient"
    if share > 0.5:
        assert int((scores > 0).sum()) == 370 and keep["0"][scores > 0].all()
        sizes = net[0].weight.detach().abs()
        zero = scores == 0
        assert sizes[zero & keep["0"]].min() >= sizes[zero & ~keep["0"]].max(), "of equal scores the smaller weights go"
