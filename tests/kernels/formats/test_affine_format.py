"""The quantisers against their formulas in NumPy, and what holds for each of them."""

import numpy as np
import pytest
import torch

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import affine as maths


def numpy_affine(x: np.ndarray, levels: int, lowest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, zero point and codes of each row, IEEE float32 throughout; ``np.rint`` rounds half to even."""
    low, high = np.minimum(x.min(1, initial=0), 0), np.maximum(x.max(1, initial=0), 0)
    scale = ((high - low) / np.float32(levels - 1)).astype(np.float32)
    scale[scale == 0] = 1
    zero = lowest + np.clip(np.rint(-low / scale), 0, levels - 1)
    codes = np.clip(np.rint(x / scale[:, None]) + zero[:, None], lowest, lowest + levels - 1)
    return scale, zero, codes


@pytest.mark.parametrize(("levels", "lowest"), [(256, 0), (256, -128), (128, 0), (16, 0), (16, -8)])
def test_affine_is_its_formula(levels, lowest):
    x = torch.randn(40, 13, generator=torch.Generator().manual_seed(levels))
    x = torch.cat([x, x.abs(), -x.abs() * 1e-3, x * 1e30, torch.zeros(1, 13), torch.full((1, 13), 1e-45)])
    scale, zero = maths.affine(*maths.extremes(x), levels, lowest)
    q = maths.quantize_affine(x, scale[:, None], zero[:, None], levels, lowest)
    wanted = numpy_affine(x.numpy(), levels, lowest)
    for given, numbers in zip((scale, zero, q), wanted, strict=True):
        assert np.array_equal(given.numpy(), numbers)
    assert zero.dtype == q.dtype == torch.int32
    back = maths.dequantize_affine(q, scale[:, None], zero[:, None])
    # Half a step, and half of one for the zero point's own rounding at the ends.
    assert bool(((back - x).abs() <= scale[:, None] * 1.0001).all())
    assert bool((back[x == 0] == 0).all())


@pytest.mark.parametrize("bits", [8, 7, 4])
def test_symmetric_is_its_formula(bits):
    largest = maths.largest_level(bits)
    x = torch.randn(30, 17, generator=torch.Generator().manual_seed(bits))
    x[3] = 0
    scale = maths.symmetric(x.abs().amax(dim=1), largest)
    q = maths.quantize_symmetric(x, scale[:, None], largest)
    wanted = (np.abs(x.numpy()).max(1) / np.float32(largest)).astype(np.float32)
    wanted[3] = 1
    assert np.array_equal(scale.numpy(), wanted)
    assert np.array_equal(q.numpy(), np.rint(x.numpy() / wanted[:, None]))
    assert bool((q.abs().amax(dim=1) == torch.tensor(largest).where(scale != 1, torch.tensor(0))).all())
    assert torch.equal(maths.quantize_symmetric(-x, scale[:, None], largest), -q)


def test_half_goes_to_even_and_what_lies_beyond_is_clamped():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9])
    one, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    assert maths.quantize_symmetric(x, one, 127).tolist() == [0, 2, 2, 0, -2, 127, -127]
    assert maths.quantize_affine(x, one, zero + 10, 128).tolist() == [10, 12, 12, 10, 8, 127, 0]
    assert maths.quantize_affine(x, one, zero, 256, -128).tolist() == [0, 2, 2, 0, -2, 127, -128]
    assert maths.quantize_offset(x, one, one / 2, 16).tolist() == [0, 1, 2, 0, 0, 15, 0]


def test_an_offset_need_not_hold_zero():
    x = torch.tensor([[1000.0, 1001.0, 1015.0]])
    scale = maths.step(torch.tensor([[1000.0]]), torch.tensor([[1015.0]]), 16)
    q = maths.quantize_offset(x, scale, torch.tensor([[1000.0]]), 16)
    assert q.tolist() == [[0, 1, 15]]
    assert torch.equal(maths.dequantize_offset(q, scale, torch.tensor([[1000.0]])), x)
    assert maths.quantize_offset(x, scale * 0, x[:, :1], 16)[0, 0] == 0  # a range of nothing does not divide by it


def test_granularity_says_what_shares_a_scale():
    x = torch.arange(1, 11, dtype=torch.float32).view(2, 5)
    assert maths.share(x, "tensor").shape == (1, 10)
    assert maths.share(x, "channel") is maths.share(x, "row") is x
    assert maths.share(x, "group", 2).tolist() == [[1, 2], [3, 4], [5, 0], [6, 7], [8, 9], [10, 0]]
    for granularity in ("tensor", "channel", "row", "group"):
        assert torch.equal(maths.unshare(maths.share(x, granularity, 3), x.shape), x)


def test_smaller_groups_err_less():
    w = torch.randn(16, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 96)
    errors = []
    for granularity, group in (("tensor", 0), ("channel", 0), ("group", 32), ("group", 8)):
        values = maths.share(w, granularity, group)
        scale = maths.symmetric(values.abs().amax(dim=1), 7)[:, None]
        back = maths.dequantize_symmetric(maths.quantize_symmetric(values, scale, 7), scale)
        errors.append(float((maths.unshare(back, w.shape) - w).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[1] / 4


def test_a_range_holds_zero():
    low, high = maths.extremes(torch.tensor([[1.0, 2.0], [-2.0, -1.0]]))
    assert (low.tolist(), high.tolist()) == ([0.0, -2.0], [2.0, 0.0])
    assert [t.tolist() for t in maths.extremes(torch.empty(2, 0))] == [[0.0, 0.0], [0.0, 0.0]]


def test_nan_is_not_hidden_by_a_scale_of_one():
    low, high = maths.extremes(torch.tensor([[1.0, float("nan")], [-1.0, 2.0]]))
    scale, _ = maths.affine(low, high, 128)
    assert scale.isnan().tolist() == [True, False]
    assert maths.symmetric(torch.tensor(float("nan")), 127).isnan()


@pytest.mark.parametrize(
    ("shape", "granularity", "group", "says"),
    [((3,), "row", 0, r"shape \(3,\)"), ((2, 3), "column", 0, "'column'"), ((2, 3), "group", 0, "group is 0")],
)
def test_what_cannot_be_shared_is_named(shape, granularity, group, says):
    with pytest.raises(KernelInputError, match=says):
        maths.share(torch.zeros(shape), granularity, group)
