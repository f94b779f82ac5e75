import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.rows import (
    bits_of,
    dequantize_rows,
    dequantize_rows_int4,
    dequantize_rows_int8,
    quantize_rows_int4,
    row_bytes,
    split_rows_int4,
)


def squared_error(table, search):
    back = dequantize_rows_int4(quantize_rows_int4(table, search=search), table.shape[1])
    return (back.double() - table.double()).square().sum(dim=1)


def test_by_hand():
    """Even values in the low halves; the last high half of an odd row is 0."""
    packed = quantize_rows_int4(torch.tensor([[0.0, 15.0, 9.4], [2.0, 2.0, 2.0]]))
    assert packed.tolist() == [[0xF0, 0x09, 0x00, 0x3C, 0, 0], [0, 0, 0, 0, 0x00, 0x40]]
    codes, scale, bias = split_rows_int4(packed, 3)
    assert codes.tolist() == [[0, 15, 9], [0, 0, 0]]
    assert scale.tolist() == [1.0, 0.0] and bias.tolist() == [0.0, 2.0]
    assert dequantize_rows_int4(packed, 3).tolist() == [[0.0, 15.0, 9.0], [2.0, 2.0, 2.0]]


def test_every_code_of_every_place():
    values = torch.arange(16.0)
    table = torch.stack([values.roll(shift) for shift in range(16)])
    assert torch.equal(dequantize_rows_int4(quantize_rows_int4(table), 16), table)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e3), st.floats(-100, 100), st.sampled_from([1, 2, 3, 16, 63, 64]))
def test_no_value_is_clipped_and_the_error_is_half_a_step(seed, spread, offset, dim):
    table = torch.randn(20, dim, generator=torch.Generator().manual_seed(seed)) * spread + offset
    packed = quantize_rows_int4(table)
    _, scale, _ = split_rows_int4(packed, dim)
    error = (dequantize_rows_int4(packed, dim) - table).abs()
    assert bool((error <= (0.5 * scale.float() + 1e-6 * table.abs().amax(dim=1))[:, None]).all())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e3), st.floats(-100, 100), st.sampled_from([1, 2, 5, 64]))
def test_greedy_is_never_worse_than_the_whole_range(seed, spread, offset, dim):
    table = torch.randn(50, dim, generator=torch.Generator().manual_seed(seed)) * spread + offset
    assert bool((squared_error(table, "greedy") <= squared_error(table, "range")).all())


def test_greedy_gains_on_normal_rows_and_on_an_outlier():
    table = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    assert float(squared_error(table, "greedy").sum() / squared_error(table, "range").sum()) < 0.85
    row = torch.cat([torch.arange(15.0).repeat(40), torch.tensor([16.0])])[None]
    assert bool(squared_error(row, "greedy") < 0.2 * squared_error(row, "range"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_rows_that_the_format_holds_come_back_as_they_are(seed, dim):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (9, dim), generator=g)
    codes[:, 0], codes[:, -1] = 0, 15
    bias = torch.randint(-100, 100, (9, 1), generator=g)
    table = codes * 2.0 ** torch.randint(-3, 4, (9, 1), generator=g) + bias
    packed = quantize_rows_int4(table)
    assert torch.equal(dequantize_rows_int4(packed, dim), table)
    assert torch.equal(quantize_rows_int4(table, search="greedy"), packed)


def test_bytes_at_dim_64():
    assert quantize_rows_int4(torch.zeros(10, 64)).nbytes / (10 * 64 * 4) <= 0.142


def test_bits_of_a_row():
    assert [row_bytes(dim, bits) for dim in (1, 2, 7, 64) for bits in (8, 4)] == [5, 5, 6, 5, 11, 8, 68, 36]
    assert [bits_of(row, 64) for row in (68, 36, 35)] == [8, 4, None] and bits_of(4, 0) is None
    packed = quantize_rows_int4(torch.tensor([[3.5], [-1.0]]))
    assert bits_of(packed.shape[1], 1) == 8
    assert torch.equal(dequantize_rows(packed, 1), dequantize_rows_int4(packed, 1))
    assert torch.equal(dequantize_rows_int8(packed), torch.tensor([[3.5], [-1.0]]))


@pytest.mark.parametrize("search", ["range", "greedy"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7e4])
def test_names_the_bad_row(bad, search):
    table = torch.zeros(5, 4)
    table[3, 2] = bad
    with pytest.raises(KernelInputError, match="row 3 "):
        quantize_rows_int4(table, search=search)


def test_refuses_another_search():
    with pytest.raises(KernelInputError, match="search is 'best'; allowed are range, greedy"):
        quantize_rows_int4(torch.zeros(2, 2), search="best")
