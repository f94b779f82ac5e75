"""Pruned models are fine-tuned and quantised in training like others, and their masks hold."""

import pytest
import torch
from support.small import small_inputs, small_model
from torch.nn.functional import binary_cross_entropy_with_logits

import recpress
from recpress import Pruner, PruneSpec, Recipe
from recpress.errors import PruningError, RecipeError
from recpress.layers import Int8Sparse24Linear
from recpress.pruning import masks
from recpress.pruning.schedules import Steps
from recpress_kernels.formats.sparse24 import Sparse24, decompress


def batches(count: int, seed: int = 0) -> list:
    return [(small_inputs(64, seed=seed + i), torch.zeros(64)) for i in range(count)]


TRAIN, VALID = batches(6), batches(2, seed=50)


def integers(layer: torch.nn.Module) -> torch.Tensor:
    if isinstance(layer, Int8Sparse24Linear):
        return decompress(Sparse24(layer.values, layer.indices, layer.in_features))
    return layer.weight


@pytest.mark.parametrize(
    ("spec", "scheme"),
    [(PruneSpec(), "int8-24"), (PruneSpec(pattern="unstructured", sparsity=0.6), "int8")],
    ids=["2:4", "unstructured"],
)
def test_masks_hold_through_finetuning_in_int8(spec, scheme):
    dense = small_model()
    pruned = recpress.prune(dense, spec).model
    before = {name: t.clone() for name, t in pruned.state_dict().items()}
    recipe = Recipe(linear=scheme, embedding="keep")
    given = {"teacher": dense, "epochs": 2, "lr": 1e-3, "progress": False}
    tuned = recpress.finetune(pruned, recipe, TRAIN, VALID, **given)
    assert all(torch.equal(t, before[name]) for name, t in pruned.state_dict().items()), "the model is as it was"
    found = masks.masks(pruned)
    for name, keep in found.items():
        weight = integers(tuned.model.get_submodule(name.removesuffix(".weight")))
        assert not weight[~keep].any() and (weight[keep] != 0).float().mean() > 0.9
        control = tuned.control.get_parameter(name)
        assert not control[~keep].any() and not torch.equal(control, before[name]), "and in the control, not quantised"
    assert len(found) == 4 and ("2:4" in tuned.model.top[0].scheme) == (scheme == "int8-24")
    losses = [epoch.valid_loss for epoch in tuned.report.training.run.epochs]
    assert min(losses) < losses[0]


def test_the_teacher_is_the_one_given():
    dense = small_model()
    pruned = recpress.prune(dense, "2:4").model
    recipe = Recipe(linear="int8-24", embedding="keep")
    given = {"epochs": 1, "control": False, "progress": False, "calibration": [TRAIN[0][0]]}
    for teacher in (dense, pruned):
        tuned = recpress.finetune(pruned, recipe, TRAIN, VALID, teacher=teacher, **given)
        prepared = recpress.prepare(pruned, recipe, calibration=[TRAIN[0][0]])
        with torch.no_grad():
            x = [inputs for inputs, _ in VALID]
            expected = [binary_cross_entropy_with_logits(prepared(*i), torch.sigmoid(teacher(*i))) for i in x]
        assert tuned.report.training.run.epochs[0].valid_loss == pytest.approx(float(sum(expected)) / 2, rel=1e-5)


def test_a_model_that_is_quantised_in_training_is_pruned_in_the_same_loop():
    prepared = recpress.prepare(small_model(), Recipe(embedding="keep"))
    pruner = Pruner(prepared, "2:4", Steps({2: 0.25, 5: 0.5}), steps=12)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    for step in range(12):
        inputs, labels = TRAIN[step % len(TRAIN)]
        binary_cross_entropy_with_logits(prepared(*inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step(step)
    assert {row.zeros for row in pruner.finish() if row.name == "top.0.weight"} == {24 * 16}
    weight = recpress.convert(prepared).model.top[0].weight
    assert weight.dtype == torch.int8 and int((weight.view(24, 8, 4) != 0).sum(dim=2).max()) == 2


def test_a_recipe_prunes_first_and_finetuning_distils_from_the_dense_original():
    dense, inputs = small_model(), small_inputs(32)
    once = recpress.compress(dense, "prune-24-int8")
    assert "2:4" in once.model.top[0].scheme
    assert isinstance(recpress.compress(dense, Recipe(linear="int8-24")).model.top[0], torch.nn.Linear)
    assert {row.name: row.reason for row in once.report.pruning}["top.0.weight"] == "2:4 by magnitude"
    assert once.report.parameters == sum(p.numel() for p in dense.parameters())
    recipe = Recipe(linear="int8-24", prune=PruneSpec(criterion="wanda", keep=("top.2",)))
    assert Recipe(**recipe.model_dump()) == recipe
    given = iter([inputs])  # gone through once by pruning and once for the ranges
    assert recpress.compress(dense, recipe, calibration=given).report.rows[-1].status == "kept"
    tuned = recpress.finetune(dense, recipe, TRAIN, VALID, epochs=1, progress=False)
    assert "2:4" in tuned.model.top[0].scheme and (tuned.control.top[0].weight != 0).all()
    assert tuned.report.pruning and tuned.report.training.run.epochs[0].valid_loss > 0
    with pytest.raises(PruningError, match="wanda judges by the layers' inputs; give calibration"):
        recpress.compress(dense, recipe)


@pytest.mark.parametrize(
    ("prune", "says"),
    [
        ("4:2", "'prune': pattern '4:2' keeps 4 of 2"),
        ({"sparcity": 0.5}, "'prune': what to prune: 'sparcity'"),
        ({"pattern": "unstructured"}, "'unstructured' does not say how much goes; give sparsity"),
    ],
    ids=str,
)
def test_recipes_that_cannot_prune_so_are_refused(prune, says):
    with pytest.raises(RecipeError, match=says):
        Recipe(prune=prune)
    assert Recipe(prune="2:4").prune == PruneSpec()
