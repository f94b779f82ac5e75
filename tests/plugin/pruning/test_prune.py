"""Pruning in one step: what each criterion takes, what is skipped and why, and the way to the artifact."""

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import recpress
from recpress import PruneSpec, Recipe
from recpress.errors import CalibrationError, PruningError
from recpress.pruning import masks
from recpress_kernels.int8_mlp import choice

LAYERS = ("bottom.0", "bottom.2", "top.0", "top.2")


def loss(model: nn.Module, item: tuple) -> torch.Tensor:
    return binary_cross_entropy_with_logits(model(*item), (item[0][:, 0] > 0).float())


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "taylor", "wanda", "sparsegpt"])
def test_every_criterion_makes_every_layer_2_4_and_none_alike(criterion):
    model = small_model().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    given = {"calibration": [small_inputs(64), small_inputs(64, seed=1)], "loss": loss}
    pruned = recpress.prune(model, PruneSpec(criterion=criterion), **given)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()), "the model is as it was"
    assert pruned.model.training and not any(p.grad is not None for p in model.parameters())
    for layer in LAYERS:
        weight = pruned.model.get_submodule(layer).weight.detach()
        padded = nn.functional.pad(weight, (0, -weight.shape[1] % 4)).view(len(weight), -1, 4)
        assert (padded[:, : weight.shape[1] // 4] != 0).sum(dim=2).eq(2).all()
    plain = recpress.prune(model, "2:4").model.top[0].weight
    assert torch.equal(plain, pruned.model.top[0].weight) == (criterion == "magnitude")


def test_rows_add_up_to_the_model_and_say_why():
    model = small_model()
    model.tied = nn.Linear(8, 40, bias=False)
    model.tied.weight = model.tables[0].weight
    model.small = nn.Linear(3, 2)
    rows = {row.name: row for row in recpress.prune(model, PruneSpec(keep=("top.2",))).rows}
    assert list(rows) == [name for name, _ in model.named_parameters()]
    assert sum(row.before for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert {name for name, row in rows.items() if row.status == "pruned"} == {
        f"{layer}.weight" for layer in LAYERS if layer != "top.2"
    }
    assert rows["top.0.weight"].zeros == 24 * 16 and rows["top.0.weight"].reason == "2:4 by magnitude"
    assert rows["bottom.0.weight"].zeros == 16 * 2, "of five inputs the last is a group of its own"
    assert rows["top.2.weight"].reason == "keep 'top.2'"
    assert rows["small.weight"].reason == "it has 3 inputs, fewer than the 4 of a group"
    assert rows["norm.weight"].reason == "it is the weight of a LayerNorm; weights of linear layers are pruned"
    assert "Embedding" in rows["tables.0.weight"].reason
    shared = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    shared[1].weight = shared[0].weight
    (row, *_) = recpress.prune(shared, "2:4").rows
    assert row.status == "kept" and row.reason.startswith("it is shared by 0.weight, 1.weight")


def test_thresholds_and_medians():
    model = small_model()
    rows = recpress.prune(model, PruneSpec(pattern="unstructured", threshold=0.1)).rows
    (top,) = (row for row in rows if row.name == "top.0.weight")
    assert top.zeros == int((model.top[0].weight.abs() <= 0.1).sum()) and top.threshold == 0.1
    spec = PruneSpec(pattern="unstructured", criterion="gradient", threshold="median")
    given = {"calibration": [small_inputs(64)], "loss": loss}
    (top,) = (row for row in recpress.prune(model, spec, **given).rows if row.name == "top.0.weight")
    assert top.threshold > 0 and abs(top.zeros - top.before // 2) <= 1
    with torch.no_grad():
        model.top[0].bias[:16] = -100  # 16 of 24 units are dead: the median is 0
    pruned = recpress.prune(model, spec, **given)
    (top,) = (row for row in pruned.rows if row.name == "top.0.weight")
    assert top.threshold == 0 and top.zeros == top.before // 2 and "median is 0: by rank" in top.reason
    weight = pruned.model.top[0].weight
    assert (weight[16:] != 0).all(), "what has a gradient goes last"
    with pytest.raises(PruningError, match="no weight of layer 'bottom.0' is more than the threshold 9.0"):
        recpress.prune(model, PruneSpec(pattern="unstructured", threshold=9.0))


def test_nothing_is_learned_from_gradients_that_are_none_or_zero():
    spec, model = PruneSpec(criterion="gradient"), small_model()
    with pytest.raises(PruningError, match="no gradients were computed; give calibration"):
        recpress.prune(model, spec)
    with pytest.raises(PruningError, match="calibration holds no batches"):
        recpress.prune(model, spec, calibration=[], loss=loss)
    with pytest.raises(PruningError, match="layer 'top.0' had no gradient in all batches"):
        recpress.prune(model, spec, calibration=[small_inputs(8)], loss=lambda m, x: m.bottom(x[0]).mean())
    with torch.no_grad():
        model.top[0].bias.fill_(-100)
    with pytest.raises(PruningError, match="layer 'bottom.0' had zero gradients alone"):
        recpress.prune(model, spec, calibration=[small_inputs(8)], loss=loss)
    with pytest.raises(PruningError, match="loss of calibration item 0 is nan"):
        recpress.prune(model, spec, calibration=[small_inputs(8)], loss=lambda m, x: m(*x).mean() * float("nan"))
    for p in model.parameters():
        p.requires_grad_(False)
    model = small_model().requires_grad_(False)
    recpress.prune(model, spec, calibration=[small_inputs(8)], loss=loss)  # frozen weights are judged too


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"pattern": "2 of 4"},
            "pattern is '2 of 4'; allowed are .*'dimensions', 'heads' and n:m",
        ),
        ({"pattern": "2:4", "sparsity": 0.5}, "says how much goes; leave sparsity out"),
        ({"pattern": "2:4", "ranking": "global"}, "ranking 'global' has no meaning in groups"),
        ({"pattern": "unstructured", "sparsity": 1.0}, "sparsity is 1.0; give a share over 0 and under 1"),
        ({"pattern": "unstructured", "sparsity": 0.5, "threshold": 1.0}, "give one of them"),
        ({"pattern": "unstructured", "threshold": "median"}, "threshold 'median' does not fit magnitude"),
        ({"pattern": "units", "criterion": "wanda"}, "criterion 'wanda' does not fit pattern 'units'"),
        ({"pattern": "unstructured", "criterion": "sparsegpt", "sparsity": 0.5, "ranking": "row"}, "a block of inputs"),
        ({"criterion": "sparsegpt", "permute": True}, "permute compares all inputs' scores at once"),
        ({"sparcity": 0.5}, "'sparcity'.*allowed are: pattern, criterion"),
    ],
    ids=str,
)
def test_specs_that_mean_nothing_are_refused(given, says):
    with pytest.raises(PruningError, match=says):
        PruneSpec(**given)


def test_calls_that_cannot_be_done_are_refused():
    model = small_model()
    for spec, says in (
        (PruneSpec(criterion="wanda"), "wanda judges by the layers' inputs; give calibration"),
        (PruneSpec(criterion="movement"), "use recpress.Pruner"),
        (PruneSpec(pattern="unstructured"), "does not say how much goes; give sparsity"),
        (PruneSpec(keep=("none*",)), "keep 'none\\*' matches no linear layer; the model's are: 'bottom.0'"),
        (PruneSpec(keep=("*",)), "nothing of this model can be pruned to 2:4"),
    ):
        with pytest.raises(PruningError, match=says):
            recpress.prune(model, spec)
    with pytest.raises(CalibrationError, match="calibration holds no inputs"):
        recpress.prune(model, PruneSpec(criterion="wanda"), calibration=[])
    with torch.no_grad():
        model.top[0].weight[2, 3] = float("nan")
    with pytest.raises(PruningError, match=r"layer 'top.0' has the weight nan at \[2, 3\]"):
        recpress.prune(model, "2:4")


def test_layers_that_calibration_does_not_reach_stay_and_say_so():
    model = small_model()
    model.unused = nn.Linear(8, 8)
    rows = {
        row.name: row for row in recpress.prune(model, PruneSpec(criterion="wanda"), calibration=[small_inputs(9)]).rows
    }
    assert rows["unused.weight"].status == "kept" and "no calibration input" in rows["unused.weight"].reason
    assert rows["unused.weight"].zeros == 0 and rows["top.0.weight"].status == "pruned"


def test_the_whole_way_to_2_4_kernels(tmp_path, monkeypatch):
    model, inputs = small_model(), small_inputs(32)
    recipe = Recipe(linear="int8-24", embedding="int8")
    (dense_row,) = (r for r in recpress.compress(model, recipe).report.rows if "top.0" in r.names)
    assert dense_row.status == "kept" and "prune it first" in dense_row.reason
    pruned = recpress.prune(model, "2:4")
    compressed = recpress.compress(pruned.model, recipe, calibration=[inputs])
    rows = {row.names[0]: row for row in compressed.report.rows}
    assert all("2:4" in rows[layer].scheme for layer in LAYERS)
    recpress.export(compressed, tmp_path / "a", example_inputs=inputs, input_names=("dense", "sparse"))
    monkeypatch.setattr(choice.Table, "judge", lambda _, n, k, *__: choice.Choice(n, k, True, (16, 16), {1: 1.25}))
    loaded = recpress.load(tmp_path / "a")
    assert len(loaded.choices) == len(LAYERS) and all(chosen.sparse24 for chosen in loaded.choices)
    got = loaded.score({"dense": inputs[0], "sparse": inputs[1]})["output"]
    with torch.no_grad():
        torch.testing.assert_close(got, pruned.model(*inputs), rtol=0.1, atol=0.02)


def test_smaller_layers_and_masked_ones_that_are_kept_are_exported(tmp_path):
    inputs = small_inputs(8)
    smaller = recpress.prune(small_model(), PruneSpec(pattern="units", sparsity=0.5), calibration=[inputs])
    pruned = recpress.prune(smaller.model, "2:4")
    compressed = recpress.compress(pruned.model, "int8-tables")
    recpress.export(compressed, tmp_path / "a", example_inputs=inputs, input_names=("dense", "sparse"))
    got = recpress.load(tmp_path / "a").score({"dense": inputs[0], "sparse": inputs[1]})["output"]
    torch.testing.assert_close(got, compressed.model(*inputs).detach(), rtol=1e-5, atol=1e-6)
    assert masks.masks(pruned.model) and not masks.masks(masks.finish(pruned.model))
