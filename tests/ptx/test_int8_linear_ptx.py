"""int8_linear's GPU kernels as compiled: their PTX, executed, gives the integers of the reference to the bit.

Everything but the launch itself runs as on a GPU: cuda.py chooses, allocates and passes its arguments.
"""

from dataclasses import replace

import pytest
import torch
from ptx_launch import Emulated
from support.int8_linear_oracle import Operands, expected, operands, quantize

from recpress_kernels.int8_linear import cuda, kernel
from recpress_kernels.int8_linear.launch import FUSED_TILES, MMA_TILES, Config

WRITES = {
    "fused_kernel": ("y_ptr", "partial_ptr", "row_scale_ptr"),
    "gemm_kernel": ("y_ptr", "partial_ptr"),
    "gemm_tma_kernel": ("y_ptr",),
    "quantize_rows_kernel": ("q_ptr", "row_scale_ptr"),
    "reduce_kernel": ("y_ptr",),
}
FUNCTIONS = {name: getattr(kernel, name) for name in WRITES}
FUSED = FUSED_TILES[1]
SMALL = replace(MMA_TILES[3], halves=2)
MEDIUM = replace(MMA_TILES[2], halves=2)


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernels; returns a function that sets how they run."""

    def to(**options) -> dict[str, Emulated]:
        emulated = {name: Emulated(FUNCTIONS[name], writes, **options) for name, writes in WRITES.items()}
        for name, stand_in in emulated.items():
            monkeypatch.setattr(kernel, name, stand_in)
        return emulated

    return to


def run(o: Operands, config: Config, *, padded: bool = False) -> torch.Tensor:
    if padded:
        o = replace(o, weight=cuda.pad_rows(o.weight))
    return cuda.int8_linear(*o.all(), config=config)


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", ["in step", "forward", "backward"])
@pytest.mark.parametrize(
    ("config", "m"), [(replace(FUSED, block_m=1, block_k=256), 1), (FUSED, 16), (SMALL, 17), (MEDIUM, 33)], ids=str
)
def test_dynamic_to_the_bit_in_any_order_of_warps(emulate, config, m, order):
    emulated = emulate(order=order)
    o = operands(m, 479, 17, activation="relu")
    same(run(o, config), expected(o))
    assert emulated[f"{config.route}_kernel"].launches == 1


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 13, 7), (17, 64, 64), (33, 130, 1)])
@pytest.mark.parametrize("route", ["fused", "gemm"])
def test_awkward_shapes_to_the_bit(emulate, route, m, k, n):
    emulate()
    o = operands(m, k, n, bias=False)
    same(run(o, FUSED if route == "fused" else SMALL, padded=m > 3), expected(o))


@pytest.mark.parametrize("target", ["sm_86", "sm_89", "sm_90", "sm_120"])
def test_other_targets_to_the_bit(emulate, target):
    emulate(target=target)
    o = operands(17, 130, 17)
    same(run(o, SMALL), expected(o))
    same(run(o, FUSED), expected(o))


def test_the_largest_tile_to_the_bit(emulate):
    emulate()
    o = operands(130, 256, 129)
    same(run(o, replace(MMA_TILES[0], halves=2)), expected(o))


@pytest.mark.parametrize("zero_point", [0, 37])
def test_quantized_input_to_the_bit(emulate, zero_point):
    emulate(order="backward")
    o = operands(17, 130, 17, dtype=torch.uint8, zero_point=zero_point)
    same(run(o, SMALL), expected(o))


@pytest.mark.parametrize("route", ["fused", "gemm"])
def test_static_scales_and_quantized_output_to_the_bit(emulate, route):
    emulate()
    o = operands(9, 130, 17, static=True, quantized_out=True, activation="relu")
    same(run(o, FUSED if route == "fused" else SMALL), expected(o))


@pytest.mark.parametrize("zero_point", [0, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_descriptors_to_the_bit(emulate, dtype, zero_point):
    """On sm_80 triton turns descriptors into pointers; the hardware's own copies are not emulated."""
    emulate(order="forward")
    o = operands(33, 480, 17, dtype=dtype, static=True, zero_point=zero_point)
    same(run(o, Config("tma", 32, 32, 128, 4, 3)), expected(o))


@pytest.mark.parametrize("quantized", [False, True])
def test_split_k_to_the_bit(emulate, quantized):
    emulated = emulate()
    o = operands(3, 479, 17, dtype=torch.uint8 if quantized else torch.float32, static=quantized)
    same(run(o, replace(SMALL if quantized else FUSED, splits=3)), expected(o))
    assert emulated["reduce_kernel"].launches == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("route", ["fused", "gemm"])
def test_half_precision_to_the_bit(emulate, route, dtype):
    emulate()
    o = operands(17, 130, 17, dtype=dtype)
    same(run(o, FUSED if route == "fused" else SMALL), expected(o))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "sigmoid", "silu"])
def test_activations(emulate, activation):
    emulate()
    o = operands(3, 64, 17, activation=activation)
    torch.testing.assert_close(run(o, replace(FUSED, block_m=4)), expected(o), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("route", ["fused", "gemm", "split"])
def test_rows_that_are_not_finite_give_nan_alone(emulate, route):
    emulate()
    o = operands(5, 130, 7)
    o.x[0, 3], o.x[2, 129], o.x[3, 0], o.x[4, 5], o.x[4, 6] = float("nan"), float("inf"), -float("inf"), 3e38, -3e38
    y = run(o, {"fused": FUSED, "gemm": SMALL, "split": replace(FUSED, splits=2)}[route])
    assert y.isnan().all(dim=1).tolist() == [True, False, True, True, True]
    same(y, expected(o))


@pytest.mark.parametrize("static", [False, True])
def test_rows_are_quantised_to_the_bit(emulate, static):
    emulate()
    o = operands(5, 479, 1, static=static)
    o.x[1] = torch.arange(479) * 1e-45
    o.x[2] = 0
    q, scale = cuda.quantize_rows(o.x, o.x_scale, o.x_zero_point)
    same(q, quantize(o)[0])
    same(scale, quantize(o)[1])


def test_rows_of_x_apart_and_poison_between(emulate):
    emulate()
    o = operands(9, 64, 17)
    wide = torch.full((9, 100), torch.nan)
    wide[:, :64] = o.x
    for config in (FUSED, SMALL):
        same(run(replace(o, x=wide[:, :64]), config), expected(o))
