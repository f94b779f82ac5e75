"""prepare and convert: the same function before and after, as compress decides it, and every parameter counted."""

import copy

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress.errors import CalibrationError, RecipeError, TrainingError, UnsupportedLayerError
from recpress.quantize.fake import FakeLinear
from recpress.quantize.fold import foldable
from recpress.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPES = {
    "int8": Recipe(),
    "int4 tables": Recipe(embedding="int4"),
    "int4 tables by range": Recipe(embedding="int4", embedding_search="range"),
    "static": Recipe(activations="static", observer="percentile"),
    "static, min-max, not smoothed": Recipe(activations="static", observer="min-max", smooth=False),
    "weights": Recipe(linear="int8-weights", embedding="keep"),
}


def uneven_model():
    """The small model with inputs of its top layer so uneven that they are evened out."""
    model = small_model()
    with torch.no_grad():
        model.norm.weight.mul_(30)
        model.top[0].weight[:, :8] /= 30
    return model


def trained(prepared, steps=3):
    """A few steps in a loop as users write it."""
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-2)
    prepared.train()
    for step in range(steps):
        optimizer.zero_grad()
        prepared(*small_inputs(64, seed=step)).square().mean().backward()
        optimizer.step()
    return prepared.eval()


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_is_prepared_computes_what_is_converted(recipe, learn_scales):
    model, calibration = uneven_model(), [small_inputs(200, seed=9)]
    prepared = recpress.prepare(model, recipe, calibration=calibration, learn_scales=learn_scales)
    inputs = small_inputs(300, seed=5)
    at_first = recpress.convert(prepared).model(*inputs)
    post_training = recpress.compress(model, recipe, calibration=calibration).model
    assert torch.equal(at_first, post_training(*inputs)), "before training it is what compress gives"
    before = prepared(*inputs)
    assert torch.allclose(before, at_first, atol=2e-6, rtol=0)
    after = trained(prepared)(*inputs)
    assert (after - before).abs().max() > 1e-2, "it was trained"
    converted = recpress.convert(prepared)
    assert torch.allclose(after, converted.model(*inputs), atol=2e-6, rtol=0)
    model.load_state_dict(prepared.state_dict(), strict=False)
    assert (after - model(*inputs)).abs().max() > 1e-3, "it is quantised"


def test_two_four_weights_are_trained_in_their_places():
    model = small_model()
    with torch.no_grad():
        model.top[0].weight.view(24, 8, 4)[:, :, 1:3] = 0
    recipe = Recipe(overrides={"top.0": "int8-24"})
    prepared = trained(recpress.prepare(model, recipe))
    converted = recpress.convert(prepared)
    inputs = small_inputs(100)
    assert type(converted.model.top[0]).__name__ == "Int8Sparse24Linear"
    assert torch.allclose(prepared(*inputs), converted.model(*inputs), atol=2e-6, rtol=0)


def test_names_are_those_of_the_model_and_checkpoints_load():
    model = small_model()
    recipe = Recipe(activations="static", observer="percentile", smooth=False)
    prepared = recpress.prepare(model, recipe, calibration=[small_inputs(50)], learn_scales=True)
    assert {name for name, _ in model.named_parameters()} <= {name for name, _ in prepared.named_parameters()}
    other = small_model()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    loaded = prepared.load_state_dict(other.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert {key.rpartition(".")[2] for key in loaded.missing_keys} == {"weight_scale", "x_scale", "x_zero_point"}
    assert torch.equal(prepared.top[0].weight, other.top[0].weight)
    assert isinstance(prepared.top[0], nn.Linear) and isinstance(prepared.tables[0], nn.Embedding)


def test_the_model_is_left_alone_and_shares_nothing():
    model = small_model().train()
    before = copy.deepcopy(model.state_dict())
    recpress.convert(trained(recpress.prepare(model)))
    recipe = RECIPES["static"]
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    prepared = recpress.prepare(model, recipe, calibration=[small_inputs(50)], learn_scales=True)
    converted = recpress.convert(prepared)
    theirs = {t.data_ptr() for m in (model, prepared) for t in m.state_dict().values()}
    assert not theirs & {t.data_ptr() for t in converted.model.state_dict().values()}


def test_the_report_is_that_of_compress():
    model, recipe = small_model(), Recipe(overrides={"top.2": "keep"})
    tuned = recpress.convert(recpress.prepare(model, recipe)).report
    plain = recpress.compress(model, recipe).report
    fields = ("names", "layer", "status", "scheme", "reason", "parameters", "bytes_before", "bytes_after")
    assert [[getattr(row, f) for f in fields] for row in tuned.rows] == [
        [getattr(row, f) for f in fields] for row in plain.rows
    ]


def test_it_is_exported_and_loaded(tmp_path):
    prepared = recpress.prepare(small_model(), "int8-tables4", calibration=[small_inputs(50)])
    converted = recpress.convert(trained(prepared))
    inputs = small_inputs(32)
    recpress.export(converted, tmp_path / "a", example_inputs=inputs, input_names=("dense", "sparse"))
    scores = recpress.load(tmp_path / "a").score({"dense": inputs[0], "sparse": inputs[1]})["output"]
    assert torch.allclose(scores.flatten(), converted.model(*inputs).flatten(), atol=1e-5)


def test_what_the_recipe_says_of_ids_and_rows_is_done_when_it_is_converted():
    model, counts = small_model(), {"bag": (torch.arange(300) < 40).long()}
    recipe = Recipe(oov={"tables.0": 3}, prune_rows={"bag": {"min_count": 1}})
    prepared = trained(recpress.prepare(model, recipe))
    with pytest.raises(CalibrationError, match="count"):
        recpress.convert(prepared)
    converted = recpress.convert(prepared, counts=counts)
    assert {row.names[0]: row.rows_dropped for row in converted.report.rows}["bag"] == 260
    dense, sparse = small_inputs(20)
    sparse[:, 2:] %= 40
    truth = prepared(dense, sparse)
    assert torch.allclose(truth, converted.model(dense, sparse), atol=2e-6)
    sparse[sparse[:, 0] == 3, 0] = 12345
    assert torch.allclose(truth, converted.model(dense, sparse), atol=2e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.items, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.items.weight
        self.again = self.once = nn.Linear(4, 4)

    def forward(self, ids):
        return self.out(self.again(self.once(self.items(ids))))


def test_tied_weights_stay_tied_and_a_layer_with_two_names_is_one():
    prepared = recpress.prepare(Tied())
    assert prepared.out.weight is prepared.items.weight and type(prepared.out) is nn.Linear
    assert prepared.again is prepared.once and isinstance(prepared.once, FakeLinear)
    converted = recpress.convert(prepared).model
    assert converted.out.weight is converted.items.weight and converted.again is converted.once
    ids = torch.arange(6)
    assert torch.allclose(prepared(ids), converted(ids), atol=1e-6)


class Normed(nn.Module):
    """Two batch norms that can be folded, one in a Sequential and one in the forward, and three that cannot."""

    def __init__(self, traceable=True):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8))
        self.fc, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)
        self.shared, self.after_shared = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.kept, self.after_kept = nn.Linear(8, 1), nn.BatchNorm1d(1)
        self.traceable = traceable

    def forward(self, x):
        x = self.bn(self.fc(self.mlp(x)))
        if not self.traceable and x.sum() == 12345:
            x = -x
        y = self.shared(x)
        return self.after_kept(self.kept(self.after_shared(y) + y))


def normed(**options):
    torch.manual_seed(0)
    model = Normed(**options)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.eps = 0.05
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return model.eval()


def test_batch_norms_are_folded_and_the_function_is_the_same():
    model, x = normed(), torch.randn(50, 5)
    # Almost a model that is not quantised: all that is left of the difference is the fold.
    recipe = Recipe(linear="keep", overrides={"mlp.0": "int8-weights", "fc": "int8-weights", "kept": "keep"})
    prepared = recpress.prepare(model, recipe)
    assert isinstance(prepared.mlp[1], nn.Identity) and isinstance(prepared.bn, nn.Identity)
    assert all(isinstance(m, nn.BatchNorm1d) for m in (prepared.mlp[3], prepared.after_shared, prepared.after_kept))
    for name in ("mlp.0", "fc"):
        linear = prepared.get_submodule(name)
        x_in = torch.randn(50, linear.in_features)
        norm = model.mlp[1] if name == "mlp.0" else model.bn
        truth = norm(model.get_submodule(name)(x_in))
        assert torch.allclose(nn.functional.linear(x_in, linear.weight, linear.bias), truth, atol=1e-5)
    assert torch.allclose(prepared(x), recpress.convert(prepared).model(x), atol=1e-5)
    assert (prepared(x) - model(x)).abs().max() < 0.1


def test_folded_batch_norms_are_accounted_for():
    model = normed()
    report = recpress.convert(recpress.prepare(model, "int8")).report
    rows = {row.names[0]: row for row in report.rows}
    assert rows["mlp.1"].scheme == "folded into 'mlp.0'" and rows["mlp.1"].bytes_after == 0
    assert rows["mlp.3"].status == rows["after_shared"].status == "kept"
    assert report.parameters == sum(p.numel() for p in model.parameters())
    converted = recpress.convert(recpress.prepare(model, "int8")).model
    assert report.bytes_after == sum(t.nbytes for t in converted.state_dict().values())


def test_where_the_forward_cannot_be_traced_sequentials_are_searched():
    model = normed(traceable=False)
    assert foldable(model) == {model.mlp[0]: model.mlp[1]}
    model.again = nn.Sequential(model.mlp[0], nn.ReLU())
    assert not foldable(model), "a layer with two names"
    assert len(foldable(normed())) == 3


def test_a_folded_layer_refuses_inputs_for_which_the_fold_is_wrong():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    prepared = recpress.prepare(model)
    with pytest.raises(UnsupportedLayerError, match="keep this layer"):
        prepared(torch.randn(2, 6, 4))


def test_what_cannot_be_prepared_or_converted_is_refused():
    model = small_model()
    with pytest.raises(RecipeError, match=r"compresses nothing.*'top.0': recipe, linear"):
        recpress.prepare(model, Recipe(linear="keep", embedding="keep"))
    with pytest.raises(CalibrationError, match="give calibration"):
        recpress.prepare(model, "int8-static")
    with pytest.raises(TrainingError, match="recpress.prepare did not return"):
        recpress.convert(model)
    prepared = recpress.prepare(model)
    with torch.no_grad():
        prepared.top[0].weight[0, 0] = torch.nan
    with pytest.raises(UnsupportedLayerError, match=r"'top.0' \(Linear\).*NaN"):
        recpress.convert(prepared)
    prepared.top[0] = nn.Linear(32, 24)
    with pytest.raises(TrainingError, match="'top.0' of the prepared model is a Linear now"):
        recpress.convert(prepared)
    learned = recpress.prepare(model, learn_scales=True)
    with torch.no_grad():
        learned.top[0].weight_scale[0] = torch.inf
    with pytest.raises(UnsupportedLayerError, match="'top.0'.*not finite"):
        recpress.convert(learned)
