"""The formulas of int8_linear's reference, by cases worked out by hand."""

import pytest
import torch

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.int8 import dequantize_per_channel, quantize_per_channel
from recpress_kernels.int8_linear import reference

ONE = torch.tensor(1.0)


def pair(scale: float, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)


def test_dynamic_rows_by_hand():
    # Range -27..100: scale 1, zero 27. Ties go to the even number: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2.
    q, scale = reference.quantize_activations(torch.tensor([[-27.0, 100.0, 0.5, 1.5, 2.5]]))
    assert scale.tolist() == [1.0]
    assert q.tolist() == [[-27, 100, 0, 2, 2]]


def test_dynamic_range_always_holds_zero():
    q, scale = reference.quantize_activations(torch.tensor([[127.0, 254.0], [-127.0, -254.0], [0.0, 0.0]]))
    assert scale.tolist() == [2.0, 2.0, 1.0]
    assert q.tolist() == [[64, 127], [-64, -127], [0, 0]]  # 63.5 is a tie, to 64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_alone_are_nan(bad):
    x = torch.tensor([[1.0, bad], [1.0, 2.0]])
    weight = torch.ones(1, 2, dtype=torch.int8)
    for operands in ((), ("none", *pair(0.1, 3))):
        y = reference.int8_linear(x, weight, torch.ones(1), None, *operands)
        assert y[0].isnan().all()
        assert y[1].isfinite().all()


def test_static_clamps_and_rounds_half_to_even():
    q, scale = reference.quantize_static(torch.tensor([[-1.0, 0.25, 0.75, 1e30, -1e30]]), *pair(0.5, 10))
    assert q.tolist() == [[-2, 0, 2, 117, -10]]
    assert scale.tolist() == [0.5]


def test_quantised_input_is_taken_as_it_is():
    x = torch.tensor([[0, 5, 127]], dtype=torch.uint8)
    y = reference.int8_linear(x, torch.tensor([[1, 2, -3]], dtype=torch.int8), ONE[None], None, "none", *pair(2.0, 5))
    assert y.dtype == torch.float32
    assert y.tolist() == [[(-5 + 0 - 3 * 122) * 2.0]]


def test_quantised_input_above_127_is_refused():
    with pytest.raises(KernelInputError, match="above 127"):
        reference.quantize_static(torch.tensor([[128]], dtype=torch.uint8), *pair(1.0, 0))


def test_quantised_output_by_hand():
    y = torch.tensor([[-9.0, 0.25, 0.75, 1.25, 1e9, float("inf"), -float("inf")]])
    assert reference.quantize_output(y, *pair(0.5, 3)).tolist() == [[0, 3, 5, 5, 127, 127, 0]]


def test_quantised_output_refuses_nan():
    with pytest.raises(KernelInputError, match="NaN"):
        reference.quantize_output(torch.tensor([[float("nan")]]), *pair(1.0, 0))


def test_epilogue_order():
    acc = torch.tensor([[3, -7]], dtype=torch.int32)
    y = reference.epilogue(acc, torch.tensor([0.5]), torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0]), "relu")
    assert y.tolist() == [[4.0, 0.0]]


@pytest.mark.parametrize(
    ("activation", "at_one"),
    [
        ("none", 1.0),
        ("relu", 1.0),
        ("gelu_tanh", 0.8411919906082768),
        ("gelu_erf", 0.8413447460685429),
        ("sigmoid", 0.7310585786300049),
        ("silu", 0.7310585786300049),
    ],
)
def test_activations_at_one(activation, at_one):
    y = reference.epilogue(torch.ones(1, 1, dtype=torch.int32), ONE[None], ONE[None], None, activation)
    assert abs(y.item() - at_one) < 1e-6


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 63)])
def test_weights_of_7_and_8_bits(bits, most):
    w = torch.randn(9, 31)
    q, scale = quantize_per_channel(w, weight_bits=bits)
    assert q.abs().amax(dim=1).tolist() == [most] * 9
    assert ((dequantize_per_channel(q, scale) - w).abs() <= scale[:, None] * 0.5001).all()


def test_weight_bits_are_7_or_8():
    with pytest.raises(KernelInputError, match="weight_bits is 4"):
        quantize_per_channel(torch.randn(2, 2), weight_bits=4)
