"""int8_linear and int8_mlp: every path gives the bits of the reference."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.fx.experimental.proxy_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_cases import PATHS, guarded, hard_rows, layer, path, rows, same_bits

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.int8_linear import cpu, reference
from recpress_kernels.int8_mlp import reference as mlp_reference

DEPTHS = [1, 3, 8, 13, 479, 1041, 5000]
WIDTHS = [1, 7, 15, 16, 17, 33]


def pair(scale: float, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)


def packed_linear(x, weight, scale, bias, activation="none", *pairs):
    return rk.int8_linear_packed(x, rk.pack(weight, scale, bias, activation), weight.shape[0], *pairs)


def test_native_kernels_are_built():
    """The tests of the native paths mean nothing without them: where there is a compiler, a failed build must show."""
    if not native.status().ok and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    assert native.status().ok, native.status().reason
    assert "portable" in PATHS


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("k", DEPTHS)
@pytest.mark.parametrize("most", [127, 63, 30])
def test_awkward_shapes(name, k, most):
    with path(name):
        for n in WIDTHS:
            weight, scale, bias = layer(n, k, most=most)
            for m in (0, 1, 2, 3, 4, 17, 51):
                x = rows(m, k)
                want = reference.int8_linear(x, weight, scale, bias, "relu")
                assert same_bits(rk.int8_linear(x, weight, scale, bias, "relu"), want), (m, n)
                assert same_bits(packed_linear(x, weight, scale, bias, "relu"), want), (m, n)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("k", [1, 3, 8, 13, 33, 479])
def test_hard_rows(name, k):
    x = hard_rows(k)
    weight, scale, _ = layer(17, k)
    want = reference.int8_linear(x, weight, scale)
    assert want[-9:].isnan().all()
    with path(name):
        assert same_bits(rk.int8_linear(x, weight, scale), want)
        assert same_bits(packed_linear(x, weight, scale, None), want)
        for calibrated in (pair(0.37, 40), pair(1e-40, 127), pair(3e38, 0), pair(1e-3, 0)):
            want_static = reference.int8_linear(x, weight, scale, None, "none", *calibrated)
            assert same_bits(rk.int8_linear(x, weight, scale, None, "none", *calibrated), want_static)


@pytest.mark.parametrize("name", PATHS)
def test_values_next_to_every_tie(name):
    """(n + 1/2) * scale and its neighbours, for many scales: where a reciprocal in place of a division would err."""
    g = torch.Generator().manual_seed(5)
    top = torch.rand(200, 1, generator=g) * 10 ** torch.linspace(-30, 30, 200)[:, None]
    ties = (torch.arange(127) + 0.5) * (top / 127)
    x = torch.cat([top, ties, *[torch.nextafter(ties, torch.full_like(ties, v)) for v in (0.0, 1e38)]], dim=1)
    weight = torch.eye(x.shape[1], dtype=torch.int8)
    one = torch.ones(x.shape[1])
    with path(name):
        assert same_bits(rk.int8_linear(x, weight, one), reference.int8_linear(x, weight, one))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("w", [127, -127, -128, 63, -63])
@pytest.mark.parametrize("k", [4, 8, 1000])
def test_extreme_products_do_not_saturate(name, w, k):
    weight = torch.full((17, k), w, dtype=torch.int8)
    x = torch.full((5, k), 127, dtype=torch.uint8)
    one = torch.ones(17)
    for zero in (0, 127):
        want = torch.full((5, 17), float((127 - zero) * w * k))
        with path(name):
            assert torch.equal(rk.int8_linear(x, weight, one, None, "none", *pair(1.0, zero)), want)
            assert torch.equal(packed_linear(x, weight, one, None, "none", *pair(1.0, zero)), want)


def test_float32_blocks_of_the_torch_path_are_exact():
    q = torch.full((1, 2 * cpu.EXACT_BLOCK), 127, dtype=torch.int8)
    weight = torch.full((1, 2 * cpu.EXACT_BLOCK), -128, dtype=torch.int8)
    weight[0, ::2] = -127
    weight[0, 1] = 1
    assert torch.equal(cpu.accumulate(q, weight), reference.accumulate(q, weight))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(name, dtype):
    weight, scale, bias = layer(33, 479)
    x = hard_rows(479).to(dtype)
    want = reference.int8_linear(x, weight, scale, bias, "relu")
    with path(name):
        assert same_bits(rk.int8_linear(x, weight, scale, bias, "relu"), want)
        assert same_bits(packed_linear(x, weight, scale, bias, "relu"), want)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half(name, dtype):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[:, None]
    weight = torch.tensor([[127], [-3]], dtype=torch.int8)
    scale = torch.tensor([0.0078, 0.51])
    with path(name):
        assert same_bits(rk.int8_linear(x, weight, scale), reference.int8_linear(x, weight, scale))


@pytest.mark.parametrize("name", PATHS)
def test_strides_and_leading_dimensions(name):
    weight, scale, bias = layer(17, 13)
    poisoned = torch.full((9, 40), float("nan"))
    views = {
        "rows apart": poisoned[1:7, 5:18].copy_(rows(6, 13)),
        "transposed": rows(13, 6).T,
        "every other": rows(6, 26)[:, ::2],
        "expanded": rows(1, 13).expand(6, 13),
        "four dimensions": rows(12, 13).view(2, 3, 2, 13),
        "one dimension": rows(1, 13)[0],
        "no rows": torch.empty(0, 3, 13),
    }
    with path(name):
        for what, x in views.items():
            want = reference.int8_linear(x.reshape(-1, 13), weight, scale, bias).view(*x.shape[:-1], 17)
            assert same_bits(rk.int8_linear(x, weight, scale, bias), want), what
            assert same_bits(packed_linear(x, weight, scale, bias), want), what
        wide = layer(34, 26)
        strided = (wide[0][::2, ::2], wide[1][::2], wide[2][::2])
        assert not strided[0].is_contiguous()
        x = rows(3, 13)
        assert same_bits(rk.int8_linear(x, *strided), reference.int8_linear(x, *strided))
        assert same_bits(packed_linear(x, *strided), reference.int8_linear(x, *strided))


@pytest.mark.parametrize("name", PATHS)
def test_no_outputs(name):
    with path(name):
        y = rk.int8_linear(rows(3, 5), torch.empty(0, 5, dtype=torch.int8), torch.empty(0))
    assert y.shape == (3, 0)


@pytest.mark.parametrize("name", native.isas())
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 17, 13), (3, 15, 479), (49, 33, 9)])
def test_no_byte_is_touched_beyond_the_operands(name, m, n, k):
    weight, scale, bias = layer(n, k)
    x = rows(m, k)
    want = reference.int8_linear(x, weight, scale, bias)
    with path(name):
        packed = guarded(rk.pack(weight, scale, bias))
        y = guarded(torch.full((m, n), 77.0))
        gx = guarded(x)
        code = native.mlp(gx.data_ptr(), m, k, k, 0, packed.data_ptr(), packed.numel(), y.data_ptr(), n, 1, native.isa)
        assert code == 0
        assert same_bits(y, want)
        got = rk.int8_linear(gx, guarded(weight), guarded(scale), guarded(bias))
        assert same_bits(got, want)
        for dtype in (torch.float16, torch.bfloat16):
            half = guarded(x.to(dtype))
            assert same_bits(rk.int8_linear(half, weight, scale), reference.int8_linear(half, weight, scale))
        q = guarded(torch.randint(0, 128, (m, k), dtype=torch.uint8))
        operands = (weight, scale, bias, "none", *pair(0.1, 5), *pair(0.3, 60))
        assert same_bits(rk.int8_linear(q, *operands), reference.int8_linear(q, *operands))


@pytest.mark.parametrize("name", native.isas())
def test_output_is_written_exactly(name):
    """Canaries on both sides of y, and every element of y written."""
    weight, scale, bias = layer(17, 13)
    x = rows(5, 13)
    around = torch.full((7, 17), 1234.5)
    packed = rk.pack(weight, scale, bias)
    with path(name):
        y = around[1:6]
        assert (
            native.mlp(x.data_ptr(), 5, 13, 13, 0, packed.data_ptr(), packed.numel(), y.data_ptr(), 17, 1, native.isa)
            == 0
        )
    assert same_bits(y, reference.int8_linear(x, weight, scale, bias))
    assert (around[0] == 1234.5).all()
    assert (around[6] == 1234.5).all()


@pytest.mark.parametrize("name", PATHS)
def test_static_in_and_out(name):
    weight, scale, bias = layer(33, 1041)
    x = rows(19, 1041)
    for zero in (0, 64, 127):
        ins, outs = pair(0.05, zero), pair(0.7, 127 - zero)
        for activation in ("none", "relu"):
            operands = (weight, scale, bias, activation, *ins, *outs)
            want = reference.int8_linear(x, *operands)
            with path(name):
                assert same_bits(rk.int8_linear(x, *operands), want)
                assert same_bits(packed_linear(x, *operands), want)
                # The chain that never goes back to floats: this output is the next layer's x.
                following = layer(7, 33)
                got = rk.int8_linear(want, *following, "none", *outs)
            assert same_bits(got, reference.int8_linear(want, *following, "none", *outs))
        dynamic_in = (weight, scale, bias, "none", None, None, *outs)
        with path(name):
            assert same_bits(rk.int8_linear(x, *dynamic_in), reference.int8_linear(x, *dynamic_in))


@pytest.mark.parametrize("name", PATHS)
def test_values_that_no_integer_can_hold(name):
    weight, scale, bias = layer(5, 13)
    x = rows(4, 13)
    x[2, 7] = float("inf")
    q = torch.randint(0, 128, (4, 13), dtype=torch.uint8)
    q[3, 12] = 128
    with path(name):
        y = rk.int8_linear(x, weight, scale, bias, "none", *pair(0.1, 3))
        assert y[2].isnan().all()
        assert y[[0, 1, 3]].isfinite().all()
        with pytest.raises(rk.KernelInputError, match="NaN"):
            rk.int8_linear(x, weight, scale, bias, "none", *pair(0.1, 3), *pair(0.1, 3))
        with pytest.raises(rk.KernelInputError, match="above 127"):
            rk.int8_linear(q, weight, scale, bias, "none", *pair(0.1, 3))


STACK = [(40, 479), (17, 40), (33, 17), (1, 33)]


def stack(most: int = 127):
    layers = [layer(n, k, most=most) for n, k in STACK]
    weights, scales, biases = map(list, zip(*layers, strict=True))
    biases[1] = None
    return weights, scales, biases, ["relu", "gelu_erf", "silu", "none"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_stack_is_its_layers(name, dtype):
    operands = stack()
    packed = rk.pack_stack(*operands)
    with path(name):
        for m in (0, 1, 2, 5, 47, 48, 49, 100):
            x = rows(m, 479).to(dtype)
            if m > 2:
                x[1, 3] = float("nan")
            y = x
            for one in zip(*operands, strict=True):
                y = rk.int8_linear(y, *one)
            assert same_bits(rk.int8_mlp(x, *operands), y)
            assert same_bits(rk.int8_mlp_packed(x, packed, 1), y)
            assert same_bits(rk.int8_mlp_packed(x.view(1, m, 479), packed, 1), y.view(1, m, 1))
            if name == "torch":
                assert same_bits(mlp_reference.int8_mlp(x, *operands), y)


def test_native_instruction_sets_agree_to_the_last_bit():
    """The same order of float operations on each: activations too."""
    operands, x = stack(), rows(50, 479)
    outs = []
    for name in native.isas():
        with path(name):
            outs.append(rk.int8_mlp_packed(x, rk.pack_stack(*operands), 1))
    assert all(same_bits(y, outs[0]) for y in outs[1:])


def test_threads():
    """Several threads at once, each with shapes of its own, give what one thread gives."""
    cases = []
    for i in range(8):
        n, k, m = 64 + 17 * i, 100 + 31 * i, 1 + 11 * i
        weight, scale, bias = layer(n, k, most=63 if i % 2 else 127)
        cases.append((rows(m, k), rk.pack(weight, scale, bias), n))
    want = [rk.int8_mlp_packed(*case) for case in cases]

    def work(turn: int) -> bool:
        i = turn % len(cases)
        return same_bits(rk.int8_mlp_packed(*cases[i]), want[i])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(400)))


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 20),
    n=st.integers(1, 40),
    k=st.integers(1, 70),
    seed=st.integers(0, 2**20),
    most=st.sampled_from([20, 34, 63, 64, 90, 127]),
    exponent=st.integers(-44, 38),
    shift=st.floats(-3, 3),
    activation=st.sampled_from(["none", "relu"]),
)
def test_property_paths_agree(m, n, k, seed, most, exponent, shift, activation):
    weight, scale, bias = layer(n, k, seed, most)
    x = (rows(m, k, seed) + shift) * torch.tensor(10.0, dtype=torch.float64).pow(exponent)
    x = x.float()
    want = reference.int8_linear(x, weight, scale, bias, activation)
    for name in PATHS:
        with path(name):
            assert same_bits(rk.int8_linear(x, weight, scale, bias, activation), want)
            assert same_bits(packed_linear(x, weight, scale, bias, activation), want)


def test_traced():
    """torch.export and the op checks see through the ops."""
    operands, x = stack(), rows(3, 479)
    packed = rk.pack_stack(*operands)
    one = next(zip(*operands, strict=True))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.recpress.int8_linear.default, (x, *one), test_utils=checks)
    torch.library.opcheck(torch.ops.recpress.int8_mlp.default, (x, *operands), test_utils=checks)
    torch.library.opcheck(torch.ops.recpress.int8_mlp_packed.default, (x, packed, 1), test_utils=checks)

    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.ops.recpress.int8_mlp_packed(x, packed, 1)

    program = torch.export.export(Model(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},))
    other = rows(9, 479)
    assert same_bits(program.module()(other), rk.int8_mlp_packed(other, packed, 1))


def test_the_direct_call_gives_way_to_whoever_watches():
    """int8_mlp_packed calls the kernel itself, but a tracer must still see the op, and a mode intercept it."""
    x, packed = rows(3, 479), rk.pack_stack(*stack())

    def call(x):
        return rk.int8_mlp_packed(x, packed, 1)

    traced = torch.fx.experimental.proxy_tensor.make_fx(call)(x)
    assert "recpress.int8_mlp_packed" in traced.code
    program = torch.export.export(torch.nn.Sequential(Call(call)), (x,))
    assert "recpress.int8_mlp_packed" in program.graph_module.code
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert same_bits(compiled(x), call(x))
    assert call(x.to("meta")).shape == (3, 1)


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_stack_of_calibrated_layers_is_one_call_a_layer(name, dtype):
    layers = [layer(40, 13), layer(33, 40), layer(20, 33), layer(1, 20)]
    weights, scales, biases = map(list, zip(*layers, strict=True))
    activations = ["relu", "silu", "relu", "none"]
    pairs = [(torch.tensor([s]), torch.tensor([z], dtype=torch.int32)) for s, z in ((0.07, 60), (0.2, 0), (0.3, 9))]
    pairs.insert(2, None)
    packed = rk.pack_stack(weights, scales, biases, activations, x_pairs=pairs)
    assert [one.x_pair for one in rk.unpack(packed)] == pairs
    for m in (1, 7, 50):
        x = rows(m, 13)
        x[m // 2, 3] = float("inf")
        x = want = x.to(dtype)
        with path(name):
            for operands, activation, pair in zip(layers, activations, pairs, strict=True):
                want = rk.int8_linear(want, *operands, activation, *(pair or (None, None)))
            assert same_bits(rk.int8_mlp_packed(x, packed, 1), want)
            one = rk.pack(*layers[0], "relu", x_pair=pairs[0])
            first = rk.int8_linear(x, *layers[0], "relu", *pairs[0])
            assert same_bits(rk.int8_linear_packed(x, one, 40), first)
            # A pair that is given stands in place of the layer's own.
            other = rk.int8_linear(x, *layers[0], "relu", *pairs[1])
            assert same_bits(rk.int8_linear_packed(x, one, 40, *pairs[1]), other)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.tensor([0.0]), torch.tensor([3], dtype=torch.int32)), "x_scale is 0.0; give a positive"),
        ((torch.tensor([0.1]), torch.tensor([128], dtype=torch.int32)), "x_zero_point is 128; allowed are 0 to 127"),
        ((torch.tensor([0.1]), torch.tensor([3])), "x_zero_point is torch.int64"),
        ((torch.tensor([0.1, 0.1]), torch.tensor([3], dtype=torch.int32)), "x_scale is torch.float32 of shape"),
    ],
)
def test_a_pair_that_is_none_is_refused(pair, message):
    with pytest.raises(rk.KernelInputError, match=f"layer 0: {message}"):
        rk.pack(*layer(3, 5), x_pair=pair)
    with pytest.raises(rk.KernelInputError, match="keeps its inputs as floats and has a calibrated pair"):
        rk.pack(*layer(3, 5), x_pair=pair, keeps_floats=True)
