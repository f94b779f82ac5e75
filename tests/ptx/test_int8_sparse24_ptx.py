"""int8_sparse24_linear as compiled: its PTX, executed, gives the integers of the dense reference to the bit.

Everything but the launch itself runs as on a GPU: cuda.py chooses, allocates and passes its arguments. Then kernels
broken on purpose: each defect must show.
"""

from dataclasses import replace

import pytest
import torch
import triton
from ptx_launch import Emulated
from support.int8_linear_oracle import Operands, expected, operands
from support.ptx_edits import broken
from support.sparse24_oracle import canonical, dense

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.sparse24_gpu import FragmentWeight, pack
from recpress_kernels.int8_linear import kernel as int8_kernel
from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear import cuda, fragments, kernel
from recpress_kernels.int8_sparse24_linear.launch import GLUON_TRITON, Config
from recpress_kernels.support import Support

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < GLUON_TRITON:
    pytest.skip("Gluon of this triton has no threadwise inline asm", allow_module_level=True)

FUNCTION, QUANTIZE = kernel.gemm_kernel, int8_kernel.quantize_rows_kernel
SMALL, LARGE, SPLIT = Config(1, 1, 1, 1), Config(4, 4, 4, 4), Config(1, 2, 2, 8, split=True)


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernels and the device; returns a function that sets how they run."""

    def to(**options) -> None:
        rows = Emulated(QUANTIZE, ("q_ptr", "row_scale_ptr"), target=options.get("target", "sm_80"))
        monkeypatch.setattr(int8_kernel, "quantize_rows_kernel", rows)
        monkeypatch.setattr(kernel, "gemm_kernel", Emulated(FUNCTION, ("y_ptr",), **options))
        monkeypatch.setattr(cuda, "device_facts", lambda device: Device("cuda", 80, 108, (3, 9)))

    return to


def layer(m: int, k: int, n: int, **options) -> tuple[Operands, FragmentWeight]:
    values, indices = canonical(n, k)
    return replace(operands(m, k, n, **options), weight=dense(values, indices)), pack(values, indices)


def run(o: Operands, weight: FragmentWeight, config: Config | None = None) -> torch.Tensor:
    return cuda.int8_sparse24_linear(o.x, weight, *o.all()[2:], config=config)


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("m", [1, 3, 8, 35])
@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
def test_ragged_batches_on_every_target(emulate, target, m):
    emulate(target=target)
    o, weight = layer(m, 132, 70, activation="relu")
    same(run(o, weight), expected(o))


@pytest.mark.parametrize("target", ["sm_86", "sm_89", "sm_90", "sm_120"])
def test_tiles_of_large_shapes_on_other_targets(emulate, target):
    emulate(target=target)
    o, weight = layer(35, 320, 300)
    same(run(o, weight, LARGE), expected(o))


@pytest.mark.parametrize(("k", "n"), [(4, 1), (60, 17), (320, 300)])
@pytest.mark.parametrize("config", [SMALL, Config(2, 4, 1, 2), LARGE, Config(4, 8, 1, 4, stages=3), SPLIT], ids=str)
def test_tiles(emulate, config, k, n):
    emulate()
    o, weight = layer(35, k, n, bias=False)
    if -(-n // 16) < config.tiles:
        with pytest.raises(KernelInputError, match="there are"):
            run(o, weight, config)
    else:
        same(run(o, weight, config), expected(o))


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_any_order_of_warps(emulate, order):
    emulate(order=order)
    o, weight = layer(9, 256, 300)
    same(run(o, weight, Config(2, 2, 4, 4)), expected(o))


@pytest.mark.parametrize("zero_point", [0, 37])
@pytest.mark.parametrize("k", [60, 128])
def test_uint8_input_and_output(emulate, zero_point, k):
    emulate()
    o, weight = layer(9, k, 40, dtype=torch.uint8, zero_point=zero_point, quantized_out=True, activation="relu")
    same(run(o, weight), expected(o))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_static_scales_and_half_precision(emulate, dtype):
    emulate()
    o, weight = layer(9, 64, 40, dtype=dtype, static=True)
    same(run(o, weight), expected(o))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "sigmoid", "silu"])
def test_activations(emulate, activation):
    emulate()
    o, weight = layer(3, 64, 17, activation=activation)
    torch.testing.assert_close(run(o, weight), expected(o), rtol=2e-6, atol=2e-6)


def test_rows_that_are_not_finite_give_nan_alone(emulate):
    emulate()
    o, weight = layer(5, 132, 17)
    o.x[1, 3], o.x[4, 131] = float("nan"), float("inf")
    y = run(o, weight)
    assert y.isnan().all(dim=1).tolist() == [False, True, False, False, True]
    same(y, expected(o))


def test_no_rows_and_a_weight_of_another_kind(emulate):
    emulate()
    o, weight = layer(3, 64, 17)
    assert run(replace(o, x=o.x[:0]), weight).shape == (0, 17)
    with pytest.raises(KernelInputError, match="float16"):
        run(o, pack(*canonical(17, 64, torch.float16)))
    with pytest.raises(KernelInputError, match="takes"):
        run(replace(o, x=o.x[:, :60]), weight)


def test_a_device_without_the_instruction_is_refused(emulate, monkeypatch):
    emulate()
    monkeypatch.setattr(cuda, "device_facts", lambda device: Device("cuda", 75, 40, (3, 9)))
    with pytest.raises(KernelInputError, match="begin with sm_80"):
        run(*layer(3, 64, 17))


def test_the_op_on_fragments_runs_the_kernel_where_the_device_has_it(emulate, monkeypatch):
    emulate()
    o, weight = layer(6, 132, 40, activation="relu")
    given = (o.x.view(2, 3, 132), *weight.operands(), *o.all()[2:])
    monkeypatch.setattr(fragments, "form", lambda *_: Support(False, "no sparse tensor core"))
    same(fragments._cuda(*given), expected(o).view(2, 3, 40))
    assert kernel.gemm_kernel.launches == 0
    monkeypatch.setattr(fragments, "form", lambda *_: Support(True, ""))
    same(fragments._cuda(*given), expected(o).view(2, 3, 40))
    assert kernel.gemm_kernel.launches == 1


@pytest.mark.parametrize(
    "defect",
    [
        (r"(mma\.sp\S* \{[^}]*\}, \{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"(mma\.sp\S* \{[^}]*\}, \{[^}]*\}, \{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"(mma\.sp\S*)\.s8\.s8\.s32", r"\1.s8.u8.s32"),
    ],
    ids=["A registers swapped", "B registers swapped", "u8 for s8"],
)
def test_a_defect_in_the_kernel_shows(emulate, defect):
    emulate(edit=broken(*defect))
    o, weight = layer(9, 128, 64)
    assert not torch.equal(run(o, weight, Config(1, 2, 2, 1)), expected(o))


@pytest.mark.parametrize("bit", [0, 1, 2, 3, 31])
def test_a_flipped_bit_of_metadata_shows(emulate, bit):
    emulate()
    o, weight = layer(9, 64, 16)
    weight.metadata[0, 0, 5] ^= -(1 << 31) if bit == 31 else 1 << bit
    try:
        given = run(o, weight)
    except AssertionError as refused:
        assert "rising order" in str(refused)  # either outcome shows the defect
    else:
        assert not torch.equal(given, expected(o))


def test_groups_that_are_not_transposed_show(emulate, monkeypatch):
    monkeypatch.setattr("recpress_kernels.formats.sparse24_gpu._transpose_groups", lambda groups: groups)
    emulate()
    o, weight = layer(9, 64, 16)
    assert not torch.equal(run(o, weight), expected(o))
