"""Weights that go while finetune trains: by a schedule, in any criterion, kept only once it has ended."""

import copy

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import recpress
from recpress import Pruner, PruneSpec, Recipe
from recpress.errors import PruningError, RecipeError, TrainingError
from recpress.layers import Int8Sparse24Linear
from recpress.pruning.schedules import Constant, Polynomial, Steps
from recpress_kernels.formats.sparse24 import Sparse24, decompress

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN, VALID = ([(small_inputs(64, seed=s), torch.zeros(64)) for s in seeds] for seeds in (range(6), (50, 51)))
GIVEN = {"epochs": 4, "patience": 1, "lr": 1e-3, "control": False, "progress": False}
TWO_OF_FOUR = Recipe(linear="int8-24", prune=PruneSpec(permute="auto"))


def zeros(layer: nn.Module) -> int:
    if isinstance(layer, Int8Sparse24Linear):
        return int((decompress(Sparse24(layer.values, layer.indices, layer.in_features)) == 0).sum())
    return int((layer.weight == 0).sum())


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "movement", "taylor", "gradient"])
def test_two_of_four_come_while_it_trains_and_are_stored_so(criterion):
    dense, recipe = small_model(), Recipe(linear="int8-24", prune=PruneSpec(criterion=criterion, permute="auto"))
    before = copy.deepcopy(dense.state_dict())
    tuned = recpress.finetune(dense, recipe, TRAIN, VALID, gradual=True, **GIVEN)
    assert all(torch.equal(t, before[name]) for name, t in dense.state_dict().items()), "the model is as it was"
    assert isinstance(tuned.model.top[0], Int8Sparse24Linear) and zeros(tuned.model.top[0]) >= 24 * 16
    assert tuned.report.parameters == sum(p.numel() for p in dense.parameters())
    rows = {row.name: row for row in tuned.report.pruning}
    assert set(rows) == set(dict(dense.named_parameters()))
    assert rows["top.0.weight"].reason == f"2:4 by {criterion}" and rows["top.0.weight"].zeros >= 24 * 16
    assert rows["tables.0.weight"].reason.startswith("it is the weight of a Embedding;")
    of_layer = {row.names[0]: row for row in tuned.report.rows}
    assert of_layer["top.0"].pruned == f"{rows['top.0.weight'].zeros} of {24 * 33} parameters zero"


def test_the_share_of_each_layer_is_that_of_the_end_not_of_a_guess_before():
    recipe = Recipe(prune=PruneSpec(pattern="unstructured", sparsity=0.5, ranking="global", criterion="movement"))
    train = [(inputs, torch.ones(64)) for inputs, _ in TRAIN]
    tuned = recpress.finetune(small_model(), recipe, train, VALID, gradual=True, loss="labels", **GIVEN)
    pruned = [row for row in tuned.report.pruning if row.status == "pruned"]
    assert sum(row.zeros for row in pruned) == sum(row.before for row in pruned) // 2
    at_once = recpress.prune(small_model(), recipe.prune.model_copy(update={"criterion": "magnitude"})).rows
    assert [row.zeros for row in pruned] != [row.zeros for row in at_once if row.status == "pruned"]
    for row in pruned:
        layer = row.name.removesuffix(".weight")
        assert zeros(tuned.model.get_submodule(layer)) >= row.zeros
        said = next(r.pruned for r in tuned.report.rows if r.names[0] == layer)
        assert said.startswith(f"{row.zeros} of ")


def test_only_passes_after_the_schedule_are_kept_and_patience_waits_for_it():
    late = Steps({0: 0.25, 20: 0.5})  # in the last pass of six steps; all are worse than the model before them
    tuned = recpress.finetune(small_model(), TWO_OF_FOUR, TRAIN, VALID, gradual=late, **GIVEN | {"lr": 1e-6})
    run = tuned.report.training.run
    losses = [epoch.valid_loss for epoch in run.epochs]
    assert losses[0] < losses[1] < losses[4] and run.best.number == 4, "with a patience of one pass"


def test_training_begins_with_all_weights_and_the_report_compares_with_pruning_at_once():
    dense, metric = small_model(), lambda model: {"first logit": float(model(*VALID[0][0])[0])}
    tuned = recpress.finetune(dense, TWO_OF_FOUR, TRAIN, VALID, gradual=Constant(0.5, 6), evaluate=metric, **GIVEN)
    first, second = tuned.report.training.run.epochs[:2]
    whole = recpress.prepare(dense, Recipe(), calibration=[TRAIN[0][0]])
    with torch.no_grad():
        floor = sum(float(bce(dense(*x), torch.sigmoid(dense(*x)))) for x, _ in VALID) / 2
        quantised = sum(float(bce(whole(*x), torch.sigmoid(dense(*x)))) for x, _ in VALID) / 2
        at_once = recpress.compress(dense, TWO_OF_FOUR, calibration=[x for x, _ in TRAIN]).model(*VALID[0][0])[0]
    assert abs(first.valid_loss - floor) < 10 * abs(quantised - floor) + 1e-5 < abs(second.valid_loss - floor) + 1e-4
    assert tuned.report.training.quality_post_training["first logit"] == pytest.approx(float(at_once), abs=1e-4)


def test_in_a_loop_of_the_users_own_with_batch_norms_folded():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1)).train()
    x = torch.randn(256, 16)
    for _ in range(5):
        dense(x)
    dense.eval()
    prepared = recpress.prepare(dense, TWO_OF_FOUR, gradual=True)
    with torch.no_grad():
        assert (prepared(x) - dense(x)).abs().max() < 0.05, "nothing was taken out yet"
    pruner = Pruner(prepared, "2:4", Polynomial(0.5, 0, 8, frequency=2), steps=10)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    with pytest.raises(TrainingError, match=r"with gradual=True; give pruned=\.\.\. what recpress.Pruner's finish"):
        recpress.convert(prepared)
    for step in range(10):
        (prepared(x) - dense(x)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step(step)
    done = recpress.convert(prepared, pruned=pruner.finish())
    assert isinstance(done.model[0], Int8Sparse24Linear) and isinstance(done.model[1], nn.Identity)
    with torch.no_grad():
        assert torch.allclose(done.model(x), prepared(x), atol=1e-5)
    assert [row.name for row in done.report.pruning] == [name for name, _ in dense.named_parameters()]
    with pytest.raises(TrainingError, match=r"without gradual; leave pruned out"):
        recpress.convert(recpress.prepare(dense, "int8"), pruned=[])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"recipe": Recipe()}, RecipeError, "prunes nothing that could be pruned gradually; give it prune"),
        ({"prune": {"criterion": "sparsegpt"}}, PruningError, "2:4 by sparsegpt is not done gradually; give n:m or"),
        ({"prune": {"pattern": "units", "sparsity": 0.5}}, PruningError, "units by activation is not done gradually"),
        ({"prune": {"pattern": "unstructured", "threshold": 0.1}}, PruningError, "a threshold of 0.1 is not done"),
        (
            {"gradual": Constant(0.4)},
            PruningError,
            "with sparsity 0.4, and the recipe's is 0.5; make them the same",
        ),
        ({"gradual": Constant(0.5, 24)}, PruningError, r"first fires at step 24 of 24 \(0 to 23\): never"),
        ({"gradual": Polynomial(0.5, 0, 30)}, PruningError, "in the last of 24 steps, not at its final 0.5"),
        ({"train": TRAIN[:1], "epochs": 1}, PruningError, "training has 1 step, which leaves none to prune gradually"),
        (
            {"gradual": False, "prune": {"criterion": "movement"}},
            PruningError,
            "use recpress.finetune with gradual",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_gradually_is_refused(change, error, says):
    recipe = change.pop("recipe", Recipe(linear="int8-24", prune=PruneSpec(**change.pop("prune", {}))))
    given = GIVEN | {"gradual": True, "train": TRAIN, "valid": VALID} | change
    with pytest.raises(error, match=says):
        recpress.finetune(small_model(), recipe, **given)


def test_batches_that_become_fewer_do_not_end_in_half_a_pruning():
    class Fewer(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(self[: len(self) if self.passes < 2 else 1])

    late = Constant(0.5, 20)
    with pytest.raises(TrainingError, match=r"of 24 that .* promised, and pruning is at sparsity 0\.0 of 0\.5"):
        recpress.finetune(small_model(), TWO_OF_FOUR, Fewer(TRAIN), VALID, gradual=late, **GIVEN)
