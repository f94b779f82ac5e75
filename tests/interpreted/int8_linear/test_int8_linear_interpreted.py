"""int8_linear's GPU kernels under triton's interpreter, on awkward shapes: integers to the bit."""

from dataclasses import replace

import pytest
import torch
from support.int8_linear_oracle import AWKWARD_K, AWKWARD_M, AWKWARD_N, Operands, expected, operands, quantize

from recpress_kernels.errors import KernelInputError
from recpress_kernels.int8_linear import cuda
from recpress_kernels.int8_linear.launch import Config

FUSED = Config("fused", 16, 16, 64, 4, 3)
GEMM = Config("gemm", 32, 32, 64, 4, 3)
HALVES = Config("gemm", 16, 32, 64, 4, 3, halves=2)
TMA = Config("tma", 32, 32, 128, 4, 3)
ROUTES = {"fused": FUSED, "gemm": GEMM, "halves": HALVES, "tma": TMA}
# Every M with every K, N going round, and the other way: 20 shapes instead of 80.
SHAPES = [(m, k, AWKWARD_N[(i + j) % 4]) for i, m in enumerate(AWKWARD_M) for j, k in enumerate(AWKWARD_K)]


def run(o: Operands, config: Config, *, padded: bool = False) -> torch.Tensor:
    if padded:
        o = replace(o, weight=cuda.pad_rows(o.weight))
    return cuda.int8_linear(*o.all(), config=config)


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bits, except that exp and erf of the two libraries may differ in the last ones."""
    assert given.dtype == wanted.dtype and given.shape == wanted.shape
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("route", ["fused", "gemm", "halves", "tma"])
def test_dynamic_to_the_bit(route, m, k, n):
    o = operands(m, k, n)
    same(run(o, ROUTES[route], padded=route == "tma"), expected(o))


@pytest.mark.parametrize("block_m", [1, 2, 4, 8])
def test_fused_takes_blocks_of_fewer_rows_than_the_tensor_core(block_m):
    o = operands(block_m, 130, 17)
    same(run(o, replace(FUSED, block_m=block_m)), expected(o))


@pytest.mark.parametrize("zero_point", [0, 37, 127])
@pytest.mark.parametrize("route", ["fused", "gemm", "halves", "tma"])
def test_static_to_the_bit(route, zero_point):
    o = operands(17, 130, 17, static=True, zero_point=zero_point)
    same(run(o, ROUTES[route], padded=route == "tma"), expected(o))


@pytest.mark.parametrize("zero_point", [0, 37, 127])
@pytest.mark.parametrize(
    ("route", "m", "k", "n"),
    [
        *((route, *shape) for route in ("gemm", "halves") for shape in [(1, 13, 7), (17, 130, 17), (33, 479, 64)]),
        ("gemm", 3, 64, 1),
        ("tma", 17, 480, 17),
    ],
)
def test_quantized_input_to_the_bit(route, zero_point, m, k, n):
    o = operands(m, k, n, dtype=torch.uint8, zero_point=zero_point)
    same(run(o, ROUTES[route]), expected(o))


@pytest.mark.parametrize("route", ["fused", "gemm", "halves", "tma"])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_quantized_output_to_the_bit(route, activation):
    o = operands(17, 64, 17, quantized_out=True, activation=activation)
    same(run(o, ROUTES[route]), expected(o))


@pytest.mark.parametrize("route", ["fused", "gemm"])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "sigmoid", "silu"])
def test_activations(route, activation):
    o = operands(17, 130, 17, activation=activation)
    torch.testing.assert_close(run(o, ROUTES[route]), expected(o), rtol=2e-6, atol=2e-6)
    low = replace(o, out_scale=torch.tensor(0.03), out_zero_point=torch.tensor(9, dtype=torch.int32))
    steps = run(low, ROUTES[route]).int() - expected(low).int()
    assert steps.abs().max() <= 1 and steps.abs().float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("route", ["fused", "gemm"])
def test_half_precision(route, dtype):
    o = operands(17, 130, 17, dtype=dtype)
    # The interpreter cuts float32 to bfloat16 instead of rounding.
    rtol = 0 if dtype == torch.float16 else 2**-7
    torch.testing.assert_close(run(o, ROUTES[route]), expected(o), rtol=rtol, atol=0)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_split_k_to_the_bit(quantized, static):
    dtype = torch.uint8 if quantized else torch.float32
    o = operands(3, 479, 17, dtype=dtype, static=static, activation="relu")
    config = replace(HALVES if quantized else FUSED, splits=3)
    same(run(o, config), expected(o))


@pytest.mark.parametrize("route", ["fused", "gemm", "tma", "split"])
@pytest.mark.parametrize(
    ("bad", "static"),
    [(bad, static) for bad in map(float, ("nan", "inf", "-inf")) for static in (False, True)] + [(3.4e38, False)],
)
def test_rows_that_are_not_finite_give_nan_alone(route, static, bad):
    o = operands(17, 130, 7, static=static)
    o.x[3, 129] = bad
    if bad == 3.4e38:
        o.x[3, 0] = -bad  # finite, but their range overflows; a static scale would clip them
    config = replace(FUSED, splits=2) if route == "split" else ROUTES[route]
    y = run(o, config, padded=route == "tma")
    assert y[3].isnan().all()
    same(y, expected(o))


def test_zeros_denormals_and_constant_rows():
    o = operands(4, 64, 7)
    o.x[0] = 0
    o.x[1] = 1e-42
    o.x[1, 5] = -3e-43
    o.x[2] = -5.0
    o.x[3] = torch.arange(64) * 1e-45
    for config in ROUTES.values():
        same(run(o, config), expected(o))


def test_strided_rows_of_x():
    o = operands(17, 64, 17)
    wide = torch.full((17, 100), torch.nan)
    wide[:, :64] = o.x
    for config in (FUSED, GEMM, TMA):
        same(run(replace(o, x=wide[:, :64]), config), expected(o))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("m", "k"), [(1, 1), (33, 479), (3, 4100)])
def test_rows_are_quantised_to_the_bit_and_padded_with_zeros(m, k, static):
    o = operands(m, k, 1, static=static)
    q, scale = cuda.quantize_rows(o.x, o.x_scale, o.x_zero_point)
    wanted_q, wanted_scale = quantize(o)
    same(q, wanted_q)
    same(scale, wanted_scale)
    assert q.stride(0) % 16 == 0 and not q.as_strided((m, q.stride(0)), q.stride())[:, k:].any()


def test_padding_of_weights_may_hold_anything():
    o = operands(17, 130, 17)
    padded = cuda.pad_rows(o.weight)
    padded.as_strided((17, 144), padded.stride())[:, 130:] = 99
    for config in (FUSED, GEMM, TMA):
        same(run(replace(o, weight=padded), config), expected(o))
    u = operands(17, 130, 17, dtype=torch.uint8)
    padded[:] = u.weight
    same(run(replace(u, weight=padded), GEMM), expected(u))


def test_the_choice_of_launch_runs():
    from recpress_kernels.int8_linear.launch import Device, choose

    o = operands(33, 130, 17)
    device = Device("cuda", 80, 108, (3, 9))
    same(run(o, choose(33, 17, 130, device, quantized=False, aligned=False)), expected(o))


def test_no_rows():
    o = operands(0, 13, 7)
    assert run(o, FUSED).shape == (0, 7)


@pytest.mark.parametrize(("config", "dtype", "reason"), [(FUSED, torch.uint8, "uint8"), (TMA, torch.float32, "pad")])
def test_a_configuration_that_cannot_run_is_refused(config, dtype, reason):
    with pytest.raises(KernelInputError, match=reason):
        run(operands(3, 13, 7, dtype=dtype), config)
