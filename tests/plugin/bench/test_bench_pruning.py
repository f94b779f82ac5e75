"""What the benchmark of quality prunes: zeros are there, training keeps to its steps, and what is broken is said."""

import dataclasses

import pytest
import torch
from torch import nn

from recpress.bench import quality
from recpress.bench.clicks import Clicks, _Drawn
from recpress.bench.promises import PRUNED, Compared, promises
from recpress.bench.ranking import Ranks
from recpress.bench.variants import PRUNING, VARIANTS, gone
from recpress.data.movielens import MovieLens, Rows
from recpress.data.sequences import Sequences
from recpress.errors import PruningError, TrainingError
from recpress.layers import Int8Sparse24Linear
from recpress.report.paired import Paired
from recpress.zoo.dlrm import DLRM

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 41


def made(n, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, 3, generator=generator)
    sparse = torch.stack([torch.randint(0, rows, (n,), generator=generator) for rows in (30, 20)], dim=1)
    chance = torch.sigmoid(2 * dense[:, 0] + 2.0 * (sparse.sum(1) % 2) - 1)
    return Rows(dense, sparse, torch.bernoulli(chance, generator=generator))


@pytest.fixture(scope="module")
def study():
    parts = {name: made(n, seed) for seed, (name, n) in enumerate({"train": 2600, "valid": 300, "test": 400}.items())}
    names = ("age", "year", "log_user_count")
    return Clicks("made", MovieLens("here", names, ("user", "film"), (30, 20), **parts), dim=8, epochs=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DLRM(num_dense=3, table_rows=(30, 20), dim=8, bottom=(32,), top=(128, 64)).eval()


@pytest.fixture(scope="module")
def variants(study, model):
    """What each variant makes of the model."""
    torch.set_num_threads(1)
    found = {}
    for name, way in PRUNING.items():
        found[name] = way.apply(model, study, STEPS, found)
    return found


def weights(module):
    return [m.weight for m in module.modules() if isinstance(m, nn.Linear)]


def fours(weight):
    return nn.functional.pad(weight, (0, -weight.shape[1] % 4)).view(len(weight), -1, 4)


def test_every_variant_keeps_to_its_share_of_the_steps(variants):
    shares = {name: PRUNING[name].bounds.steps for name in variants}
    assert {name for name, made in variants.items() if not 0 < made.steps <= STEPS * shares[name]} == set()
    assert shares == dict.fromkeys(variants, 0.2) | {"structured-50": 0.6}


def test_a_model_of_too_few_steps_is_refused(model, study):
    with pytest.raises(TrainingError, match="took 4 steps of the optimiser, of which a share of 0.2 is none"):
        PRUNING["sparse-70"].apply(model, study, 4, {})


def test_two_of_four_weights_are_zero_and_the_control_is_dense(variants, model):
    found = variants["prune-24"]
    dense = [w for w in weights(found.model) if w.shape[1] >= 4]
    assert len(dense) == 4 and all((fours(w) != 0).sum(dim=2).max() == 2 for w in dense)
    assert all((w != 0).float().mean() > 0.99 for w in weights(found.control))
    assert variants["prune-24-int8"].control is None


@pytest.mark.parametrize("name", ["prune-24-int8", "prune-24-then-int8", "prune-24-int8-tables4"])
def test_2_4_layers_are_stored_so(variants, name):
    layers = [m for m in variants[name].model.modules() if isinstance(m, Int8Sparse24Linear)]
    assert len(layers) == 4
    bits = {m.bits for m in variants[name].model.modules() if hasattr(m, "bits")}
    assert bits == {4 if name.endswith("tables4") else 8}


def test_what_is_quantised_afterwards_is_what_was_distilled(variants):
    first, after = (variants[name] for name in ("prune-24", "prune-24-then-int8"))
    assert after.steps == first.steps and after.pruning == first.pruning
    truth, found = first.model.top[0].bias, after.model.top[0].bias
    assert torch.equal(truth, found), "training has moved it, and nothing since"
    assert not torch.equal(truth, variants["prune-24-int8"].model.top[0].bias)


def test_70_percent_of_the_dense_part_are_zero_or_half_of_the_units_gone(variants, model):
    def left(module):
        return sum(int((p != 0).sum()) for m in module.modules() if isinstance(m, nn.Linear) for p in m.parameters())

    sparse, units = variants["sparse-70"], variants["structured-50"]
    assert gone(model, sparse.pruning) >= 0.7 and gone(model, ()) == 0.0
    assert gone(model, sparse.pruning) == pytest.approx(1 - left(sparse.model) / left(model), abs=0.002)
    assert [tuple(w.shape) for w in weights(units.model)] == [(16, 3), (8, 16), (64, 11), (32, 64), (1, 32)]
    assert gone(model, units.pruning) == pytest.approx(1 - left(units.model) / left(model), abs=0.002)


@pytest.mark.parametrize(
    ("bounds", "given", "broken"),
    [
        (PRUNED, {"ratio": 0.99899}, {"AUC"}),
        (PRUNED, {"ratio": 0.99901}, set()),
        (PRUNED, {"ranking": 0.9949}, {"HR@10"}),
        (PRUNED, {"steps": 0.2001}, {"steps"}),
        (VARIANTS["sparse-70"].bounds, {"gone": 0.699}, {"parameters gone"}),
        (VARIANTS["prune-24-int8"].bounds, {"over_least": 1.021}, {"bytes over the least"}),
        (VARIANTS["prune-24-int8"].bounds, {"over_least": 1.019}, set()),
    ],
)
def test_a_promise_that_breaks_is_named(bounds, given, broken):
    given = {"ratio": 1.0, "ranking": 1.0, "over_least": 1.0, "gone": 0.7, "steps": 0.2} | given
    metrics = {
        name: Paired(0.8, 0.8 * given.pop(key), -0.1, 0.1) for name, key in (("AUC", "ratio"), ("HR@10", "ranking"))
    }
    found = promises(Compared(metrics), bounds, bytes_ratio=1.0, **given)
    assert {promise.name for promise in found if not promise.kept} == broken


def test_rows_have_the_control_the_steps_and_the_other_variant(study, tmp_path):
    broken = dataclasses.replace(VARIANTS["prune-24-int8"], bounds=dataclasses.replace(PRUNED, gone=0.9))
    wanted = {"prune-24-then-int8": VARIANTS["prune-24-then-int8"], "prune-24": VARIANTS["prune-24"]}
    wanted |= {"prune-24-int8": broken}
    options = {"seeds": [0], "variants": wanted, "folder": tmp_path, "models": ["dlrm"], "say": lambda _: None}
    after, control, first, qat = quality.run([study], **options)
    assert control.variant == "dense control" and control.compared.metrics["AUC"].difference == 0
    assert first.variant == "prune-24" and first.steps == after.steps == control.steps > 0
    assert control.gone == 0 < first.gone == after.gone
    assert {promise.name for promise in qat.failing} >= {"parameters gone"}
    text = quality.line(qat)
    assert f"steps {qat.steps} of {qat.steps_original}" in text
    assert f"parameters gone {qat.gone:.3%} (promised 90.000%)" in text
    direct = qat.against[1].metrics["AUC"]
    assert direct.before == after.compared.metrics["AUC"].after and direct.after == qat.compared.metrics["AUC"].after
    assert "against prune-24-then-int8: AUC" in text
    assert quality._as_json(qat)["against"]["variant"] == "prune-24-then-int8" and "against" not in quality._as_json(
        first
    )


def test_a_model_that_cannot_be_pruned_so_is_left_out_with_its_reason(study, tmp_path):
    class Refusing:
        after = ""

        def apply(self, *_):
            raise PruningError("no units")

    said = []
    options = {"seeds": [0], "variants": {"odd": Refusing()}, "folder": tmp_path, "models": ["dlrm"]}
    assert list(quality.run([study], **options, say=said.append)) == []
    assert said[-1] == "  odd left out: no units"


def test_drawn_batches_are_as_many_as_asked_and_all_come_before_one_comes_again():
    drawn = list(_Drawn([0, 1, 2], 7))
    assert len(drawn) == 7 and sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (list(_Drawn(range(50), 20)) for _ in range(2))
    assert len(set(first)) == 20 and first != second


def test_places_are_trained_in_at_most_the_steps(tmp_path):
    walks = tuple(torch.randint(1, 120, (6,)).numpy() for _ in range(300))
    study = Ranks.of("walks", Sequences(walks, 120), length=6)
    for steps in (1, 5, 17, 36, 10**6):
        options = study.tuning(steps)
        assert 0 < options["epochs"] * len(options["train"]) <= steps and options["epochs"] <= 10
        assert len(list(options["train"])) == len(options["train"])
    whole = study.tuning(None)
    assert len(whole["train"]) == 3 and whole["epochs"] == 10
