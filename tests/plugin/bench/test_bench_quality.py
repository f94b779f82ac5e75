"""The benchmark of quality on tiny made sets, and that its verdicts can fail."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch

from recpress.bench import quality
from recpress.bench.clicks import Clicks
from recpress.bench.promises import INT4, INT8, Compared, promises
from recpress.bench.variants import VARIANTS, Made, Variant, least_bytes, variant
from recpress.data.movielens import MovieLens, Rows
from recpress.errors import DataError, RecipeError
from recpress.layers import Int8Linear
from recpress.pipeline import compress
from recpress.recipe import Recipe
from recpress.report.paired import Paired
from recpress.zoo.deepfm import DeepFM
from recpress.zoo.dlrm import DLRM

pytestmark = pytest.mark.usefixtures("one_thread")


def made(n, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, 3, generator=generator)
    sparse = torch.stack([torch.randint(0, rows, (n,), generator=generator) for rows in (30, 20)], dim=1)
    chance = torch.sigmoid(2 * dense[:, 0] + 2.0 * (sparse.sum(1) % 2) - 1)
    return Rows(dense, sparse, torch.bernoulli(chance, generator=generator))


def clicks():
    parts = {name: made(n, seed) for seed, (name, n) in enumerate({"train": 1000, "valid": 300, "test": 500}.items())}
    names = ("age", "year", "log_user_count")
    return Clicks("made", MovieLens("here", names, ("user", "film"), (30, 20), **parts), dim=8, epochs=2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("weights")
    said = []
    ruined = Variant(Recipe.preset("int8"), calibrated=False)
    object.__setattr__(ruined, "apply", _ruin)
    variants = {name: VARIANTS[name] for name in ("int8", "int8-7bit", "int8-tables4-qat")} | {"ruined": ruined}
    options = {"seeds": [0, 1], "variants": variants, "folder": folder, "models": ["dlrm", "two-tower"]}
    found = list(quality.run([clicks()], **options, say=said.append))
    again = list(quality.run([clicks()], **options | {"variants": {}}, say=said.append))
    assert (
        not again and all("read, " in line and "steps; original: AUC" in line for line in said[4:]) and len(said) == 8
    )
    return found


def _ruin(model, *_):
    """An int8 model whose last layer has lost the sign of its weights."""
    compressed = compress(model, "int8")
    last = [m for m in compressed.model.modules() if isinstance(m, Int8Linear)][-1]
    last.weight.abs_()
    return Made(compressed.model, compressed.report)


def test_each_variant_of_each_model_and_seed_is_a_row(rows):
    keys = [(row.model, row.seed, row.variant) for row in rows]
    wanted = ("int8", "int8-7bit", "int8-tables4-qat", "ruined")
    assert keys == [(m, s, v) for m in ("dlrm", "two-tower") for s in (0, 1) for v in wanted]
    for row in rows:
        auc = row.compared.metrics["AUC"]
        assert auc.before > 0.75 and auc.low <= auc.difference <= auc.high
        assert row.bytes_least <= row.bytes_after < 0.4 * row.bytes_before


def test_what_is_good_passes_and_what_is_ruined_fails(rows):
    for row in rows:
        names = {promise.name for promise in row.failing} - {"bytes"}
        if row.variant == "ruined":
            assert "AUC" in names and "logloss" in names and row.compared.metrics["AUC"].high < 0
        else:
            assert row.compared.metrics["AUC"].ratio > 0.995 and row.compared.change("logloss") < 1.01


def test_what_is_printed_names_what_fails(rows):
    text = quality.line(next(row for row in rows if row.variant == "ruined"))
    assert "FAILS: AUC" in text and "(promised 99.950%)" in text and "calibration" in text
    table = quality.summary(rows)
    assert len(table) == 2 + 8
    line = next(line for line in table if "dlrm | ruined" in line)
    assert "FAILS: AUC in 2 of 2" in line
    worst = min(r.compared.metrics["AUC"].ratio for r in rows if (r.model, r.variant) == ("dlrm", "ruined"))
    assert f"{worst:.3%}" in line


def paired(ratio):
    return Paired(0.8, 0.8 * ratio, -0.1, 0.1)


@pytest.mark.parametrize(
    ("metrics", "levels", "size", "int4", "broken"),
    [
        ({"AUC": paired(0.99951)}, {}, 0.3, False, set()),
        ({"AUC": paired(0.99949)}, {}, 0.3, False, {"AUC"}),
        ({"AUC": paired(0.99949)}, {}, 0.2, True, set()),
        ({"AUC": paired(0.9989)}, {}, 0.2, True, {"AUC"}),
        ({"HR@10": paired(0.9991), "NDCG@10": paired(0.9989)}, {}, 0.301, False, {"NDCG@10", "bytes"}),
        ({"AUC": paired(1.1)}, {"logloss": (0.5, 0.5006)}, 0.1, False, {"logloss"}),
        ({"AUC": paired(1.1)}, {"logloss": (0.5, 0.5004)}, 0.1, False, set()),
        ({"AUC": paired(1.1)}, {"logloss": (0.5, 0.3)}, 0.1, False, set()),
        ({"AUC": paired(1.1)}, {"calibration": (0.9, 0.9046)}, 0.1, False, {"calibration"}),
        ({"AUC": paired(1.1)}, {"calibration": (0.9, 0.8954)}, 0.1, False, {"calibration"}),
        ({"AUC": paired(1.1)}, {"calibration": (0.9, 0.9044)}, 0.1, False, set()),
    ],
)
def test_promises(metrics, levels, size, int4, broken):
    bounds = INT4 if int4 else INT8
    found = promises(Compared(metrics, levels), bounds, bytes_ratio=size, over_least=9.0, gone=0.0, steps=1.0)
    assert {promise.name for promise in found if not promise.kept} == broken
    assert {promise.name for promise in found} == {*metrics, *levels, "bytes"}


def test_logloss_and_calibration_are_the_formulas():
    study = clicks()
    label = study.data.test.label.double().numpy()
    logits = np.random.default_rng(0).normal(size=len(label)) + label
    p = 1 / (1 + np.exp(-logits))
    levels = study.compare(logits, logits + 0.1).levels
    assert levels["logloss"][0] == pytest.approx(-(label * np.log(p) + (1 - label) * np.log(1 - p)).mean())
    assert levels["calibration"][0] == pytest.approx(p.mean() / label.mean())
    assert levels["calibration"][1] > levels["calibration"][0]


@pytest.mark.parametrize("recipe", ["int8", "int8-tables4", "int8-linear", "int8-tables"])
@pytest.mark.parametrize("kind", [DLRM, DeepFM])
def test_the_least_bytes_are_those_of_an_uncalibrated_model(kind, recipe):
    model = kind(num_dense=3, table_rows=(30, 20), dim=8)
    report = compress(model, recipe).report
    assert least_bytes(model, Recipe.preset(recipe)) == report.bytes_after < report.bytes_before


def test_weights_of_7_bits():
    study = clicks()
    torch.manual_seed(0)
    model = DLRM(num_dense=3, table_rows=(30, 20), dim=8)
    made = variant("int8-7bit").apply(model, study, 0, {})
    layers = [m for m in made.model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 6 and all(m.weight.abs().amax() == 63 for m in layers)
    with torch.no_grad():
        truth, found = (m(study.data.test.dense, study.data.test.sparse) for m in (model, made.model))
    assert 0 < (found - truth).norm() / truth.norm() < 0.2


def test_recipes_are_variants_presets_or_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nembedding: keep\n")
    assert variant(str(tmp_path / "mine.yaml")).recipe.embedding == "keep"
    assert variant("int8-weights").calibrated and not variant("int8-uncalibrated").calibrated
    with pytest.raises(RecipeError, match="no preset is called 'int3'"):
        variant("int3")


def test_the_command(tmp_path, capsys):
    """Ranking from a made file, a set that is missing, and a set that has no folder."""
    generator = np.random.default_rng(0)
    users = [(start + 7 * np.arange(6)) % 150 + 1 for start in generator.integers(0, 150, 120)]
    text = "".join(f"{user} {item}\n" for user, items in enumerate(users, start=1) for item in items)
    (tmp_path / "Video.txt.gz").write_bytes(gzip.compress(text.encode()))
    given = [
        "--data",
        tmp_path,
        "--sets",
        "ml-latest-small",
        "video",
        "--seeds",
        0,
        "--recipes",
        "int8",
        "int8-tables4-qat",
    ]
    quality.main([*map(str, given), "--cache", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json")])
    out = capsys.readouterr().out
    assert f"ml-latest-small left out: {tmp_path} holds no ratings.csv" in out
    assert "video sasrec seed 0: trained in" in out and "| video | sasrec | int8 |" in out
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result) == ["machine", "kind", "rows"] and result["kind"] == "quality"
    row, tuned = result["rows"]
    assert row["variant"] == "int8" and set(row["HR@10"]) == {"before", "after", "low", "high", "difference", "ratio"}
    assert tuned["variant"] == "int8-tables4-qat" and tuned["bytes_after"] < row["bytes_after"]
    broken = sum(any(not promise["kept"] for promise in found["promises"]) for found in result["rows"])
    assert f"\n{broken} of 2 rows break a promise." in out
    assert [promise["name"] for promise in row["promises"]] == ["HR@10", "NDCG@10", "bytes"]


def test_sets_that_are_not_there(tmp_path):
    said = []
    assert not quality.sets(None, ["ml-latest-small", "video"], say=said.append)
    assert [line.partition(" left")[0] for line in said] == ["ml-latest-small", "video"]
    assert all("--data FOLDER" in line for line in said)


def test_a_set_with_one_label_is_an_error(tmp_path):
    study = clicks()
    valid = dataclasses.replace(study.data.valid, label=torch.ones(300))
    study = dataclasses.replace(study, data=dataclasses.replace(study.data, valid=valid))
    with pytest.raises(DataError, match="both labels"):
        list(quality.run([study], seeds=[0], variants={}, folder=tmp_path, models=["dlrm"]))
