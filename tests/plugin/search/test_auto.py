"""The automatic flow: what it chooses, steps back from, prunes and refuses, on models that were trained for it."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import recpress
from recpress.artifact.manifest import read_manifest
from recpress.errors import QualityGateError, RecipeError, SearchError, TrainingError
from recpress.recipe import Recipe
from recpress.report.paired import paired_auc
from recpress.search.steps_back import step_back
from recpress.search.trial import Found

pytestmark = pytest.mark.usefixtures("one_thread")


class Rater(nn.Module):
    """Users and items, and hidden units on what they have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 16), nn.Embedding(40, 16)
        self.top = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        u, i = self.users(ids[:, 0]), self.items(ids[:, 1])
        return self.top(torch.cat([u * i, u + i], dim=1)).squeeze(1)


def batches(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    taste, kind = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (50, 40))
    found = []
    for _ in range(count):
        ids = torch.stack([torch.randint(0, n, (256,), generator=generator) for n in (50, 40)], dim=1)
        liked = torch.sigmoid(2 * (taste[ids[:, 0]] * kind[ids[:, 1]]).sum(dim=1))
        found.append((ids, torch.bernoulli(liked, generator=generator)))
    return found


TRAIN, VALID, ROWS = batches(12, seed=0), batches(3, seed=1), batches(8, seed=2)


def trained(passes: int) -> nn.Module:
    model = Rater()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(passes):
        for ids, label in TRAIN:
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(model(ids), label).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def good():
    torch.manual_seed(0)
    return trained(passes=20).eval()


def verdicts(found: Found) -> dict[str, str]:
    return {trial.name: trial.verdict for trial in found.trials}


def test_a_model_that_reaches_the_target_is_quantised_and_the_smallest_is_taken(good, capsys):
    before = copy.deepcopy(good.state_dict())
    found = recpress.auto(good, TRAIN, VALID, rows=ROWS, share=0.97)
    assert verdicts(found) == {"original": "original", "int8-tables4": "kept", "int8": "kept"}
    assert all(torch.equal(t, before[name]) for name, t in good.state_dict().items())
    chosen = found.accepted()
    original, smallest, other = found.trials
    assert chosen.report.recipe.name == "int8-tables4" and smallest.bytes < other.bytes < original.bytes
    assert smallest.bytes == sum(t.nbytes for t in chosen.model.buffers()) and found.model is chosen.model
    with torch.no_grad():
        scores = [torch.cat([m(ids) for ids, _ in ROWS]).double().numpy() for m in (good, chosen.model)]
    by_hand = paired_auc(*scores, torch.cat([label for _, label in ROWS]).double().numpy())
    assert smallest.paired == by_hand and by_hand.low < by_hand.difference < by_hand.high
    assert found.least == 0.97 * by_hand.before
    assert chosen.report.quality_before == {"AUC": by_hand.before}
    assert chosen.report.quality_after == {"AUC": by_hand.after}
    text = capsys.readouterr().out
    assert "chosen: int8-tables4" in text and found.refusal == ""


def test_a_recipe_that_falls_short_is_made_gentler_where_the_error_is(good):
    model = copy.deepcopy(good)
    with torch.no_grad():  # a value in each row of items that takes most of int4's range, and that no unit looks at
        model.items.weight[:, 0] = 20 * torch.randn(40, generator=torch.Generator().manual_seed(0)).sign()
        model.top[0].weight[:, [0, 16]] = 0
    given = {"rows": ROWS, "share": 0.99, "candidates": ["int8-tables4"], "show": False}
    found = recpress.auto(model, TRAIN, VALID, **given)
    names = list(verdicts(found))
    assert names[:2] == ["original", "int8-tables4"] and verdicts(found)["int8-tables4"] == "missed"
    assert names[2].startswith("int8-tables4, items int8"), "of most error first"
    recipe = found.accepted().report.recipe
    assert recipe.overrides["items"] == "int8" and recipe.overrides.get("users", "int4") == "int4"
    assert found.trials[-1].verdict == "kept" and found.trials[-1].paired.ratio >= 0.99
    plain = recpress.compress(model, "int8-tables4", calibration=[ids for ids, _ in TRAIN])
    assert "items int4" not in step_back(plain.report.recipe, plain.report.rows).name


def test_steps_back_end_with_what_is_kept():
    calibration = [ids for ids, _ in TRAIN]
    torch.manual_seed(0)
    model, recipe, seen = Rater().eval(), Recipe(name="mine", overrides={"*ms": "int4", "top.*": "keep"}), []
    while recipe is not None:
        rows = recpress.compress(model, recipe, calibration=calibration).report.rows
        recipe = step_back(recipe, rows)
        seen.append(recipe)
    told = [recipe.name.removeprefix("mine, ") for recipe in seen[:-1]]
    assert told[-1].endswith("kept") and len(told) == 3 and seen[-2].overrides["top.0"] == "keep"
    assert recpress.compress(model, "int8").report.rows and step_back(Recipe(), ()) is None


def test_a_model_that_falls_short_is_pruned_trained_and_then_quantised(tmp_path):
    def train() -> nn.Module:
        return trained(passes=6)

    given = {"rows": ROWS, "at_least": 0.63, "epochs": 20, "lr": 3e-3, "show": False}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = recpress.auto(train, TRAIN, VALID, **given)
    assert torch.equal(torch.get_rng_state(), state), "the generator is put back"
    seen = verdicts(found)
    assert found.trials[0].reason.startswith("falls 0.") and found.trials[0].seconds > 0
    assert list(seen)[1] == "original, trained the same way" and seen[list(seen)[1]] == "control"
    assert seen["units by activation, fine-tuned"] == seen["structured-50-int8-tables4"] == "kept"
    assert list(seen).count("units by activation, fine-tuned") == 1, "two recipes prune alike, and one training does"
    assert seen["2:4 by magnitude, fine-tuned"] == seen["prune-24-int8"] == "kept"
    chosen, report = found.accepted(), found.accepted().report
    assert report.bytes_after == min(trial.bytes for trial in found.trials if trial.verdict == "kept")
    assert report.recipe.prune is not None and report.recipe.embedding == "int4"
    assert report.parameters == sum(p.numel() for p in found.original.parameters())
    assert sum(row.before for row in report.pruning) == report.parameters
    assert report.training.objective == "labels" and report.training.run.steps > 0
    assert report.bytes_before == found.trials[0].bytes
    recpress.export(chosen, tmp_path / "a", example_inputs=(ROWS[0][0],), input_names=("ids",))
    assert read_manifest(tmp_path / "a").quality_after == {"AUC": report.quality_after["AUC"]}
    again = recpress.auto(train, TRAIN, VALID, **given)
    assert [(t.name, t.verdict, t.paired, t.bytes) for t in again.trials] == [
        (t.name, t.verdict, t.paired, t.bytes) for t in found.trials
    ], "the same seed, the same table"
    other = recpress.auto(train, TRAIN, VALID, **given | {"seed": 1, "candidates": ["structured-50"]})
    assert other.trials[0].paired != found.trials[0].paired


def test_what_is_out_of_reach_is_refused_with_how_far(good, capsys):
    found = recpress.auto(good, TRAIN, VALID, rows=ROWS, at_least=0.999, epochs=1, candidates=["structured-50-int8"])
    assert found.compressed is None and found.model is good
    assert found.trials[-1].reason == "units by activation, fine-tuned: missed" and found.trials[-1].paired is None
    (pruned,) = (trial for trial in found.trials if trial.name == "units by activation, fine-tuned")
    short = f"units by activation, fine-tuned {pruned.paired.after:.5f}, {0.999 - pruned.paired.after:.5f} short"
    with pytest.raises(QualityGateError, match="no compressed model reaches AUC 0.99900") as refused:
        found.accepted()
    assert short in str(refused.value) and "chosen: none: the original stays" in capsys.readouterr().out


def test_budgets_leave_out_what_they_do_not_cover(good):
    given = {"rows": ROWS, "share": 0.5, "candidates": ["structured-50", "int8"], "epochs": 2, "show": False}
    steps = 2 * len(TRAIN) * 2  # of the first training and its control
    found = recpress.auto(good, TRAIN, VALID, steps=steps - 1, **given)
    told = {trial.name: trial.reason for trial in found.trials if trial.verdict == "not tried"}
    assert told["units by activation, fine-tuned"] == f"it may take {steps} steps, and 0 of {steps - 1} are spent"
    assert found.accepted().report.recipe.name == "int8", "what is not trained costs no steps"
    found = recpress.auto(good, TRAIN, VALID, steps=steps, **given)
    assert verdicts(found)["units by activation, fine-tuned"] == "kept"
    assert sum(trial.steps for trial in found.trials) <= steps
    found = recpress.auto(good, TRAIN, VALID, seconds=0.0, **given)
    assert found.compressed is None and "0.0 of 0.0 seconds are spent" in found.refusal
    found = recpress.auto(good, rows=ROWS, share=0.5, candidates=["structured-50", "int8"], show=False)
    assert (
        "train and valid are not given" in {t.name: t.reason for t in found.trials}["units by activation, fine-tuned"]
    )


def test_metrics_of_one_s_own_with_an_interval_where_there_are_values_to_pair(good):
    def evaluate(model: nn.Module) -> dict[str, object]:
        assert not model.training
        right = torch.cat([((model(ids) > 0) == (label > 0)).float() for ids, label in ROWS])
        return {"accuracy": right, "mean": right.mean()}

    given = {"evaluate": evaluate, "share": 0.98, "candidates": ["int8"], "show": False}
    pairs, alone = (recpress.auto(good, TRAIN, VALID, metric=metric, **given) for metric in ("accuracy", "mean"))
    first, second = (found.trials[-1].paired for found in (pairs, alone))
    assert first.after == pytest.approx(second.after) and first.low <= first.difference <= first.high
    assert math.isnan(second.low) and alone.trials[-1].verdict == "kept"
    with pytest.raises(SearchError, match="evaluate gives no 'hits'; it gives: accuracy, mean"):
        recpress.auto(good, TRAIN, VALID, metric="hits", **given)


def test_what_a_recipe_says_of_tables_is_done_after_pruning(good):
    recipe = Recipe(name="mine", linear="keep", embedding="keep", prune="2:4", oov={"users": 3})
    given = {"rows": ROWS, "share": 0.5, "candidates": [recipe], "epochs": 1, "show": False}
    found = recpress.auto(good, TRAIN, VALID, **given)
    assert list(verdicts(found).values()) == ["original", "control", "kept", "kept"]
    given["candidates"] = [recipe.model_copy(update={"linear": "int8-24"})]
    report = recpress.auto(good, TRAIN, VALID, **given).accepted().report
    (users,) = (row for row in report.rows if row.names == ("users",))
    (top,) = (row for row in report.rows if row.names == ("top.0",))
    assert users.oov_row == 3 and "2:4" in top.scheme and top.pruned == "512 of 1,056 parameters zero"


def test_a_candidate_that_cannot_be_made_is_a_line(good):
    model = nn.Sequential(good.users, nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0)).eval()
    rows = [(ids[:, :1], label) for ids, label in ROWS]
    found = recpress.auto(model, rows, rows, rows=rows, share=0.9, candidates=["structured-50", "int8"], show=False)
    told = {trial.name: trial for trial in found.trials}
    assert told["units by activation, fine-tuned"].verdict == "not possible"
    assert "no units of this model can be removed" in told["units by activation, fine-tuned"].reason
    assert found.accepted().report.recipe.name == "int8"


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, SearchError, "give one of at_least and share"),
        ({"share": 0.9, "at_least": 0.7}, SearchError, "give one of at_least and share"),
        ({"share": 1.2}, SearchError, "share is 1.2; give the share"),
        ({"at_least": math.nan}, SearchError, "at_least is nan"),
        ({"share": 0.9, "rows": None}, SearchError, "give one of rows, whose AUC is judged, and evaluate"),
        ({"share": 0.9, "evaluate": dict}, SearchError, "give one of rows"),
        ({"share": 0.9, "metric": "logloss"}, SearchError, "of rows the AUC is judged; give evaluate"),
        ({"share": 0.9, "rows": []}, SearchError, "rows hold no batches"),
        ({"share": 0.9, "rows": [(ROWS[0][0], torch.ones(256))]}, SearchError, "AUC needs rows of both labels"),
        ({"share": 0.9, "valid": None}, SearchError, "train and valid belong together"),
        ({"share": 0.9, "train": iter(TRAIN)}, TrainingError, "used up after one pass"),
        ({"share": 0.9, "candidates": []}, SearchError, "candidates is empty"),
        ({"share": 0.9, "candidates": ["int3"]}, RecipeError, "no preset is called 'int3'"),
        ({"share": 0.9, "model": lambda: None}, SearchError, "gives a NoneType; it must return the nn.Module"),
    ],
    ids=str,
)
def test_what_cannot_be_judged_is_refused(good, given, error, says):
    with pytest.raises(error, match=says):
        recpress.auto(**{"model": good, "train": TRAIN, "valid": VALID, "rows": ROWS, "show": False} | given)


def test_figures_that_are_not_finite_are_refused(good):
    broken = copy.deepcopy(good)
    with torch.no_grad():
        broken.top[4].bias.fill_(float("nan"))
    with pytest.raises(SearchError, match="that are not finite; look for NaN"):
        recpress.auto(broken, rows=ROWS, share=0.9, show=False)
    with pytest.raises(SearchError, match="mean of the original is -1.0, of which no share can be kept"):
        recpress.auto(good, evaluate=lambda _: {"mean": -1.0}, metric="mean", share=0.9, show=False)
