"""int8_cross: every path of the CPU gives the bits of the reference, packed or not, of full and of low rank."""

import pytest
import torch
from int8_cases import PATHS, guarded, layer, path, rows, same_bits

import recpress_kernels as rk
from recpress_kernels.int8_cross import op, reference


def case(m, k, rank=None, dtype=torch.float32):
    """The op's operands, and its packed buffer."""
    weight, scale, bias = layer(k, rank or k)
    low, low_scale, _ = layer(rank, k, seed=1) if rank else (None, None, None)
    stack = [(weight, scale, bias)] if rank is None else [(low, low_scale, None), (weight, scale, bias)]
    packed = rk.pack_stack(*map(list, zip(*stack, strict=True)), ["none"] * len(stack))
    return (rows(m, k, 1).to(dtype), rows(m, k, 2).to(dtype), weight, scale, bias, low, low_scale), packed


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("k", "rank"), [(1, None), (7, None), (64, None), (100, None), (13, 5), (64, 17)])
def test_bits_of_the_reference(name, dtype, k, rank):
    for m in (0, 1, 5, 49):
        operands, packed = case(m, k, rank, dtype)
        want = reference.int8_cross(*operands)
        with path(name):
            assert same_bits(rk.int8_cross(*operands), want)
            assert same_bits(rk.int8_cross_packed(operands[0], operands[1], packed), want)


def test_the_reference_is_the_formula():
    operands, _ = case(4, 33)
    x0, x, weight, scale, bias, *_ = operands
    y = rk.int8_linear(x, weight, scale, bias)
    assert torch.equal(reference.int8_cross(*operands), x0 * y + x)
    exact = x0.double() * (x.double() @ (weight.double() * scale.double()[:, None]).T + bias) + x
    assert ((reference.int8_cross(*operands) - exact).abs().max() / exact.abs().max()) < 0.03


@pytest.mark.parametrize("name", PATHS)
def test_operands_of_other_strides_and_shapes(name):
    (x0, x, *weights), packed = case(6, 20)
    want = reference.int8_cross(x0, x, *weights)
    wide = torch.cat([x0, x, x0], dim=1)
    with path(name):
        assert same_bits(rk.int8_cross_packed(wide[:, :20], wide[:, 20:40], packed), want)
        turned = [t.t().contiguous().t() for t in (x0, x)]
        assert same_bits(rk.int8_cross_packed(*turned, packed), want)
        cubes = [t.view(2, 3, 20) for t in (x0, x)]
        assert same_bits(rk.int8_cross_packed(*cubes, packed), want.view(2, 3, 20))
        assert same_bits(rk.int8_cross(*cubes, *weights), want.view(2, 3, 20))


def test_nothing_beyond_the_operands_is_read():
    for k in (1, 13, 16, 33):
        (x0, x, *weights), packed = case(3, k)
        for name in PATHS[1:]:
            with path(name):
                got = rk.int8_cross_packed(guarded(x0), guarded(x), guarded(packed))
            assert same_bits(got, reference.int8_cross(x0, x, *weights))


(X0, X, W, S, B, _, _), PACKED = case(2, 7)


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ((X0, X.int(), W, S), "x is torch.int32"),
        ((X0.half(), X, W, S), "x0 is torch.float16"),
        ((X0[:1], X, W, S), r"x0 is torch.float32 of shape \(1, 7\)"),
        ((X0, X, W[:5], S[:5]), "it must give K = 7 outputs"),
        ((X0, X, W.float(), S), "weight is torch.float32"),
        ((X0, X, W, S, B, W), "low and low_scale belong together"),
        ((X0, X, W, S, B, W[:, :6], S), "low: .*the last dimensions must agree"),
    ],
)
def test_bad_operands_are_named(operands, message):
    with pytest.raises(rk.KernelInputError, match=f"int8_cross: .*{message}"):
        rk.int8_cross(*operands)
    assert not op.supports(*operands)


@pytest.mark.parametrize("name", PATHS)
def test_a_stack_of_other_widths_is_named(name):
    wrong = rk.pack(*layer(6, 7))
    with path(name), pytest.raises(rk.KernelInputError, match="int8_cross_packed: .*7-6 features"):
        rk.int8_cross_packed(X0, X, wrong)
    with path(name), pytest.raises(rk.KernelInputError, match="x0 is"):
        rk.int8_cross_packed(X0[:, :6], X, PACKED)


def test_graphs_see_the_ops():
    torch.library.opcheck(torch.ops.recpress.int8_cross.default, (X0, X, W, S, B))
    torch.library.opcheck(torch.ops.recpress.int8_cross_packed.default, (X0, X, PACKED))
