"""The native kernels' activations against float64 truth, beside torch's own float32 error."""

import pytest
import torch
from int8_cases import path, same_bits
from torch.nn import functional

import recpress_kernels as rk
from recpress_kernels import native

TRUTH = {
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    # Spelt out: on AVX-512 functional.gelu gives NaN for infinity.
    "gelu_erf": lambda y: (0.5 * y.double() * torch.special.erfc(y.double() * -(0.5**0.5))).to(y.dtype),
}
# Units in the last place of the true value, for arguments down to where float32 has its full precision.
ULPS = {"sigmoid": 4, "silu": 4, "gelu_tanh": 32, "gelu_erf": 32}
ABSOLUTE = 2e-7  # of |y|, for the gelus, whose tails are smaller than the rounding of their arguments


def run(activation: str, y: torch.Tensor) -> torch.Tensor:
    """The activation of exactly y, [n]: a layer of zero weights whose bias is y."""
    weight = torch.zeros(y.numel(), 1, dtype=torch.int8)
    return rk.int8_linear(torch.zeros(1, 1), weight, torch.ones(y.numel()), y, activation)[0]


ARGUMENTS = torch.cat(
    [
        torch.linspace(-87, 88, 200_001),
        torch.linspace(-6, 6, 200_001),
        10 ** torch.linspace(-38, 2, 2001),
        -(10 ** torch.linspace(-38, 1.9, 2001)),
    ]
)


@pytest.mark.parametrize("name", native.isas())
@pytest.mark.parametrize("activation", TRUTH)
def test_error_against_float64(name, activation):
    truth = TRUTH[activation](ARGUMENTS.double())
    with path(name):
        got = run(activation, ARGUMENTS).double()
    error = (got - truth).abs()
    ulp = truth.abs().clamp(min=2.0**-126) * 2.0**-23
    if activation.startswith("gelu"):
        assert (error <= ABSOLUTE * ARGUMENTS.double().abs() + 1e-38).all()
        near = ARGUMENTS.abs() < 3
        assert (error[near] <= ULPS[activation] * ulp[near]).all()
    else:
        assert (error <= ULPS[activation] * ulp).all()


@pytest.mark.parametrize("name", native.isas())
@pytest.mark.parametrize("activation", TRUTH)
def test_far_arguments_and_what_is_not_a_number(name, activation):
    y = torch.tensor([float("nan"), float("inf"), 3e38, 1e30, 200.0, 0.0, -200.0, -1e30, -3e38])
    with path(name):
        got = run(activation, y)
    # In float64: torch's own float32 gelu on AVX-512 has NaN for infinity.
    want = TRUTH[activation](y.double()).float()
    want[0] = torch.nan
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("name", native.isas())
@pytest.mark.parametrize("n", [1, 7, 8, 15, 17, 33])
def test_every_lane_and_tail(name, n):
    y = torch.linspace(-3, 3, n)
    with path(name):
        for activation in TRUTH:
            assert same_bits(run(activation, y), torch.cat([run(activation, v[None]) for v in y]))
