import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.int8 import dequantize_per_channel, quantize_per_channel


def test_by_hand():
    q, scale = quantize_per_channel(torch.tensor([[127.0, -63.5, 0.4], [0.0, 0.0, 0.0]]))
    assert q.tolist() == [[127, -64, 0], [0, 0, 0]]  # 63.5 goes to the even 64
    assert scale.tolist() == [1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 17]), st.sampled_from([1, 5, 64]), st.floats(1e-6, 1e6))
def test_error_is_at_most_half_a_step(seed, rows, columns, spread):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * spread
    q, scale = quantize_per_channel(w)
    assert int(q.abs().max()) <= 127
    assert bool(((dequantize_per_channel(q, scale) - w).abs() <= 0.5001 * scale[:, None]).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_dtype(dtype):
    w = torch.randn(4, 8).to(dtype)
    q, scale = quantize_per_channel(w)
    again = quantize_per_channel(w.float())
    assert torch.equal(q, again[0]) and torch.equal(scale, again[1])


def test_a_channel_too_small_for_a_scale_becomes_zeros():
    q, scale = quantize_per_channel(torch.tensor([[1e-45, 0.0]]))
    assert q.tolist() == [[0, 0]] and scale.tolist() == [1.0]


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(3),
        torch.zeros(2, 2, dtype=torch.int8),
        torch.tensor([[float("nan")]]),
        torch.tensor([[float("inf")]]),
    ],
)
def test_refuses(weight):
    with pytest.raises(KernelInputError, match=r"weight (is|holds)"):
        quantize_per_channel(weight)
