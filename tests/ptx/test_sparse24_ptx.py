"""sparse24_linear as compiled: its PTX, executed, gives exact sums to the bit and others within float32's rounding.

Everything but the launch itself runs as on a GPU: cuda.py chooses, allocates and passes its arguments. Then kernels
broken on purpose: each defect must show.
"""

from dataclasses import replace

import pytest
import torch
import triton
from ptx_launch import Emulated
from support.ptx_edits import broken
from support.sparse24_oracle import Layer, half_layer

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.sparse24_gpu import FragmentWeight, pack
from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear import cuda as int8_cuda
from recpress_kernels.int8_sparse24_linear.launch import GLUON_TRITON, Config
from recpress_kernels.sparse24_linear import cuda, fragments, kernel
from recpress_kernels.sparse24_linear.launch import STAGED
from recpress_kernels.support import Support

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < GLUON_TRITON:
    pytest.skip("Gluon of this triton has no threadwise inline asm", allow_module_level=True)

FUNCTION = kernel.gemm_kernel
DTYPES = (torch.float16, torch.bfloat16)
SMALL_STAGED = Config(1, 4, 1, 2, stages=3)


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernel and the device; returns a function that sets how it runs."""

    def to(**options) -> None:
        monkeypatch.setattr(kernel, "gemm_kernel", Emulated(FUNCTION, ("y_ptr",), **options))
        monkeypatch.setattr(int8_cuda, "device_facts", lambda device: Device("cuda", 80, 108, (3, 9)))

    return to


def run(o: Layer, config: Config | None = None, weight: FragmentWeight | None = None) -> torch.Tensor:
    weight = weight or pack(o.values, o.indices)
    return cuda.sparse24_linear(o.x, weight, o.bias, o.activation, config=config)


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("m", [1, 3, 8, 35])
@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
def test_ragged_batches_on_every_target(emulate, target, m):
    emulate(target=target)
    dtype = DTYPES[m % 3 % 2]
    o = half_layer(m, 133, 70, dtype, whole=True, activation="relu")
    same(run(o), o.truth().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 63, 132, 512])
def test_any_numbers_within_float32_rounding(emulate, k, dtype):
    emulate()
    o = half_layer(9, k, 40, dtype)
    assert o.excess(run(o)) <= 0


@pytest.mark.parametrize(("k", "n"), [(4, 1), (60, 17), (320, 300)])
@pytest.mark.parametrize("config", [Config(1, 1, 1, 1), Config(2, 4, 1, 2), Config(4, 4, 4, 4)], ids=str)
def test_tiles(emulate, config, k, n):
    emulate()
    o = half_layer(35, k, n, torch.float16, whole=True, bias=False)
    if -(-n // 16) < config.tiles_n * config.warps:
        with pytest.raises(KernelInputError, match="there are"):
            run(o, config)
    else:
        same(run(o, config), o.truth().to(torch.float16))


@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize("config", [Config(2, 2, 4, 4), SMALL_STAGED], ids=str)
def test_any_order_of_warps(emulate, order, config):
    emulate(order=order)
    o = half_layer(9, 320, 300, torch.bfloat16, whole=True)
    same(run(o, config), o.truth().to(torch.bfloat16))


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
def test_x_through_shared_memory_on_every_target(emulate, target):
    emulate(target=target)
    o = half_layer(67, 260, 270, torch.float16, whole=True, activation="relu")
    same(run(o, STAGED), o.truth().half())


@pytest.mark.parametrize(("steps", "stages"), [(1, 3), (2, 3), (3, 3), (7, 3), (1, 2), (5, 2), (2, 4)])
def test_any_number_of_steps_through_any_number_of_places(emulate, steps, stages):
    emulate()
    o = half_layer(9, 64 * steps, 40, torch.float16, whole=True)
    same(run(o, replace(SMALL_STAGED, stages=stages)), o.truth().half())


def test_one_place_is_refused(emulate):
    emulate()
    with pytest.raises(KernelInputError, match="2 and more"):
        run(half_layer(9, 64, 40, torch.float16), replace(SMALL_STAGED, stages=1))


def test_x_that_is_a_view_and_a_float32_bias(emulate):
    emulate()
    o = half_layer(9, 64, 40, torch.float16, whole=True)
    wide = torch.full((9, 131), float("nan"), dtype=torch.float16)
    wide[:, 3:67] = o.x
    o.x, o.bias = wide[:, 3:67], o.bias.float()
    same(run(o), o.truth().half())


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "sigmoid", "silu"])
def test_activations(emulate, activation):
    emulate()
    o = half_layer(3, 64, 17, torch.float16, whole=True, activation=activation)
    torch.testing.assert_close(run(o).double(), o.truth(), rtol=2**-10, atol=2**-14)


def test_rows_that_are_not_finite_stay_alone(emulate):
    emulate()
    o = half_layer(5, 132, 17, torch.float16)
    o.x[1], o.x[4] = float("nan"), float("inf")
    y = run(o)
    assert y.isfinite().all(dim=1).tolist() == [True, False, True, True, False]


def test_no_rows_and_a_weight_of_another_kind(emulate):
    emulate()
    o = half_layer(3, 64, 17, torch.float16)
    weight = pack(o.values, o.indices)
    o.x = o.x[:0]
    assert run(o).shape == (0, 17)
    o.x = o.x.bfloat16()
    with pytest.raises(KernelInputError, match="packed from torch.bfloat16"):
        run(o, weight=weight)


def test_the_op_on_fragments_runs_the_kernel_where_the_device_has_it(emulate, monkeypatch):
    emulate()
    o = half_layer(6, 133, 40, torch.float16, whole=True)
    operands = (o.x.view(2, 3, 133), *pack(o.values, o.indices).operands(), o.bias)
    monkeypatch.setattr(fragments, "form", lambda device: Support(False, "no sparse tensor core"))
    same(fragments._cuda(*operands), o.truth().half().view(2, 3, 40))
    assert kernel.gemm_kernel.launches == 0
    monkeypatch.setattr(fragments, "form", lambda device: Support(True, ""))
    same(fragments._cuda(*operands), o.truth().half().view(2, 3, 40))
    assert kernel.gemm_kernel.launches == 1


@pytest.mark.parametrize(
    "defect",
    [
        (r"(mma\.sp\S* \{[^}]*\}, \{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"(mma\.sp\S* \{[^}]*\}, \{[^}]*\}, \{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"(mma\.sp[^;]*), 0;", r"\1, 1;"),
        (r"(mma\.sp[^;]*), 1;", r"\1, 0;"),
        (r"(mma\.sp\S*)\.f16\.f16\.f32", r"\1.bf16.bf16.f32"),
    ],
    ids=["A registers swapped", "B registers swapped", "selector 1 for 0", "selector 0 for 1", "bf16 for fp16"],
)
def test_a_defect_in_the_kernel_shows(emulate, defect):
    emulate(edit=broken(*defect))
    o = half_layer(9, 128, 64, torch.float16, whole=True)
    assert not torch.equal(run(o, Config(1, 2, 2, 1)), o.truth().half())


@pytest.mark.parametrize(
    ("defect", "order"),
    [
        ((r"cp\.async\.wait_group\s+1;", ""), "in step"),
        ((r"cp\.async\.wait_group\s+1;", "cp.async.wait_group 2;"), "in step"),
        ((r"bar\.sync\s+0;", "", 0), "forward"),
        ((r"(ldmatrix\S*\s+\{\s*)(%r\d+), (%r\d+)", r"\1\3, \2"), "in step"),
    ],
    ids=["no wait", "a wait for one group too few", "no barrier", "ldmatrix registers swapped"],
)
def test_a_defect_on_the_way_through_shared_memory_shows(emulate, defect, order):
    emulate(edit=broken(*defect), order=order)
    o = half_layer(35, 320, 64, torch.float16, whole=True)
    assert not torch.equal(run(o, SMALL_STAGED), o.truth().half())


@pytest.mark.parametrize(("lane", "bit"), [(4, 0), (5, 17), (6, 3), (7, 31)])  # of both products, of both rows
def test_a_flipped_bit_of_metadata_shows(emulate, lane, bit):
    emulate()
    o = half_layer(9, 64, 16, torch.float16, whole=True)
    weight = pack(o.values, o.indices)
    weight.metadata[0, 0, lane] ^= -(1 << 31) if bit == 31 else 1 << bit
    try:
        given = run(o, weight=weight)
    except AssertionError as refused:
        assert "rising order" in str(refused)  # either outcome shows the defect
    else:
        assert not torch.equal(given, o.truth().half())
