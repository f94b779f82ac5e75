import copy

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress.errors import CalibrationError, RecipeError, UnsupportedLayerError
from recpress.recipe import Recipe


def rows_by_name(report):
    return {row.names[0]: row for row in report.rows}


def total_bytes(model):
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.nbytes for t in tensors.values())


def test_every_parameter_is_accounted_for(compressed):
    model = small_model()
    report = compressed.report
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert report.bytes_before == total_bytes(model)
    assert report.bytes_after == total_bytes(compressed.model)
    statuses = {name: row.status for name, row in rows_by_name(report).items()}
    assert statuses.pop("norm") == "kept" and set(statuses.values()) == {"compressed"}


def test_scores_stay_close_and_the_original_is_untouched(compressed):
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    new = recpress.compress(model, "int8").model
    dense, sparse = small_inputs(100)
    assert (new(dense, sparse) - model(dense, sparse)).abs().max() < 0.05
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert compressed.report.quality_before["mean"] == pytest.approx(compressed.report.quality_after["mean"], abs=0.01)


def test_nothing_is_shared_with_the_original():
    model = small_model()
    new = recpress.compress(model, Recipe(linear="keep")).model
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(p.abs().sum() > 0 for name, p in new.named_parameters() if "weight" in name)


def test_the_result_is_in_eval_mode_and_the_original_keeps_its_own():
    model = small_model().train()
    model.norm.eval()
    new = recpress.compress(model).model
    assert not any(m.training for m in new.modules())
    assert model.training and model.top.training and not model.norm.training


def test_kept_by_an_override_says_so():
    report = recpress.compress(small_model(), Recipe(overrides={"top.*": "keep"})).report
    row = rows_by_name(report)["top.0"]
    assert (row.status, row.reason) == ("kept", "recipe, override 'top.*'")
    assert row.bytes_before == row.bytes_after


def test_an_override_that_matches_nothing_stops_everything():
    with pytest.raises(RecipeError, match="matches no layer"):
        recpress.compress(small_model(), Recipe(overrides={"norm": "keep"}))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.items.weight
        self.again = self.once = nn.Linear(4, 4)

    def forward(self, ids):
        return self.out(self.again(self.once(self.items(ids))))


def test_tied_weights_are_kept_and_counted_once():
    model = Tied()
    report = recpress.compress(model).report
    rows = rows_by_name(report)
    assert rows["items"].status == rows["out"].status == "kept"
    assert "shared with out.weight" in rows["items"].reason
    assert report.parameters == sum(p.numel() for p in model.parameters()) and rows["out"].parameters == 0


def test_a_module_with_two_names_is_replaced_under_both():
    result = recpress.compress(Tied())
    assert result.model.again is result.model.once and type(result.model.once).__name__ == "Int8Linear"
    assert rows_by_name(result.report)["again"].names == ("again", "once")


class HalfUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle, self.by_hand = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.used(x), self.by_hand.weight)


def test_what_calibration_does_not_reach_is_left_alone():
    result = recpress.compress(HalfUsed(), calibration=[torch.ones(1, 4)])
    rows = rows_by_name(result.report)
    assert [rows[name].status for name in ("used", "idle", "by_hand")] == ["compressed", "unreachable", "unreachable"]
    assert result.model(torch.ones(1, 4)).shape == (1, 4), "a weight used by hand still works"


@pytest.mark.parametrize("inputs", [torch.ones(1, 4), (torch.ones(1, 4),), [torch.ones(1, 4)], {"x": torch.ones(1, 4)}])
def test_calibration_takes_tensors_tuples_and_mappings(inputs):
    result = recpress.compress(HalfUsed(), calibration=[inputs])
    assert rows_by_name(result.report)["used"].status == "compressed"
    assert not any(m._forward_pre_hooks for m in result.model.modules())


@pytest.mark.parametrize("calibration, message", [([], "holds no inputs"), ([torch.ones(1, 5)], "input 0")])
def test_bad_calibration(calibration, message):
    with pytest.raises(CalibrationError, match=message):
        recpress.compress(HalfUsed(), calibration=calibration)


def test_subclasses_are_kept_with_the_reason():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    report = recpress.compress(nn.Sequential(Scaled(2, 2), nn.Linear(2, 2))).report
    assert "a subclass of Linear" in rows_by_name(report)["0"].reason
    assert rows_by_name(report)["1"].status == "compressed"


def test_a_model_that_is_one_layer():
    result = recpress.compress(nn.Linear(4, 2))
    assert type(result.model).__name__ == "Int8Linear" and result.report.rows[0].names == ("",)


def test_the_error_of_a_table_needs_no_calibration():
    model = small_model()
    errors = {}
    for scheme, search in (("int8", "greedy"), ("int4", "greedy"), ("int4", "range")):
        recipe = Recipe(linear="keep", embedding=scheme, embedding_search=search)
        result = recpress.compress(model, recipe)
        row, table = rows_by_name(result.report)["tables.0"], model.tables[0].weight.detach()
        error = result.model.tables[0](torch.arange(40)) - table
        assert row.sqnr_db == pytest.approx(
            float(10 * torch.log10(table.square().sum() / error.square().sum())), abs=1e-4
        )
        errors[scheme, search] = row.sqnr_db
    assert errors["int4", "range"] < errors["int4", "greedy"] < errors["int8", "greedy"]
    assert rows_by_name(recpress.compress(model, Recipe(embedding="keep")).report)["tables.0"].sqnr_db is None


@pytest.mark.parametrize("embedding", ["int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_tables_that_cannot_be_quantised_name_the_layer_and_the_row(embedding, bad):
    model = small_model()
    with torch.no_grad():
        model.tables[0].weight[3, 2] = bad
    with pytest.raises(UnsupportedLayerError, match=r"layer 'tables.0' \(Embedding\): row 3 holds NaN, infinity or"):
        recpress.compress(model, Recipe(embedding=embedding))


def test_weights_that_cannot_be_quantised_name_the_layer():
    model = small_model()
    with torch.no_grad():
        model.top[2].weight[0, 3] = float("nan")
    with pytest.raises(UnsupportedLayerError, match=r"layer 'top.2' \(Linear\): weight holds NaN.*'top.2': 'keep'"):
        recpress.compress(model)
