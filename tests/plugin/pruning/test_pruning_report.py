"""Recipes that prune, over the models of the zoo: every parameter is accounted for, in the report and the artifact."""

import pytest
import torch
from torch import nn

import recpress
from recpress import PruneSpec, Recipe
from recpress.artifact.manifest import read_manifest
from recpress.errors import PruningError, RecipeError
from recpress.recipe import PRESETS
from recpress.report.html import Content, page
from recpress.report.tables import print_manifest, print_report
from recpress.zoo.dcn import DCNv2
from recpress.zoo.deepfm import DeepFM
from recpress.zoo.dlrm import DLRM
from recpress.zoo.sasrec import SASRec
from recpress.zoo.two_tower import TwoTower

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = (30, 20, 9)
SIZES = {"num_dense": 5, "table_rows": ROWS, "dim": 8}
PRUNING = [name for name, recipe in PRESETS.items() if recipe.prune]


def clicks(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, n, (rows,), generator=generator) for n in ROWS]
    return torch.randn(rows, 5, generator=generator), torch.stack(ids, dim=1)


def rankings(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 41, (rows, n), generator=generator) for n in (8, 6))


ZOO = {
    "dlrm": (lambda: DLRM(**SIZES, bottom=(16, 12), top=(24, 16)), clicks),
    "deepfm": (lambda: DeepFM(**SIZES, deep=(24, 16)), clicks),
    "dcn-v2": (lambda: DCNv2(**SIZES, deep=(24, 16)), clicks),
    "two-tower": (lambda: TwoTower(**SIZES, tower=(24, 16), out=8, item_dense=(0, 1), item_tables=(2,)), clicks),
    "sasrec": (lambda: SASRec(num_items=40, length=8, dim=8), rankings),
}


def made(name: str) -> tuple[nn.Module, tuple]:
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    return make().eval(), inputs(64)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("preset", PRUNING)
def test_every_parameter_is_accounted_for(name, preset):
    model, inputs = made(name)
    own = {n: p.numel() for n, p in model.named_parameters()}
    if name == "sasrec" and "structured" in preset:
        with pytest.raises(PruningError, match=r"torch.fx cannot follow|no units of this model can be removed"):
            recpress.compress(model, preset, calibration=[inputs])
        return
    compressed = recpress.compress(model, preset, calibration=[inputs])
    report = compressed.report
    assert {row.name: row.before for row in report.pruning} == own
    assert report.parameters == sum(own.values())
    assert report.bytes_before == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    left = compressed.model
    assert report.bytes_after == sum(t.nbytes for t in (*left.parameters(), *left.buffers()))
    for row in report.pruning:
        assert row.reason and row.zeros <= row.after <= row.before
        kept_as_it_is = row.status == "kept"
        assert kept_as_it_is == (row.after == row.before and row.reason.startswith(("it ", "no ", "its units")))
    taken = {row.name.rpartition(".")[0] for row in report.pruning if row.status == "pruned"}
    assert taken == {row.names[0] for row in report.rows if row.pruned} and taken
    assert left(*inputs).shape == model(*inputs).shape


def test_units_go_by_a_recipe_and_bytes_before_are_the_original_s():
    model, inputs = made("dlrm")
    report = recpress.compress(model, "structured-50", calibration=[inputs]).report
    rows = {row.names[0]: row for row in report.rows}
    assert rows["top.0"].bytes_before == 4 * (model.top[0].weight.numel() + 24) == 2 * rows["top.0"].bytes_after
    assert rows["top.0"].status == "kept" and rows["top.0"].pruned == "180 of 360 parameters removed"
    assert rows["tables.0"].pruned == "" and rows["tables.0"].bytes_before == rows["tables.0"].bytes_after
    smaller = recpress.compress(model, "structured-50-int8", calibration=[inputs])
    assert smaller.model.top[2].in_features == 12 and smaller.report.bytes_after < report.bytes_after
    with pytest.raises(PruningError, match="activation judges by the layers' inputs; give calibration"):
        recpress.compress(model, "structured-50")


def test_zeros_alone_gain_no_bytes_and_the_report_says_so():
    model, _ = made("dlrm")
    for preset, zeros in (("prune-24", 144), ("magnitude-70", 235)):
        report = recpress.compress(model, preset).report
        assert report.bytes_after == report.bytes_before
        (top,) = (row for row in report.rows if row.names == ("top.0",))
        assert top.pruned == f"{zeros} of 360 parameters zero"


@pytest.mark.parametrize("preset", ["prune-24", "structured-50-int8-tables4"])
def test_the_artifact_says_what_was_pruned_and_how_it_was_trained(preset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    model, inputs = made("dlrm")
    batches = [(clicks(64, seed=i), torch.arange(64) % 2.0) for i in range(3)]
    tuned = recpress.finetune(model, preset, batches[:2], batches[2:], epochs=2, lr=1e-3, evaluate=_spread)
    assert tuned.report.parameters == sum(p.numel() for p in model.parameters())
    training = tuned.report.training
    assert training.teacher == "original" and training.run.steps == 2 * (len(training.run.epochs) - 1)
    recpress.export(tuned, tmp_path / "a", example_inputs=inputs, input_names=("dense", "sparse"))
    manifest = read_manifest(tmp_path / "a")
    assert [row.name for row in manifest.pruning] == [name for name, _ in model.named_parameters()]
    assert sum(row.before for row in manifest.pruning) == sum(layer.parameters for layer in manifest.layers)
    note = manifest.training
    assert (note.objective, note.teacher, note.steps) == ("distill", "original", training.run.steps)
    assert note.control_valid_loss[0] == training.control.epochs[0].valid_loss and note.settings["lr"] == 1e-3
    assert set(note.quality_control) == {"spread"}
    print_report(tuned.report)
    print_manifest(manifest, tmp_path / "a")
    text = capsys.readouterr().out
    told = f"trained by distill to the original, {note.steps} steps"
    assert text.count(told) == 2 and "top.0.weight" in text and "pruning took" in text
    assert "kept: it is the weight" in text or preset.startswith("structured")
    shown = page(Content("a model", manifest))
    assert "What pruning took" in shown and "top.0.weight" in shown and told in shown


def test_a_teacher_that_is_given_is_named():
    model, _ = made("dlrm")
    batches = [(clicks(64), torch.arange(64) % 2.0)]
    given = {"epochs": 1, "control": False}
    for loss, teacher, says in (("labels", None, ""), ("distill", made("dlrm")[0], "given")):
        tuned = recpress.finetune(model, "prune-24", batches, batches, loss=loss, teacher=teacher, **given)
        assert tuned.report.training.teacher == says


@pytest.mark.parametrize(
    ("prune", "says"),
    [
        ({"pattern": "units"}, "pattern 'units' does not say how much goes; give sparsity"),
        ({"pattern": "unstructured"}, "pattern 'unstructured' does not say how much goes"),
        ({"pattern": "units", "sparsity": 1.0}, "'prune': what to prune: sparsity is 1.0"),
    ],
    ids=str,
)
def test_what_a_recipe_cannot_prune(prune, says):
    with pytest.raises(RecipeError, match=says):
        Recipe(prune=prune)
    assert Recipe(prune={"pattern": "units", "sparsity": 0.5}).prune == PruneSpec(pattern="units", sparsity=0.5)


def _spread(model: nn.Module) -> dict[str, float]:
    return {"spread": float(model(*clicks(32)).std())}
