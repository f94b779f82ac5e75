"""The forms of int8_sparse24_linear in the plain language as compiled: their PTX, executed, gives the reference's bits.

Runs under every triton from 3.7 on. The layout that mma.sp rests on is asserted before a launch: kernels that lie
otherwise compute wrong numbers here, and the assertion refuses each.
"""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from ptx_launch import Emulated
from support.int8_linear_oracle import Operands, expected, operands
from support.ptx_edits import broken
from support.sparse24_oracle import canonical, dense

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.sparse24_gpu import FragmentWeight, pack
from recpress_kernels.int8_linear import kernel as int8_kernel
from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear import cuda, decompress, kernel, layouts, plain
from recpress_kernels.int8_sparse24_linear.launch import GLUON_TRITON, Config

PLAIN, GLUON, DECOMPRESS = plain.gemm_kernel, kernel.gemm_kernel, decompress.gemm_kernel
QUANTIZE = int8_kernel.quantize_rows_kernel
CONSTRAINTS, PRODUCT = plain.CONSTRAINTS, plain.PRODUCT
INSTALLED = tuple(int(part) for part in triton.__version__.split(".")[:2])


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernels and the device; returns a function that sets how they run."""

    def to(**options) -> None:
        rows = Emulated(QUANTIZE, ("q_ptr", "row_scale_ptr"), target=options.get("target", "sm_80"))
        monkeypatch.setattr(int8_kernel, "quantize_rows_kernel", rows)
        monkeypatch.setattr(plain, "gemm_kernel", Emulated(PLAIN, ("y_ptr",), **options))
        monkeypatch.setattr(cuda, "device_facts", lambda device: Device("cuda", 80, 108, (3, 8)))

    return to


def layer(m: int, k: int, n: int, **options) -> tuple[Operands, FragmentWeight]:
    values, indices = canonical(n, k)
    return replace(operands(m, k, n, **options), weight=dense(values, indices)), pack(values, indices)


def run(o: Operands, weight: FragmentWeight, config: Config | None = None) -> torch.Tensor:
    return cuda.int8_sparse24_linear(o.x, weight, *o.all()[2:], config=config)


def same(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("target", "m"),
    [*(("sm_80", m) for m in (1, 3, 8)), *((target, 35) for target in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120"))],
)
def test_ragged_batches_on_every_target(emulate, target, m):
    emulate(target=target)
    o, weight = layer(m, 132, 70, activation="relu")
    same(run(o, weight), expected(o))


@pytest.mark.parametrize(
    ("config", "k", "n"),
    [
        (Config(1, 1, 1, 1), 4, 1),
        (Config(1, 2, 2, 1), 128, 17),
        (Config(4, 2, 1, 2), 60, 130),
        (Config(4, 4, 4, 4), 512, 300),
    ],
    ids=str,
)
def test_tiles(emulate, config, k, n):
    emulate()
    o, weight = layer(35, k, n, bias=False)
    same(run(o, weight, config), expected(o))


@pytest.mark.parametrize(("m", "k", "order"), [(20, 132, "backward"), (35, 60, "forward")])
def test_the_form_without_sparse_tensor_cores(monkeypatch, emulate, m, k, order):
    emulate()
    monkeypatch.setattr(cuda, "device_facts", lambda device: Device("hip", 0, 4, (3, 9)))
    monkeypatch.setattr(decompress, "gemm_kernel", Emulated(DECOMPRESS, ("y_ptr",), order=order))
    o, weight = layer(m, k, 70, dtype=torch.float16, activation="relu")
    same(run(o, weight), expected(o))
    weight.metadata[0, 0, 5] ^= 1
    assert not torch.equal(run(o, weight), expected(o))
    assert decompress.gemm_kernel.launches == 2


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_any_order_of_warps(emulate, order):
    emulate(order=order)
    o, weight = layer(9, 256, 300)
    same(run(o, weight, Config(2, 2, 4, 4)), expected(o))


@pytest.mark.parametrize("zero_point", [0, 37])
def test_uint8_input_and_output(emulate, zero_point):
    emulate()
    o, weight = layer(9, 60, 40, dtype=torch.uint8, zero_point=zero_point, quantized_out=True, activation="relu")
    same(run(o, weight), expected(o))


def test_rows_that_are_16_bytes_apart_more_than_whole_steps(emulate):
    """A stride of 5 * 16 bytes is no multiple of 16 words, and the layout must not depend on that."""
    emulate()
    o, weight = layer(9, 64, 40, dtype=torch.uint8)
    wide = torch.zeros(9, 80, dtype=torch.uint8)
    wide[:, :64] = o.x
    same(run(replace(o, x=wide[:, :64]), weight), expected(o))


def test_rows_that_are_not_finite_give_nan_alone(emulate):
    emulate()
    o, weight = layer(5, 132, 17, dtype=torch.float16, static=True)
    o.x[1, 3], o.x[4, 131] = float("nan"), float("inf")
    y = run(o, weight)
    assert y.isnan().all(dim=1).tolist() == [False, True, False, False, True]
    same(y, expected(o))


@pytest.mark.skipif(INSTALLED < GLUON_TRITON, reason="Gluon of this triton has no threadwise inline asm")
def test_both_forms_give_the_same_bits(emulate, monkeypatch):
    emulate()
    o, weight = layer(9, 128, 70, activation="gelu_tanh")
    given = run(o, weight, Config(1, 2, 2, 1))
    monkeypatch.setattr(kernel, "gemm_kernel", Emulated(GLUON, ("y_ptr",)))
    monkeypatch.setattr(cuda, "device_facts", lambda device: Device("cuda", 80, 108, (3, 9)))
    same(run(o, weight, Config(1, 2, 2, 1)), given)
    assert kernel.gemm_kernel.launches == plain.gemm_kernel.launches == 1


@triton.jit
def rows_kernel(values_ptr, metadata_ptr, q_ptr, y_ptr, SHAPE: tl.constexpr):
    """Products of one step, two tiles of outputs and 8 rows of x: y is what each lane holds, ``[64, 4]``."""
    if SHAPE == "rows":
        lane, four = tl.arange(0, 64)[:, None], tl.arange(0, 4)[None, :]
    elif SHAPE == "columns":
        lane, four = tl.arange(0, 64)[None, :], tl.arange(0, 4)[:, None]
    else:
        lane, four = tl.arange(0, 256) // 4, tl.arange(0, 256) % 4
    words = lane * 4 + four
    q = tl.load(q_ptr + lane // 4 % 8 * 16 + lane % 4 * 4 + four)
    operands = [tl.load(values_ptr + words), tl.load(metadata_ptr + words), q, tl.zeros(words.shape, tl.int32)]
    tl.store(y_ptr + words, tl.inline_asm_elementwise(PRODUCT, CONSTRAINTS, operands, tl.int32, is_pure=True, pack=4))


@pytest.mark.parametrize(
    ("shape", "warps", "right"), [("rows", 2, True), ("rows", 4, False), ("columns", 4, False), ("flat", 4, False)]
)
def test_what_comes_out_wrong_is_refused_before_it_runs(shape, warps, right):
    """Twice the warps that the rows fill give a thread two words, not four; only then is a 1-D tensor wrong as well."""
    values, indices = canonical(32, 64)
    weight = pack(values, indices)
    q = torch.randint(-127, 128, (8, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    wanted = (q.int() @ dense(values, indices).int().T).view(4, 2, 2, 2, 8)  # t, c, tile, h, g
    wanted = wanted.permute(2, 4, 0, 3, 1).reshape(64, 4)
    y = torch.zeros(64, 4, dtype=torch.int32)
    products = Emulated(rows_kernel, ("y_ptr",))
    arguments = (weight.values, weight.metadata.view(torch.int8), q.view(torch.int32), y)
    try:
        products[(1,)](*arguments, SHAPE=shape, num_warps=warps)
    except AssertionError as illegal:
        assert not right and "rising order" in str(illegal)
    else:
        assert torch.equal(y, wanted) == right
    products.launches = 0
    if right:
        layouts.Checked(products)[(1,)](*arguments, SHAPE=shape, num_warps=warps)
    else:
        with pytest.raises(KernelInputError, match="Gluon"):
            layouts.Checked(products)[(1,)](*arguments, SHAPE=shape, num_warps=warps)
    assert products.launches == right


def test_x_through_shared_memory_is_refused(emulate):
    emulate()
    with pytest.raises(KernelInputError, match="stages=3 and form plain; give neither stages nor split"):
        run(*layer(3, 64, 17), Config(1, 1, 1, 1, stages=3))


def test_every_variant_is_checked_once(emulate, monkeypatch):
    emulate()
    checked = []
    monkeypatch.setattr(layouts, "check", lambda ttgir, warps: checked.append(warps))
    for m, k in ((3, 60), (3, 60), (16, 60)):  # 16 rows are another variant
        o, weight = layer(m, k, 17)
        same(run(o, weight, Config(1, 1, 1, 1)), expected(o))
    assert checked == [1, 1]


@pytest.mark.parametrize(
    "defect",
    [
        (r"(mma\.sp\S* \{[^}]*\}, \{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"(mma\.sp\S* \{[^}]*\}, \{[^}]*\}, \{)(%r\d+), (%r\d+)", r"\1\3, \2"),
    ],
    ids=["A registers swapped", "B registers swapped"],
)
def test_a_defect_in_the_kernel_shows(emulate, defect):
    emulate(edit=broken(*defect))
    o, weight = layer(9, 128, 64)
    assert not torch.equal(run(o, weight, Config(1, 2, 2, 1)), expected(o))


@pytest.mark.parametrize("bit", [0, 3, 28])
def test_a_flipped_bit_of_metadata_shows(emulate, bit):
    emulate()
    o, weight = layer(9, 128, 64)
    weight.metadata[0, 0, 5] ^= 1 << bit
    try:
        given = run(o, weight, Config(1, 2, 2, 1))
    except AssertionError as refused:
        assert "rising order" in str(refused)  # either outcome shows the defect
    else:
        assert not torch.equal(given, expected(o))


TTGIR = """\
#blocked = #ttg.blocked<{sizePerThread = [1, 4], threadsPerWarp = [32, 1], warpsPerCTA = [2, 1], order = [1, 0]}>
module attributes {"ttg.num-ctas" = 1 : i32, "ttg.num-warps" = 2 : i32, "ttg.threads-per-warp" = 32 : i32} {
  %0 = tt.elementwise_inline_asm "mma.sp {$0}" {packed_element = 4 : i32, pure = true} %1, %2, %3, %4 : \
tensor<64x4xi32, #blocked>, tensor<64x4xi8, #blocked>, tensor<64x4xi32, #blocked>, tensor<64x4xi32, #blocked> -> \
tensor<64x4xi32, #blocked> loc(#loc)
"""


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("[1, 4]", "[4, 1]"),
        ("[32, 1]", "[16, 2]"),
        ("[2, 1]", "[1, 2]"),
        ("order = [1, 0]", "order = [0, 1]"),
        ("packed_element = 4", "packed_element = 2"),
        ('-warps" = 2', '-warps" = 4'),
        ('-per-warp" = 32', '-per-warp" = 64'),
        ("#blocked> loc", "#blocked1> loc"),
        ("64x4xi8, #blocked", "64x4xi8, #linear"),
        ("64x4xi32", "32x4xi32"),
        ("tt.elementwise_inline_asm", "tt.something_new"),
    ],
)
def test_anything_but_whole_rows_is_refused(given, instead):
    layouts.check(TTGIR, 2)
    assert given in TTGIR
    with pytest.raises(KernelInputError, match="allowed is #ttg.blocked"):
        layouts.check(TTGIR.replace(given, instead), 2)
