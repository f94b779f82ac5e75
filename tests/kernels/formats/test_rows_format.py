import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import rows
from recpress_kernels.formats.rows import dequantize_rows_int8, quantize_rows_int8, split_rows_int8


def test_by_hand():
    packed = quantize_rows_int8(torch.tensor([[0.0, 255.0, 100.4], [2.0, 2.0, 2.0]]))
    codes, scale, bias = split_rows_int8(packed)
    assert codes.tolist() == [[0, 255, 100], [0, 0, 0]]
    assert scale.tolist() == [1.0, 0.0] and bias.tolist() == [0.0, 2.0]
    assert packed.shape == (2, 7) and packed[0, 3:].tolist() == [0x00, 0x3C, 0, 0]  # float16 1.0, then 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-7, 1e3), st.floats(-100, 100), st.sampled_from([1, 2, 16, 64]))
def test_no_value_is_clipped_and_the_error_is_half_a_step(seed, spread, offset, dim):
    table = torch.randn(20, dim, generator=torch.Generator().manual_seed(seed)) * spread + offset
    packed = quantize_rows_int8(table)
    _, scale, _ = split_rows_int8(packed)
    error = (dequantize_rows_int8(packed) - table).abs()
    rounding = 1e-6 * table.abs().amax(dim=1)
    assert bool((error <= (0.5 * scale.float() + rounding)[:, None]).all())


def test_step_is_no_wider_than_float16_forces_it_to_be():
    table = torch.randn(1000, 64)
    _, scale, _ = split_rows_int8(quantize_rows_int8(table))
    ideal = (table.amax(dim=1) - table.amin(dim=1)) / 255
    # The scale and the bias each move by at most one unit of float16.
    assert bool((scale.float() >= ideal * 0.999).all())
    assert bool((scale.float() <= ideal * 1.002 + 2.0**-8 / 255).all())


def test_chunks_give_the_same_bytes(monkeypatch):
    table = torch.randn(100, 8)
    whole = quantize_rows_int8(table)
    monkeypatch.setattr(rows, "CHUNK_ROWS", {"range": 7})
    assert torch.equal(quantize_rows_int8(table), whole)


def test_bytes_at_dim_64():
    assert quantize_rows_int8(torch.zeros(10, 64)).nbytes / (10 * 64 * 4) <= 0.27


def test_no_rows():
    assert quantize_rows_int8(torch.zeros(0, 8)).shape == (0, 12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 7e4])
def test_names_the_bad_row(bad):
    table = torch.zeros(5, 4)
    table[3, 2] = bad
    with pytest.raises(KernelInputError, match="row 3 "):
        quantize_rows_int8(table)


@pytest.mark.parametrize("table", [torch.zeros(3), torch.zeros(3, 0), torch.zeros(3, 4, dtype=torch.int8)])
def test_refuses_other_forms(table):
    with pytest.raises(KernelInputError, match="give a float tensor"):
        quantize_rows_int8(table)
