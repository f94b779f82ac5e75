"""weight_only_linear: every path within its error bound of float64 truth, alone and in stacks beside int8 layers."""

import struct

import pytest
import torch
from int8_cases import PATHS, guarded, layer, path, rows, same_bits
from support.int8_linear_oracle import ACTIVATIONS as FUNCTIONS
from support.sparse24_oracle import canonical

import recpress_kernels as rk
from recpress_kernels.formats.packed import ACTIVATIONS
from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.weight_only_linear import op

UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def truth(x, weight, scale, bias):
    """In float64, with the bound of reference.py and two roundings of the epilogue."""
    x, weight, scale = x.double(), weight.double(), scale.double()
    y = x @ weight.T * scale + (0 if bias is None else bias.double())
    bound = (weight.shape[1] + 2) * 2**-24 * (x.abs() @ weight.abs().T * scale) + 2**-23 * y.abs() + 1e-30
    return y, bound


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
@pytest.mark.parametrize("k", [1, 3, 13, 16, 479])
def test_within_the_bound_of_the_truth(name, dtype, k):
    for n in (1, 15, 16, 17, 70):
        weight, scale, bias = layer(n, k)
        packed = rk.pack(weight, scale, bias, keeps_floats=True)
        for m in (0, 1, 2, 5, 6, 7, 49):
            x = rows(m, k).to(dtype)
            want, bound = truth(x, weight, scale, bias)
            with path(name):
                for y in (rk.weight_only_linear(x, weight, scale, bias), rk.int8_linear_packed(x, packed, n)):
                    assert y.dtype == dtype and y.shape == (m, n)
                    assert ((y.double() - want).abs() <= bound + UNIT[dtype] * want.abs() * 1.01).all()


@pytest.mark.parametrize("name", PATHS)
def test_whole_numbers_are_exact(name):
    """Sums of whole numbers below 2^24: any order gives the same bits, so that a wrong index shows as such."""
    weight, _, _ = layer(37, 130)
    x = torch.randint(-500, 500, (9, 130), generator=torch.Generator().manual_seed(0)).float()
    want = (x.double() @ weight.double().T).float()
    with path(name):
        assert torch.equal(rk.weight_only_linear(x, weight, torch.ones(37)), want)
        assert torch.equal(rk.int8_linear_packed(x, rk.pack(weight, torch.ones(37), keeps_floats=True), 37), want)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(name, activation):
    weight, scale, bias = layer(17, 33)
    x = rows(6, 33)
    with path(name):
        y = rk.weight_only_linear(x, weight, scale, bias, activation)
    torch.testing.assert_close(
        y.double(), FUNCTIONS[activation](truth(x, weight, scale, bias)[0]), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("name", PATHS)
def test_not_a_number_stays_in_its_row_and_shapes_are_kept(name):
    weight, scale, bias = layer(17, 33)
    x = rows(6, 33)
    x[2, 5], x[4, 32] = float("nan"), float("inf")
    with path(name):
        y = rk.weight_only_linear(x, weight, scale, bias, "relu")
        assert y.isfinite().all(dim=1).tolist() == [True, True, False, True, False, True]
        assert y[2].isnan().all()
        cube = rows(12, 33).view(3, 2, 2, 33).transpose(0, 1)
        flat = rk.weight_only_linear(cube.reshape(12, 33), weight, scale, bias)
        assert torch.equal(rk.weight_only_linear(cube, weight, scale, bias), flat.view(2, 3, 2, 17))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stacks_hold_every_kind_of_layers(name, dtype):
    layers = [layer(40, 13), layer(32, 40), layer(20, 32), layer(1, 20)]
    layers[2] = (Sparse24(*canonical(20, 32), 32), *layers[2][1:])
    weights, scales, biases = map(list, zip(*layers, strict=True))
    activations, keeps = ["relu", "silu", "relu", "none"], [True, False, False, True]
    packed = rk.pack_stack(weights, scales, biases, activations, keeps_floats=keeps)
    assert [one.keeps_floats for one in rk.unpack(packed)] == keeps
    dense = [decompress(w) if isinstance(w, Sparse24) else w for w in weights]
    assert all(torch.equal(one.dense_weight, w) for one, w in zip(rk.unpack(packed), dense, strict=True))
    for m in (1, 7, 50):
        x = rows(m, 13).to(dtype)
        with path(name):
            want = x
            for operands, activation, keep in zip(layers, activations, keeps, strict=True):
                one = rk.pack(*operands, activation, keeps_floats=keep)
                want = rk.int8_linear_packed(want, one, operands[1].shape[0])
            got = rk.int8_mlp_packed(x, packed, 1)
        assert same_bits(got, want)


def test_a_2_4_layer_that_keeps_floats_is_refused():
    sparse = Sparse24(*canonical(20, 32), 32)
    with pytest.raises(rk.KernelInputError, match="layer 0: a 2:4 layer that keeps its inputs as floats"):
        rk.pack(sparse, torch.ones(20), keeps_floats=True)


def test_nothing_beyond_the_operands_is_read():
    weight, scale, bias = (guarded(t) for t in layer(17, 13))
    packed = guarded(rk.pack(*layer(17, 13), keeps_floats=True))
    for m in (1, 6, 7):
        x = guarded(rows(m, 13))
        for name in PATHS[1:]:
            with path(name):
                assert rk.weight_only_linear(x, weight, scale, bias).isfinite().all()
                assert rk.int8_linear_packed(x, packed, 17).isfinite().all()


@pytest.mark.parametrize("name", PATHS)
def test_a_pair_is_refused_where_floats_are_kept(name):
    packed = rk.pack(*layer(17, 13), keeps_floats=True)
    pair = (torch.tensor(0.1), torch.tensor(3, dtype=torch.int32))
    with path(name):
        for x, pairs in ((rows(2, 13), pair), (rows(2, 13), (None, None, *pair)), (torch.zeros(2, 13).byte(), pair)):
            with pytest.raises(rk.KernelInputError, match="keeps its inputs as floats"):
                rk.int8_linear_packed(x, packed, 17, *pairs)


@pytest.mark.parametrize("flags", [8, 6, -1])
@pytest.mark.parametrize("name", PATHS)
def test_unknown_flags_and_two_kinds_at_once_are_corrupt(name, flags):
    packed = rk.pack(*layer(17, 13))
    packed[64 + 16 : 64 + 20] = torch.tensor(list(struct.pack("<i", flags)), dtype=torch.uint8)
    with path(name), pytest.raises(rk.KernelInputError, match="corrupt"):
        rk.int8_linear_packed(rows(2, 13), packed, 17)


W, S, B = layer(5, 7)
X = rows(2, 7)


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ((X.int(), W, S), "x is torch.int32; give float32"),
        ((X.to(torch.uint8), W, S), "x is torch.uint8; give float32"),
        ((X, W.float(), S), "weight is torch.float32"),
        ((X, W[:, :0], S), "K is 0"),
        ((X[:, :6], W, S), "the last dimensions must agree"),
        ((X, W, S[:4]), "weight_scale is"),
        ((X, W, S.double()), "weight_scale is"),
        ((X, W, S, B[:, None]), "bias is"),
        ((X, W, S, B, "swish"), "allowed are none, relu"),
        ((X, W.to("meta"), S), "move them to one device"),
    ],
)
def test_bad_operands_are_named(operands, message):
    with pytest.raises(rk.KernelInputError, match=message):
        rk.weight_only_linear(*operands)
    assert not op.supports(*operands)


def test_graphs_see_the_op():
    torch.library.opcheck(torch.ops.recpress.weight_only_linear.default, (X, W, S, B, "relu"))

    class Layer(torch.nn.Module):
        def forward(self, x):
            return rk.weight_only_linear(x, W, S, B)

    program = torch.export.export(Layer(), (X,))
    assert torch.equal(program.module()(X), rk.weight_only_linear(X, W, S, B))
    assert any(n.target is torch.ops.recpress.weight_only_linear.default for n in program.graph.nodes)
