"""The AVX-512 VNNI source, compiled over SIMDe's portable emulation of those instructions.

What this proves is the source's arithmetic, lane order and tails, on any x86-64. Where the CPU has the instructions,
the other tests run them too.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch
from int8_cases import guarded, hard_rows, layer, rows, same_bits
from support.interaction_oracle import PAIR, SHAPES, dots, quantized, second_order, whole_numbers
from support.sparse24_oracle import canonical

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.formats.rows import quantize_rows_int4, quantize_rows_int8
from recpress_kernels.formats.sparse24 import Sparse24, compress, decompress

SOURCES = Path(native.__file__).parent
SIMDE = Path("/usr/include/simde/x86/avx512.h")


@pytest.fixture(scope="module")
def vnni(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None or not SIMDE.exists():
        pytest.skip("needs g++ and Debian's libsimde-dev")
    target = tmp_path_factory.mktemp("vnni") / native.LIBRARY_NAME
    flags = ["-O1", "-std=c++17", "-w", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
    emulate = ["-DRECPRESS_SIMDE", "-DSIMDE_ENABLE_NATIVE_ALIASES"]
    names = ("vnni.cpp", "portable.cpp", "entry.cpp", "entry_bags.cpp", "entry_interaction.cpp")
    sources = [str(SOURCES / name) for name in names]
    subprocess.run([compiler, *flags, *emulate, *sources, "-o", str(target)], check=True)
    library, reason = native.load(target)
    assert library, reason
    code = native.ISAS.index("avx512_vnni")
    assert library.recpress_has_isa(code)
    with (
        mock.patch.object(native, "mlp", library.recpress_mlp),
        mock.patch.object(native, "linear", library.recpress_linear),
        mock.patch.object(native, "cross", library.recpress_cross),
        mock.patch.object(native, "bags", library.recpress_bags),
        mock.patch.object(native, "rows", library.recpress_rows),
        mock.patch.object(native, "quantize_rows", library.recpress_quantize_rows),
        mock.patch.object(native, "dots", library.recpress_dots),
        mock.patch.object(native, "second_order", library.recpress_second_order),
        mock.patch.object(native, "isa", code),
    ):
        yield library


def both(call):
    """The result of the emulated kernels, and of the portable ones in the same library."""
    emulated = call()
    with native.use_isa("portable"):
        return emulated, call()


def test_bits_of_the_portable_kernels(vnni):
    for k in (1, 3, 13, 65, 479):
        for n in (1, 7, 16, 17, 33):
            for most in (127, 63):
                weight, scale, bias = layer(n, k, most=most)
                packed = rk.pack(weight, scale, bias, "relu")
                for m in (1, 2, 6, 7, 49):
                    x = rows(m, k)
                    assert same_bits(*both(lambda x=x, p=packed, n=n: rk.int8_linear_packed(x, p, n))), (m, n, k)


def test_hard_rows_halves_and_activations(vnni):
    x = hard_rows(65)
    weight, scale, bias = layer(33, 65)
    for activation in ("none", "relu", "gelu_tanh", "gelu_erf", "sigmoid", "silu"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            given = x.to(dtype)
            got, want = both(lambda given=given, a=activation: rk.int8_linear(given, weight, scale, bias, a))
            assert same_bits(got, want), (activation, dtype)


def test_weights_under_float_inputs(vnni):
    """Whole numbers, whose sums are the same bits in every order."""
    for k, n in ((1, 1), (13, 17), (65, 33), (130, 150)):
        weight, _, bias = layer(n, k)
        scale, bias = torch.full((n,), 0.25), bias.round()
        packed = rk.pack(weight, scale, bias, "relu", keeps_floats=True)
        for m in (1, 2, 12, 13, 49):
            x = rows(m, k).round()
            assert same_bits(*both(lambda x=x, p=packed, n=n: rk.int8_linear_packed(x, p, n))), (m, n, k)
            want = torch.relu((x.double() @ weight.double().T) * 0.25 + bias.double()).float()
            assert same_bits(rk.weight_only_linear(x, weight, scale, bias, "relu"), want), (m, n, k)


def test_static_and_quantised(vnni):
    weight, scale, bias = layer(33, 65)
    pair = (torch.tensor(0.05), torch.tensor(60, dtype=torch.int32))
    operands = (weight, scale, bias, "none", *pair, torch.tensor(0.4), torch.tensor(9, dtype=torch.int32))
    got, want = both(lambda: rk.int8_linear(rows(9, 65), *operands))
    assert same_bits(got, want)
    got, want = both(lambda: rk.int8_linear(want, *layer(5, 33), "silu", *pair))
    assert same_bits(got, want)


def test_extreme_products(vnni):
    q = torch.full((3, 64), 127, dtype=torch.uint8)
    pair = (torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    for w in (127, -128):
        y = rk.int8_linear(q, torch.full((17, 64), w, dtype=torch.int8), torch.ones(17), None, "none", *pair)
        assert (y == 127 * w * 64).all()


def test_2_to_4_layers(vnni):
    for k in (1, 4, 13, 65, 479):
        for n in (1, 17, 33):
            sparse = Sparse24(*canonical(n, -(-k // 4) * 4), -(-k // 4) * 4)
            weight = decompress(sparse)[:, :k]
            packed = rk.pack(compress(weight), torch.ones(n), None, "relu")
            for m in (1, 2, 6, 7, 49):
                x = rows(m, k)
                got, want = both(lambda x=x, p=packed, n=n: rk.int8_linear_packed(x, p, n))
                assert same_bits(got, want), (m, n, k)
                assert same_bits(got, rk.int8_linear(rows(m, k), weight, torch.ones(n), None, "relu")), (m, n, k)


def test_a_flipped_place_shows(vnni):
    packed = rk.pack(Sparse24(*canonical(16, 16), 16), torch.ones(16))
    want = rk.int8_linear_packed(rows(2, 16), packed, 16)
    places = int(packed[88:96].view(torch.int64)) + 128
    packed[places] ^= 1
    assert not same_bits(rk.int8_linear_packed(rows(2, 16), packed, 16), want)


def test_tables_of_rows(vnni):
    for dim in (1, 3, 7, 15, 16, 17, 64, 100, 128):
        floats = torch.randn(9, dim)
        for quantize in (quantize_rows_int8, quantize_rows_int4):
            assert same_bits(*both(lambda q=quantize, f=floats: q(f))), dim
        rows, dims = [guarded(quantize_rows_int8(floats)), guarded(quantize_rows_int4(floats))], [dim, dim]
        indices, offsets = torch.randint(0, 9, (20,)), torch.tensor([0, 4, 4, 5, 12, 20, 20])
        for pooling, weights in (("sum", None), ("mean", None), ("sum", torch.rand(20))):
            operands = (rows, indices, offsets, pooling, weights, dims)
            got, want = both(lambda operands=operands: rk.embedding_bag_rows(*operands))
            assert same_bits(got, want), dim
        tables = rk.RowTables(rows, None, dims)
        got, want = both(lambda t=tables: rk.look_up_rows(t, torch.arange(18).view(9, 2) % 9))
        assert same_bits(got, want), dim


def test_cross_layers(vnni):
    for m, k in ((1, 1), (2, 17), (49, 64)):
        x0, x, packed = guarded(rows(m, k, 1)), guarded(rows(m, k, 2)), rk.pack(*layer(k, k))
        assert same_bits(*both(lambda x0=x0, x=x, p=packed: rk.int8_cross_packed(x0, x, p))), (m, k)


def test_vectors_that_meet_each_other(vnni):
    """Whole numbers, whose sums are the same bits in every order."""
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            vectors, front = (guarded(t) for t in whole_numbers(*shape, 5, dtype))
            assert torch.equal(rk.dot_interaction(vectors, front), dots(vectors, front).to(dtype)), shape
            assert torch.equal(rk.dot_interaction(vectors, front, True, *PAIR), quantized(dots(vectors, front, True)))
            assert torch.equal(rk.fm_interaction(vectors), second_order(vectors).to(dtype)), shape


def test_the_library_under_test_is_the_emulated_one(vnni):
    assert native.mlp is vnni.recpress_mlp and native.bags is vnni.recpress_bags
    assert isinstance(vnni, ctypes.CDLL)
