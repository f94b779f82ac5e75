"""2:4 layers in packed buffers: exactly reversible, the bits of the dense reference on every path, checked first."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_cases import PATHS, guarded, hard_rows, layer, path, rows, same_bits
from support.sparse24_oracle import canonical

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.formats import packed as form
from recpress_kernels.formats import packed_sparse24
from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.formats.sparse24 import Sparse24, compress, decompress
from recpress_kernels.int8_linear import reference

WIDTHS, DEPTHS, BATCHES = [1, 17], [1, 4, 13, 479, 1024], [0, 1, 2, 3, 8, 35, 64]


def sparse_weight(n: int, k: int, *, most: int = 127, seed: int = 0) -> Sparse24:
    values, indices = canonical(n, -(-k // 4) * 4, seed=seed + 31 * n + k)
    sparse = Sparse24((values.int() * most // 127).to(torch.int8), indices, -(-k // 4) * 4)
    return compress(decompress(sparse)[:, :k])


def normal(n: int, k: int) -> Sparse24:
    """Of normally distributed weights the two largest of each four, 8 bits."""
    fours = torch.randn(n, k // 4, 4, generator=torch.Generator().manual_seed(n + k))
    kept = fours.abs().argsort(dim=2, descending=True)[..., :2]
    pruned = torch.zeros_like(fours).scatter(2, kept, fours.gather(2, kept)).view(n, k)
    return compress(quantize_per_channel(pruned)[0])


def same_form(a: Sparse24, b: Sparse24) -> bool:
    return torch.equal(a.values, b.values) and torch.equal(a.indices, b.indices) and a.in_features == b.in_features


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("k", DEPTHS)
@pytest.mark.parametrize("most", [127, 63])
def test_bits_of_the_dense_reference(name, k, most):
    with path(name):
        for n in WIDTHS:
            sparse = sparse_weight(n, k, most=most)
            _, scale, bias = layer(n, k)
            packed = rk.pack(sparse, scale, bias, "relu")
            for m in BATCHES:
                want = reference.int8_linear(rows(m, k), decompress(sparse), scale, bias, "relu")
                assert same_bits(rk.int8_linear_packed(rows(m, k), packed, n), want), (m, n)


@pytest.mark.parametrize("name", PATHS)
def test_hard_rows_halves_and_calibrated_pairs(name):
    k, n = 61, 33
    sparse = sparse_weight(n, k)
    _, scale, bias = layer(n, k)
    packed = rk.pack(sparse, scale, bias)
    ins = (torch.tensor(0.05), torch.tensor(60, dtype=torch.int32))
    outs = (torch.tensor(0.4), torch.tensor(9, dtype=torch.int32))
    with path(name):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = hard_rows(k).to(dtype)
            want = reference.int8_linear(x, decompress(sparse), scale, bias)
            assert same_bits(rk.int8_linear_packed(x, packed, n), want)
        want = reference.int8_linear(rows(9, k), decompress(sparse), scale, bias, "none", *ins, *outs)
        assert same_bits(rk.int8_linear_packed(rows(9, k), packed, n, *ins, *outs), want)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 90), seed=st.integers(0, 2**20), most=st.sampled_from([0, 40, 127]))
def test_packing_is_reversible(n, k, seed, most):
    """Places of zeros are kept too, whatever they are."""
    values, indices = canonical(n, -(-k // 4) * 4, seed=seed)
    values = (values.int() * most // 127).to(torch.int8)
    if k % 4:
        values[:, -2:] = 0
    sparse = Sparse24(values, indices, k)
    one = rk.unpack(rk.pack(sparse, torch.ones(n)))[0]
    assert same_form(one.weight, sparse) and one.shape == (n, k)
    assert torch.equal(one.dense_weight, decompress(sparse))


def test_layout_by_hand():
    """Column 0 keeps 7 at k 2 and 5 at k 3 of the first 8, and 9 at k 12, the fifth of the second 8."""
    weight = torch.zeros(2, 16, dtype=torch.int8)
    weight[0, 2], weight[0, 3], weight[0, 12] = 7, 5, 9
    unit = packed_sparse24.pack(compress(weight))[0, 0]
    values, places = unit[:128].view(torch.int8).view(2, 16, 4), unit[128:].view(16, 4)
    kept = {(h, int(places[0, j]) >> 4 * h & 15): int(values[h, 0, j]) for h in (0, 1) for j in range(4)}
    assert {at: value for at, value in kept.items() if value} == {(0, 2): 7, (0, 3): 5, (1, 4): 9}
    assert not (places & 0x88).any()


def test_bytes_a_weight():
    packed = rk.pack(normal(1024, 1024), torch.ones(1024))
    assert 0.75 < packed.numel() / 1024**2 < 0.77


def test_products_are_added_in_16_bits_only_where_they_fit():
    """The largest sums of the order that packing chose, by brute force over the buffer, against what it lists."""
    for most, depth in ((63, 2), (127, 1)):
        panels = packed_sparse24.pack(sparse_weight(32, 256, most=most))
        values = panels[..., :128].view(torch.int8).view(*panels.shape[:2], 2, 16, 2, 2).int()
        top = values.clamp(min=0).sum(dim=(2, 5)).flatten(2).amax(2)
        low = (-values).clamp(min=0).sum(dim=(2, 5)).flatten(2).amax(2)
        wide = packed_sparse24.wide_units(panels, 258)
        assert torch.equal(wide, (top > 258) | (low > 258))
        assert rk.unpack(rk.pack(sparse_weight(32, 256, most=most), torch.ones(32)))[0].depth == depth


@pytest.mark.parametrize(("largest", "fits"), [(64, True), (65, False)])
def test_the_limit_itself(largest, fits):
    """Eight values part into two sums of four: 65, 65, 64 and `largest` fit in 16 bits up to 258."""
    weight = torch.zeros(1, 16, dtype=torch.int8)
    weight[0, [0, 1, 4, 5, 8, 9, 12, 13]] = torch.tensor([65, 65, 64, largest] * 2, dtype=torch.int8)
    assert bool(packed_sparse24.wide_units(packed_sparse24.pack(compress(weight)), 258).any()) is not fits
    x = torch.full((5, 16), 127, dtype=torch.uint8)
    pair = (torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    for name in PATHS:
        with path(name):
            y = rk.int8_linear_packed(x, rk.pack(compress(weight), torch.ones(1)), 1, *pair)
            assert (y == 127 * 2 * (65 + 65 + 64 + largest)).all()


@pytest.mark.skipif("avx2" not in PATHS, reason="16-bit sums are AVX2's alone")
def test_without_its_list_a_unit_overflows():
    """Negative control: the list of units that must be widened is what keeps the sums exact."""
    weight = torch.zeros(16, 1024, dtype=torch.int8)
    weight[:, 0::4], weight[3, 16:32:2] = 7, 127
    packed = rk.pack(compress(weight), torch.ones(16))
    assert rk.unpack(packed)[0].depth == 2 and rk.unpack(packed)[0].wide == 1 / 64
    x = torch.full((5, 1024), 127, dtype=torch.uint8)
    pair = (torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    want = weight.sum(dim=1) * 127.0
    with path("avx2"):
        assert (rk.int8_linear_packed(x, packed, 16, *pair) == want).all()
        starts = struct.unpack("<q", bytes(packed[64 + 56 : 64 + 64].tolist()))[0]
        packed[starts : starts + 8] = 0
        assert (rk.int8_linear_packed(x, packed, 16, *pair) != want).any()


def test_normal_weights_reach_depth_2_and_both_loops_run():
    sparse = normal(64, 256)
    packed = rk.pack(sparse, torch.ones(64))
    one = rk.unpack(packed)[0]
    assert one.depth == 2 and 0 < one.wide < 0.1
    for m in (1, 2, 3, 4, 5, 50):
        want = reference.int8_linear(rows(m, 256), decompress(sparse), torch.ones(64))
        for name in PATHS:
            with path(name):
                assert same_bits(rk.int8_linear_packed(rows(m, 256), packed, 64), want), (m, name)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("w", [127, -127, -128])
def test_extreme_products_do_not_saturate(name, w):
    sparse = compress(torch.tensor([[w, 0, w, 0]], dtype=torch.int8).repeat(17, 250))
    x = torch.full((5, 1000), 127, dtype=torch.uint8)
    with path(name):
        pair = (torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
        y = rk.int8_linear_packed(x, rk.pack(sparse, torch.ones(17)), 17, *pair)
    assert (y == 127 * w * 500).all()


def mixed():
    widths, kinds = [45, 64, 33, 20, 5], [True, False, True, True]
    operands = [[], [], [], []]
    for k, n, sparse in zip(widths, widths[1:], kinds, strict=False):
        weight, scale, bias = layer(n, k)
        for column, part in zip(
            operands, (sparse_weight(n, k) if sparse else weight, scale, bias, "relu"), strict=True
        ):
            column.append(part)
    return operands


@pytest.mark.parametrize("name", PATHS)
def test_dense_and_2_to_4_layers_in_one_stack(name):
    weights, scales, biases, activations = mixed()
    dense = [decompress(w) if isinstance(w, Sparse24) else w for w in weights]
    packed = rk.pack_stack(weights, scales, biases, activations)
    for back, given_weight in zip(rk.unpack(packed), weights, strict=True):
        same = same_form if isinstance(given_weight, Sparse24) else torch.equal
        assert same(back.weight, given_weight)
    with path(name):
        for m in (0, 1, 5, 49):
            want = rk.int8_mlp(rows(m, 45), dense, scales, biases, activations)
            assert same_bits(rk.int8_mlp_packed(rows(m, 45), packed, 5), want)


@pytest.mark.parametrize("name", native.isas())
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 17, 13), (3, 15, 479), (49, 33, 9)])
def test_no_byte_is_touched_beyond_the_operands(name, m, n, k):
    sparse = sparse_weight(n, k, most=63)
    packed, x = guarded(rk.pack(sparse, torch.ones(n))), guarded(rows(m, k))
    y = guarded(torch.full((m, n), 77.0))
    with path(name):
        code = native.mlp(x.data_ptr(), m, k, k, 0, packed.data_ptr(), packed.numel(), y.data_ptr(), n, 1, native.isa)
    assert code == 0
    assert same_bits(y, reference.int8_linear(rows(m, k), decompress(sparse), torch.ones(n)))


def places_at(packed: torch.Tensor) -> int:
    return struct.unpack("<q", bytes(packed[64 + 24 : 64 + 32].tolist()))[0] + 128


@pytest.mark.parametrize("name", PATHS[1:])
def test_a_flipped_place_shows(name):
    """Negative control: the places decide the result."""
    sparse = sparse_weight(16, 16)
    packed = rk.pack(sparse, torch.ones(16))
    want = rk.int8_linear_packed(rows(4, 16), packed, 16)
    for bit in (0, 1, 2, 4, 5, 6):
        other = packed.clone()
        other[places_at(packed)] ^= 1 << bit
        with path(name):
            got = rk.int8_linear_packed(rows(4, 16), other, 16)
        assert not same_bits(got[:, :1], want[:, :1]) and same_bits(got[:, 1:], want[:, 1:])


def test_places_that_are_not_2_to_4_are_not_unpacked():
    packed = rk.pack(sparse_weight(16, 16), torch.ones(16))
    for value in (0xFF, 0x88, 0x77, int(packed[places_at(packed) + 1])):
        other = packed.clone()
        other[places_at(packed)] = value
        with pytest.raises(rk.KernelInputError, match="corrupt"):
            rk.unpack(other)


def poked(at: int, form_: str, value: int) -> torch.Tensor:
    packed = rk.pack(sparse_weight(16, 13, most=63), torch.ones(16), torch.ones(16))
    data = struct.pack(form_, value)
    packed[at : at + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return packed


BROKEN = {
    "another version": (8, "<I", 1, "version"),
    "another version still": (8, "<I", form.VERSION + 1, "version"),
    "an unknown flag": (64 + 16, "<i", 4 | 2 | 1, "corrupt"),
    "dense, and the buffer too short": (64 + 16, "<i", 1, "corrupt"),
    "depth 4": (64 + 20, "<i", 4, "corrupt"),
    "k and its padding": (64 + 8, "<i", 32, "corrupt"),
    "weights beyond the end": (64 + 24, "<q", 2**40, "corrupt"),
    "list beyond the end": (64 + 56, "<q", 2**40, "corrupt"),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_buffer_is_refused(what, name):
    at, form_, value, message = BROKEN[what]
    packed = poked(at, form_, value)
    if what.startswith("dense"):
        packed = poked(64 + 24, "<q", packed.numel() - 192)
        packed[64 + 16] = 1
    with path(name), pytest.raises(rk.KernelInputError, match=message):
        rk.int8_mlp_packed(rows(2, 13), packed, 16)


def test_weights_that_are_not_of_this_form_are_refused():
    sparse = sparse_weight(5, 16)
    unordered = Sparse24(sparse.values, torch.full_like(sparse.indices, 0x11), 16)
    halves = Sparse24(sparse.values.half(), sparse.indices, 16)
    cases = {
        "layer 0: indices name the places 1 and 0": (unordered, torch.ones(5)),
        "layer 0: 2:4 values are torch.float16; give int8": (halves, torch.ones(5)),
        "layer 0: in_features is 12": (Sparse24(sparse.values, sparse.indices, 12), torch.ones(5)),
        "layer 0: weight_scale is torch.float32 of shape": (sparse, torch.ones(4)),
        "layer 0: operands lie on meta": (sparse, torch.ones(5, device="meta")),
    }
    for message, (weight, scale) in cases.items():
        with pytest.raises(rk.KernelInputError, match=message):
            rk.pack(weight, scale)
