import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress.artifact import golden
from recpress.artifact.load import check_golden, read_golden
from recpress.artifact.manifest import MANIFEST, read_manifest, sha256
from recpress.errors import ArtifactError, ExportError, IndexBoundsError


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def rehash(folder):
    """Make the manifest's hashes right again after a file was changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"] = {name: sha256(folder / name) for name in manifest["sha256"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change_manifest(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_scores_as_the_compressed_model(artifact, compressed, rows):
    model = recpress.load(artifact)
    dense, sparse = small_inputs(rows, seed=3)
    scores = model.score({"sparse": sparse, "dense": dense})
    assert list(scores) == ["logit"] and scores["logit"].shape == (rows,)
    torch.testing.assert_close(
        scores["logit"], compressed.model(dense, sparse), rtol=0, atol=model.manifest.golden.outlier_atol
    )


def test_manifest_says_what_goes_in_and_out(artifact, compressed):
    manifest = read_manifest(artifact)
    dense, sparse = manifest.inputs
    assert (dense.name, dense.dtype, dense.shape) == ("dense", "float32", (5,))
    assert (sparse.name, sparse.dtype, sparse.shape) == ("sparse", "int64", (4,))
    assert sparse.table_high == (39, 6, 299, 299) and sparse.table_low == (0, 0, 0, 0)
    assert dense.table_high == (None,) * 5
    assert manifest.outputs[0].wire_shape == (1,)
    assert manifest.bytes_after == compressed.report.bytes_after < 0.5 * manifest.bytes_before
    assert manifest.recipe.name == "int8" and manifest.quality_before.keys() == {"mean"}


def test_golden_rows_lie_in_bounds_and_are_no_user_s(artifact):
    inputs, outputs = read_golden(artifact, read_manifest(artifact))
    dense, _ = small_inputs(32)
    assert inputs["dense"].shape == (64, 5) and outputs["logit"].shape == (64,)
    assert bool((inputs["sparse"] >= 0).all()) and bool((inputs["sparse"] <= torch.tensor([39, 6, 299, 299])).all())
    assert bool((inputs["dense"] >= dense.amin(0)).all()) and bool((inputs["dense"] <= dense.amax(0)).all())
    users = {tuple(row) for row in dense.tolist()}
    assert not users & {tuple(row) for row in inputs["dense"].tolist()}


def test_holds_no_pickle_and_no_trace_of_the_sources(artifact):
    assert {path.name for path in artifact.iterdir()} == {
        "graph.pt2",
        "weights.safetensors",
        "golden.safetensors",
        MANIFEST,
    }
    graph = (artifact / "graph.pt2").read_bytes()
    assert b"conftest" not in graph and b"SmallRecommender" not in graph and b"\x80\x02" not in graph
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in artifact.iterdir())


def test_every_scale_that_changes_by_2_to_the_minus_10_is_seen_or_named(copy):
    manifest = read_manifest(copy)
    weights = load_file(copy / "weights.safetensors")
    names = [name for name in weights if name.endswith("weight_scale")]
    assert len(names) == 4
    for name in names:
        save_file(weights | {name: weights[name] * (1 + golden.STEP)}, copy / "weights.safetensors")
        rehash(copy)
        if name in manifest.golden.blind:
            recpress.load(copy)
        else:
            with pytest.raises(ArtifactError, match="golden rows"):
                recpress.load(copy)
    assert not manifest.golden.blind


def test_golden_tolerance_covers_the_batch_sizes(artifact):
    model = recpress.load(artifact)
    verdict = check_golden(model, artifact)
    assert (verdict.rows, verdict.beyond, verdict.ok) == (64, 0, True)
    assert verdict.worst <= model.manifest.golden.atol <= model.manifest.golden.outlier_atol < 1e-2


@pytest.mark.parametrize("name", ["graph.pt2", "weights.safetensors", "golden.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(copy, name, damage):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(ArtifactError, match=f"{name} (does not match|is missing)"):
        recpress.load(copy)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schema_version": 2}, "schema version 2; this recpress reads 1"),
        ({"schema_version": None}, "schema version None"),
        ({"sha256": {}}, "hashes the files none"),
        ({"inputs": "dense"}, "at inputs"),
        ({"surprise": 1}, "at surprise"),
    ],
)
def test_a_manifest_of_another_form(copy, changes, message):
    change_manifest(copy, **changes)
    with pytest.raises(ArtifactError, match=message):
        recpress.load(copy)


def test_no_manifest_or_no_json(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        recpress.load(tmp_path / "absent")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="is not JSON"):
        recpress.load(tmp_path)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_weights_that_do_not_fit_the_graph(copy, change):
    path = copy / "weights.safetensors"
    weights = load_file(path)
    name = "top.0.weight"
    if change == "missing":
        del weights[name]
    elif change == "extra":
        weights["top.9.weight"] = torch.zeros(1)
    else:
        weights[name] = weights[name][:, :-1].contiguous() if change == "shape" else weights[name].float()
    save_file(weights, path)
    rehash(copy)
    with pytest.raises(ArtifactError, match=r"top\.[09]\.weight"):
        recpress.load(copy)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"dense": torch.zeros(2, 5)}, "the model takes dense, sparse"),
        ({"dense": torch.zeros(2, 5), "sparse": torch.zeros(2, 4)}, "input 'sparse' is torch.float32"),
        ({"dense": torch.zeros(2, 4), "sparse": torch.zeros(2, 4).long()}, "input 'dense' is"),
        ({"dense": torch.zeros(3, 5), "sparse": torch.zeros(2, 4).long()}, "differ in their number of rows"),
    ],
)
def test_score_refuses_other_inputs(artifact, inputs, message):
    with pytest.raises(ArtifactError, match=message):
        recpress.load(artifact).score(inputs)


def test_score_refuses_an_index_out_of_range(artifact):
    with pytest.raises(IndexBoundsError, match="index 7 "):
        recpress.load(artifact).score({"dense": torch.zeros(1, 5), "sparse": torch.tensor([[0, 7, 0, 0]])})


class Outputs(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(3, 2), form

    def forward(self, x):
        return self.form(self.linear(x))


@pytest.mark.parametrize(
    "form, names",
    [
        (lambda y: y, ["output"]),
        (lambda y: (y, y.sum(1)), ["output_0", "output_1"]),
        (lambda y: {"ctr": y[:, 0], "cvr": y[:, 1]}, ["ctr", "cvr"]),
    ],
)
def test_outputs_of_every_form(tmp_path, form, names):
    result = recpress.compress(Outputs(form))
    recpress.export(result, tmp_path / "a", example_inputs=(torch.randn(4, 3),), input_names=("x",))
    x = torch.randn(3, 3)
    scores = recpress.load(tmp_path / "a").score({"x": x})
    assert list(scores) == names
    want = form(result.model.linear(x))
    first = want if isinstance(want, torch.Tensor) else next(iter(want.values() if isinstance(want, dict) else want))
    torch.testing.assert_close(scores[names[0]], first)


class Constants(nn.Module):
    """Constants, a buffer that is not saved, a parameter that is kept, and weights that are tied."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("shift", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.a(x) + self.b(x) + self.shift + torch.tensor([1.0, 2.0, 3.0])


def test_constants_and_tied_weights_survive(tmp_path):
    result = recpress.compress(Constants())
    recpress.export(result, tmp_path / "a", example_inputs=(torch.randn(1, 3),), input_names=("x",))
    x = torch.randn(5, 3)
    torch.testing.assert_close(recpress.load(tmp_path / "a").score({"x": x})["output"], result.model(x))


class ByBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x) if x.shape[0] == 4 else 2 * self.linear(x)


def example(**changes):
    return {"example_inputs": small_inputs(8), "input_names": ("dense", "sparse")} | changes


@pytest.mark.parametrize(
    "arguments, message",
    [
        (example(input_names=("dense",)), "give 2 different names"),
        (example(input_names=("dense", "dense")), "give 2 different names"),
        (example(input_names=("dense", "no spaces")), "give 2 different names"),
        (example(example_inputs=()), "must be tensors"),
        (example(example_inputs=(small_inputs(8)[0], small_inputs(7)[1])), "must share one batch"),
        (example(example_inputs=small_inputs(0)), "must share one batch of at least 1"),
        (example(example_inputs=(small_inputs(8)[0].double(), small_inputs(8)[1])), "'dense' is torch.float64"),
        (example(example_inputs=(small_inputs(8)[0] / 0, small_inputs(8)[1])), "'dense' holds NaN or infinity"),
        (example(output_names=("a", "b")), "give 1 different names"),
    ],
)
def test_export_refuses_inputs_that_do_not_fit(tmp_path, compressed, arguments, message):
    with pytest.raises(ExportError, match=message):
        recpress.export(compressed, tmp_path / "a", **arguments)
    assert not list(tmp_path.iterdir())


def test_export_refuses_a_model_that_depends_on_the_batch(tmp_path):
    with pytest.raises(ExportError, match="cannot follow ByBatch with a batch that varies"):
        recpress.export(
            recpress.compress(ByBatch()), tmp_path / "a", example_inputs=(torch.zeros(4, 3),), input_names=("x",)
        )
    assert not list(tmp_path.iterdir())


def test_export_replaces_nothing(tmp_path, compressed):
    (tmp_path / "a").mkdir()
    with pytest.raises(ArtifactError, match="exists; nothing is replaced in place"):
        recpress.export(compressed, tmp_path / "a", **example())


def test_an_interrupted_export_leaves_nothing(tmp_path, compressed, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("recpress.artifact.export.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recpress.export(compressed, tmp_path / "a", **example())
    assert not list(tmp_path.iterdir())


def test_a_model_that_overflows_on_its_own_range_is_not_exported(tmp_path):
    model = small_model()
    with torch.no_grad():
        model.norm.weight.fill_(float("inf"))
    with pytest.raises(ExportError, match="are not finite"):
        recpress.export(recpress.compress(model), tmp_path / "a", **example())
