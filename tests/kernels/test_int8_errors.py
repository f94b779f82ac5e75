"""Bad operands of the int8 ops: each a KernelInputError that names the operand, what it is and what is allowed."""

import pytest
import torch
from int8_cases import PATHS, layer, path, rows

import recpress_kernels as rk
from recpress_kernels.formats.int8 import MAX_IN_FEATURES
from recpress_kernels.int8_linear.op import supports

W, S, B = layer(5, 13)
X = rows(2, 13)
Q = torch.zeros(2, 13, dtype=torch.uint8)
HALF = torch.tensor(0.5)
ZERO = torch.tensor(3, dtype=torch.int32)
INT = torch.int32

LINEAR = {
    "x of int": ((X.int(), W, S, B), "x is torch.int32; give float32"),
    "x of double": ((X.double(), W, S, B), "x is torch.float64"),
    "x quantised without scale": ((Q, W, S, B), "x_scale and x_zero_point"),
    "x of no dimension": ((torch.tensor(1.0), W, S, B), "last dimensions"),
    "x of another K": ((rows(2, 12), W, S, B), "last dimensions"),
    "weight of float": ((X, W.float(), S, B), "weight is torch.float32"),
    "weight of one dimension": ((X, W[0], S, B), "weight is torch.int8 of shape"),
    "K = 0": ((rows(2, 0), W[:, :0], S, B), "K is 0; allowed are 1 to"),
    "K huge": (
        (torch.zeros(1, MAX_IN_FEATURES + 1), torch.zeros(1, MAX_IN_FEATURES + 1, dtype=torch.int8), S[:1], None),
        "K is 133145",
    ),
    "scale of another length": ((X, W, S[:4], B), "weight_scale is torch.float32 of shape"),
    "scale of half": ((X, W, S.half(), B), "weight_scale is torch.float16"),
    "bias of another shape": ((X, W, S, B[:, None]), "bias is torch.float32 of shape"),
    "devices": ((X, W.to("meta"), S, B), "cpu, meta"),
    "activation": ((X, W, S, B, "tanh"), "activation is 'tanh'; allowed are none, relu"),
    "x_scale alone": ((X, W, S, B, "none", HALF), "x_scale and x_zero_point belong together"),
    "x_zero_point alone": ((X, W, S, B, "none", None, ZERO), "x_scale and x_zero_point belong together"),
    "out_scale alone": ((X, W, S, B, "none", None, None, HALF), "out_scale and out_zero_point belong together"),
    "x_scale of double": ((X, W, S, B, "none", HALF.double(), ZERO), "x_scale is torch.float64"),
    "x_scale a row each": ((X, W, S, B, "none", torch.ones(2), ZERO), "x_scale is torch.float32 of shape"),
    "x_zero_point of int64": ((X, W, S, B, "none", HALF, ZERO.long()), "x_zero_point is torch.int64"),
    "x_scale zero": ((X, W, S, B, "none", HALF * 0, ZERO), "x_scale is 0.0; give a positive finite"),
    "x_scale negative": ((X, W, S, B, "none", -HALF, ZERO), "x_scale is -0.5"),
    "x_scale NaN": ((X, W, S, B, "none", HALF * float("nan"), ZERO), "x_scale is nan"),
    "x_scale infinite": ((X, W, S, B, "none", HALF * float("inf"), ZERO), "x_scale is inf"),
    "x_zero_point 128": ((X, W, S, B, "none", HALF, ZERO + 125), "x_zero_point is 128; allowed are 0 to 127"),
    "out_zero_point -1": ((X, W, S, B, "none", None, None, HALF, ZERO - 4), "out_zero_point is -1"),
    "out_scale infinite": ((X, W, S, B, "none", None, None, HALF / 0, ZERO), "out_scale is inf"),
}


@pytest.mark.parametrize("what", LINEAR)
def test_linear(what):
    operands, message = LINEAR[what]
    with pytest.raises(rk.KernelInputError, match=message):
        rk.int8_linear(*operands)


def test_minus_128_where_an_int32_might_overflow():
    k = 132_105
    weight = torch.zeros(1, k, dtype=torch.int8)
    weight[0, 7] = -128
    for call in (lambda: rk.int8_linear(torch.ones(1, k), weight, S[:1]), lambda: rk.pack(weight, S[:1])):
        with pytest.raises(rk.KernelInputError, match="clamp the weights to -127"):
            call()


@pytest.mark.parametrize("name", PATHS)
def test_longest_sum(name):
    """K at its bound, every product at its bound: the int32 holds it."""
    weight = torch.full((1, MAX_IN_FEATURES), 127, dtype=torch.int8)
    with path(name):
        y = rk.int8_linear(torch.full((1, MAX_IN_FEATURES), 127.0), weight, torch.ones(1))
    assert y.item() == torch.tensor(MAX_IN_FEATURES * 127 * 127, dtype=torch.int32).float().item()


PACK = {
    "lengths": (([W], [S], [B], []), r"have \[1, 1, 1, 0, 1, 1\] entries"),
    "nothing": (([], [], [], []), "entries; give 1 to 64"),
    "activation": (([W], [S], [B], ["elu"]), "layer 0: activation is 'elu'"),
    "weight": (([W.float()], [S], [B], ["none"]), "layer 0: weight is torch.float32"),
    "scale": (([W], [S * float("nan")], [B], ["none"]), "layer 0: weight_scale holds NaN"),
    "no outputs": (([W[:0]], [S[:0]], [None], ["none"]), "N >= 1"),
    "layers that do not meet": (([W, W], [S, S], [B, B], ["none", "none"]), "layer 1: weight takes 13 features"),
    "device": (([W.to("meta")], [S], [B], ["none"]), "packed buffers are for the CPU"),
}


@pytest.mark.parametrize("what", PACK)
def test_pack(what):
    operands, message = PACK[what]
    with pytest.raises(rk.KernelInputError, match=message):
        rk.pack_stack(*operands)


MLP = {
    "lengths": ((X, [W], [S], [B, None], ["none"]), "have .1, 1, 2, 1. entries"),
    "nothing": ((X, [], [], [], []), "at least 1"),
    "x": ((X.int(), [W], [S], [B], ["none"]), "x is torch.int32"),
    "second layer": ((X, [W, W], [S, S], [B, B], ["none", "none"]), "layer 1: .*last dimensions"),
    "activation": ((X, [W], [S], [None], ["?"]), "layer 0: activation is '\\?'"),
}


@pytest.mark.parametrize("what", MLP)
def test_mlp(what):
    operands, message = MLP[what]
    with pytest.raises(rk.KernelInputError, match=message):
        rk.int8_mlp(*operands)


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ((X.int(), rk.pack(W, S), 5), "x is torch.int32"),
        ((Q, rk.pack(W, S), 5), "x is torch.uint8"),
        ((torch.tensor(1.0), rk.pack(W, S), 5), "x has shape"),
        ((X[:, :0], rk.pack(W, S), 5), "x has (shape|K = 0)"),
        ((X, rk.pack(W, S).view(torch.int8), 5), "packed is torch.int8"),
        ((X, rk.pack(W, S)[None], 5), "packed is torch.uint8 of shape"),
    ],
)
def test_packed_operands(operands, message):
    for op in (rk.int8_linear_packed, rk.int8_mlp_packed):
        with pytest.raises(rk.KernelInputError, match=message):
            op(*operands)


@pytest.mark.parametrize("name", PATHS)
def test_the_path_that_runs_is_said(name):
    with path(name):
        answer = supports(X, W, S, B)
    assert answer
    expected = "native kernels" if name != "torch" else ""
    assert expected in answer.reason
