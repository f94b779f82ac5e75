"""The packed form of weights: exactly reversible, checked before it is read, the fast loop only where it is exact."""

import struct
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_cases import PATHS, layer, path, rows, same_bits

import recpress_kernels as rk
from recpress_kernels.formats import packed as form
from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.int8_linear import reference


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    seed=st.integers(0, 2**20),
    most=st.sampled_from([63, 127]),
)
def test_packing_is_reversible(widths, seed, most):
    layers = [layer(n, k, seed, most) for k, n in pairwise(widths)]
    weights, scales, biases = map(list, zip(*layers, strict=True))
    biases[0] = None
    activations = [form.ACTIVATIONS[(seed + i) % 6] for i in range(len(layers))]
    back = rk.unpack(rk.pack_stack(weights, scales, biases, activations))
    assert [one.activation for one in back] == activations
    for one, weight, scale, bias in zip(back, weights, scales, biases, strict=True):
        assert torch.equal(one.weight, weight)
        assert torch.equal(one.weight_scale, scale)
        assert (one.bias is None) if bias is None else torch.equal(one.bias, bias)
    again = rk.pack_stack(
        [o.weight for o in back], [o.weight_scale for o in back], [o.bias for o in back], [o.activation for o in back]
    )
    assert torch.equal(again, rk.pack_stack(weights, scales, biases, activations))


def test_minus_128_survives():
    weight = torch.tensor([[-128, 127, -1]], dtype=torch.int8)
    assert torch.equal(rk.unpack(rk.pack(weight, torch.ones(1)))[0].weight, weight)


def test_layout_by_hand():
    weight = torch.arange(1, 11, dtype=torch.int8).view(2, 5)
    packed = rk.pack(weight, torch.ones(2))
    offset = struct.unpack("<q", bytes(packed[64 + 24 : 64 + 32].tolist()))[0]
    section = packed[offset : offset + 128].view(torch.int8)
    assert section[:8].tolist() == [1, 2, 3, 4, 6, 7, 8, 9]  # k 0..3 of column 0, then of column 1
    assert section[64:72].tolist() == [5, 0, 0, 0, 10, 0, 0, 0]
    sums = struct.unpack("<q", bytes(packed[64 + 32 : 64 + 40].tolist()))[0]
    assert packed[sums : sums + 8].view(torch.int32).tolist() == [15, 40]


# Weights that meet in one 16-bit sum of two products: k = 0, 1, 4, 5 of a block of 8, or 2, 3, 6, 7.
@pytest.mark.parametrize("where", [[8, 9, 12, 13], [26, 27, 30, 31]])
@pytest.mark.parametrize(
    ("four", "fits"),
    [
        ([65, 64, 65, 64], True),  # 258 * 127 = 32766
        ([65, 65, 65, 64], False),  # 259 * 127 = 32893
        ([-65, -64, -65, -64], True),
        ([-65, -65, -65, -64], False),
        ([127, -127, 127, -127], True),
        ([127, 127, 5, -100], False),
        ([-128, 0, 0, 0], True),
        ([-128, -128, 0, 0], True),
        ([-128, -128, -3, 0], False),
    ],
)
def test_products_are_added_in_16_bits_only_where_they_fit(four, fits, where):
    weight = torch.zeros(19, 64, dtype=torch.int8)
    weight[17, where] = torch.tensor(four, dtype=torch.int8)
    blocks = form._wide_blocks(form._panels(weight))[2]
    assert int(blocks.sum()) == (0 if fits else 1)
    check_extremes(weight)


# Of four products, as packing chooses where they fit: k = 0, 1, 4, 5, 8, 9, 12, 13 of a block of 16.
@pytest.mark.parametrize(
    ("eight", "wide"),
    [
        ([33, 32, 32, 32, 32, 32, 32, 33], 0),  # 258
        ([33, 33, 32, 32, 32, 32, 32, 33], 1),  # 259
        ([-33, -32, -32, -32, -32, -32, -32, -33], 0),
        ([-33, -33, -32, -32, -32, -32, -32, -33], 1),
        ([127, 127, -127, -127, 4, -4, 0, 0], 0),
    ],
)
def test_four_products(eight, wide):
    weight = torch.zeros(19, 64, dtype=torch.int8)
    weight[17, [16, 17, 20, 21, 24, 25, 28, 29]] = torch.tensor(eight, dtype=torch.int8)
    one = rk.unpack(rk.pack(weight, torch.ones(19)))[0]
    assert (one.depth, one.wide) == (4, wide / 8)
    check_extremes(weight)


def check_extremes(weight: torch.Tensor) -> None:
    """Every path is exact for the activations that drive row 17 of the weights furthest up and down."""
    packed = rk.pack(weight, torch.ones(19))
    q = torch.full((3, 64), 127, dtype=torch.uint8)
    q[1] = torch.where(weight[17] < 0, 127, 0)
    q[2] = torch.where(weight[17] > 0, 127, 0)
    pair = (torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    want = reference.int8_linear(q, weight, torch.ones(19), None, "none", *pair)
    for name in PATHS:
        with path(name):
            assert torch.equal(rk.int8_linear_packed(q, packed, 19, *pair), want)


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("over", [False, True])
def test_each_depth_lists_exactly_what_does_not_fit(depth, over):
    """Weights that fill every 16-bit sum of this depth to its limit, or one beyond it in one place."""
    weight = torch.zeros(19, 128, dtype=torch.int8)
    even = 258 // (2 * depth)
    weight[17] = even
    weight[17, ::16] += 258 - even * 2 * depth if depth == 4 else 0
    if depth == 2:
        weight[17, ::8] += 258 - even * 4
    weight[17, 64] += over
    blocks = form._wide_blocks(form._panels(weight))[depth]
    assert int(blocks.sum()) == over
    assert bool(blocks[1, 64 // (4 * depth)]) is over


def test_the_depth_that_is_chosen():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 512, generator=g)
    cases = {
        "normal, 8 bits": (quantize_per_channel(normal)[0], 2),
        "normal, 7 bits": (quantize_per_channel(normal, weight_bits=7)[0], 4),
        "uniform, 8 bits": (torch.randint(-127, 128, (64, 512), generator=g, dtype=torch.int8), 1),
        "largest, 7 bits": (torch.full((64, 512), 63, dtype=torch.int8), 2),
        "largest, 8 bits": (torch.full((64, 512), -128, dtype=torch.int8), 1),
    }
    for what, (weight, depth) in cases.items():
        packed = rk.pack(weight, torch.ones(64))
        one = rk.unpack(packed)[0]
        assert one.depth == depth, what
        assert (one.wide == 1.0) is (depth == 1)
        for m in (2, 3, 4, 7, 50):
            x = rows(m, 512)
            want = reference.int8_linear(x, weight, torch.ones(64))
            for name in PATHS:
                with path(name):
                    assert same_bits(rk.int8_linear_packed(x, packed, 64), want), what


def broken(change) -> torch.Tensor:
    weights, scales, biases = zip(layer(16, 13, most=63), layer(4, 16), strict=True)
    packed = rk.pack_stack(list(weights), list(scales), list(biases), ["relu", "none"])
    return change(packed.clone())


def poke(at: int, form_: str, value: int):
    def change(packed: torch.Tensor) -> torch.Tensor:
        data = struct.pack(form_, value)
        packed[at : at + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return packed

    return change


FIRST, SECOND = 64, 192
BROKEN = {
    "not packed": (poke(0, "<B", 0), "does not begin"),
    "another version": (poke(8, "<I", 1), "version"),
    "another layout": (poke(12, "<I", 0x100408), "layout"),
    "cut": (lambda p: p[:-64].clone(), "corrupt"),
    "longer": (lambda p: torch.cat([p, p]), "corrupt"),
    "shorter than a header": (lambda p: p[:20].clone(), "does not begin"),
    "no layers": (poke(16, "<i", 0), "corrupt"),
    "too many layers": (poke(16, "<i", 60), "corrupt"),
    "negative n": (poke(FIRST, "<i", -16), "corrupt"),
    "huge k": (poke(FIRST + 4, "<i", 2**30), "corrupt"),
    "k and its padding": (poke(FIRST + 8, "<i", 32), "corrupt"),
    "activation": (poke(FIRST + 12, "<i", 6), "corrupt"),
    "depth": (poke(FIRST + 20, "<i", 3), "corrupt"),
    "weights in the header": (poke(FIRST + 24, "<q", 0), "corrupt"),
    "weights beyond the end": (poke(FIRST + 24, "<q", 2**40), "corrupt"),
    "sums overflow": (poke(FIRST + 32, "<q", 2**63 - 64), "corrupt"),
    "scales not aligned": (poke(FIRST + 40, "<q", 1000), "corrupt"),
    "list beyond the end": (poke(FIRST + 56, "<q", 2**40), "corrupt"),
    "bias negative": (poke(SECOND + 48, "<q", -64), "corrupt"),
    "input scale negative": (poke(FIRST + 64, "<f", -1.0), "corrupt"),
    "input scale infinite": (poke(FIRST + 64, "<f", float("inf")), "corrupt"),
    "input scale not a number": (poke(FIRST + 64, "<f", float("nan")), "corrupt"),
    "input zero point": (poke(FIRST + 68, "<i", 128), "corrupt"),
    "layers that do not meet": (poke(SECOND + 4, "<i", 13), "corrupt"),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_buffer_is_refused(what, name):
    change, message = BROKEN[what]
    with path(name), pytest.raises(rk.KernelInputError, match=message):
        rk.int8_mlp_packed(rows(2, 13), broken(change), 4)


@pytest.mark.parametrize("name", PATHS)
def test_an_intact_buffer_is_not_refused_and_features_are_checked(name):
    packed = broken(lambda p: p)
    with path(name):
        assert rk.int8_mlp_packed(rows(2, 13), packed, 4).shape == (2, 4)
        with pytest.raises(
            rk.KernelInputError, match="x has K = 14 and out_features is 4; packed holds layers of 13-16-4"
        ):
            rk.int8_mlp_packed(rows(2, 14), packed, 4)
        with pytest.raises(rk.KernelInputError, match="out_features is 5; packed holds layers of 13-16-4"):
            rk.int8_mlp_packed(rows(2, 13), packed, 5)
        with pytest.raises(rk.KernelInputError, match="int8_mlp_packed"):
            rk.int8_linear_packed(rows(2, 13), packed, 4)
        with pytest.raises(rk.KernelInputError, match="out_features"):
            rk.int8_mlp_packed(rows(2, 13), packed, -1)
        unaligned = torch.empty(packed.numel() + 1, dtype=torch.uint8)[1:].copy_(packed)
        assert same_bits(rk.int8_mlp_packed(rows(2, 13), unaligned, 4), rk.int8_mlp_packed(rows(2, 13), packed, 4))
