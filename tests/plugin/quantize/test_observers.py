"""Ranges of activations: what each observer takes, and static models from recipe to loaded graph."""

import pytest
import torch
from support.small import small_inputs, small_model

import recpress
from recpress.errors import CalibrationError, RecipeError
from recpress.quantize.observers import OBSERVERS, calibrate
from recpress_kernels.formats.affine import affine, dequantize_affine, quantize_affine


def spread(rows: int = 2048) -> torch.Tensor:
    """Normal values and one far outlier."""
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0))
    x[1000, 0] = 40.0
    return x


def test_min_max_keeps_everything_and_the_others_cut_an_outlier():
    x = spread()
    low, high = OBSERVERS["min-max"](x)
    assert (low, high) == (float(x.min()), 40.0)
    for name in ("moving-average", "percentile", "mse", "entropy"):
        low, high = OBSERVERS[name](x)
        assert -5 < low < -2 and 3 < high < 30, name


@pytest.mark.parametrize("name", OBSERVERS)
def test_ranges_hold_zero_and_one_sided_inputs_use_all_levels(name):
    for x in (torch.rand(512, 8) + 3, -torch.rand(512, 8) - 3, torch.zeros(512, 8), torch.full((512, 8), 7.0)):
        low, high = OBSERVERS[name](x)
        assert low <= 0 <= high
        scale, zero = calibrate(x, name)
        assert scale.shape == zero.shape == (1,) and scale > 0 and 0 <= zero <= 127
        back = dequantize_affine(quantize_affine(x, scale, zero, 128), scale, zero)
        assert torch.equal(back == 0, x == 0)


def test_mse_is_the_best_of_all_on_its_own_terms():
    x = spread()

    def error(name: str) -> float:
        pair = calibrate(x, name)
        return float((dequantize_affine(quantize_affine(x, *pair, 128), *pair) - x).square().mean())

    errors = {name: error(name) for name in OBSERVERS}
    assert min(errors, key=errors.get) == "mse", errors


def test_percentile_leaves_the_share_outside():
    x = torch.linspace(-1, 1, 100_001)[:, None]
    low, high = OBSERVERS["percentile"](x)
    assert low == pytest.approx(-0.9999, abs=2e-5) and high == pytest.approx(0.9999, abs=2e-5)


def test_affine_by_hand():
    scale, zero = affine(torch.tensor([-1.0, 1.0, 0.0]), torch.tensor([3.0, 2.0, 0.0]), 128)
    assert scale.tolist() == pytest.approx([4 / 127, 2 / 127, 1.0]) and zero.tolist() == [32, 0, 0]


def test_bad_observers_and_nothing_to_observe():
    with pytest.raises(CalibrationError, match="no rows to observe"):
        calibrate(torch.zeros(0, 4), "mse")
    with pytest.raises(CalibrationError, match="allowed are min-max, moving-average"):
        calibrate(torch.zeros(3, 4), "median")
    with pytest.raises(RecipeError, match="'observer' is 'median'"):
        recpress.Recipe(observer="median")
    with pytest.raises(CalibrationError, match="recipe int8-static has activations: static, which is found on"):
        recpress.compress(small_model(), "int8-static")


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_static_model_is_exported_and_loaded_in_the_calls_of_a_dynamic_one(tmp_path, observer):
    recipe = recpress.Recipe(activations="static", observer=observer)
    compressed = recpress.compress(small_model(), recipe, calibration=[small_inputs(512)])
    assert sum("calibrated" in row.scheme for row in compressed.report.rows) == 4
    recpress.export(compressed, tmp_path / "a", example_inputs=small_inputs(8), input_names=("dense", "sparse"))
    model = recpress.load(tmp_path / "a")
    assert "4 int8 layers in 2 calls" in model.kernels
    dense, sparse = small_inputs(64, seed=4)
    got = model.score({"dense": dense, "sparse": sparse})["output"]
    torch.testing.assert_close(got, compressed.model(dense, sparse), rtol=0, atol=1e-5)
    assert float((got - small_model()(dense, sparse)).detach().abs().mean()) < 0.05
