"""int8_sparse24_linear on canonical weights: the bits of int8_linear on what they decompress to."""

import pytest
import torch
from int8_cases import PATHS, hard_rows, layer, path, rows, same_bits
from support.sparse24_oracle import canonical, dense

import recpress_kernels as rk
from recpress_kernels.formats.sparse24 import compress
from recpress_kernels.int8_linear import reference as dense_reference
from recpress_kernels.int8_sparse24_linear import reference
from recpress_kernels.int8_sparse24_linear.op import supports

PAIR = (torch.tensor(0.05), torch.tensor(60, dtype=torch.int32))


def operands(n: int, k: int) -> tuple[torch.Tensor, tuple]:
    """The dense weight ``[n, k]``, and values, indices, weight_scale, bias of the same layer."""
    weight = dense(*canonical(n, -(-k // 4) * 4))[:, :k].contiguous()
    sparse = compress(weight)
    return weight, (sparse.values, sparse.indices, *layer(n, k)[1:])


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("k", [1, 4, 13, 479])
def test_bits_of_the_dense_layer(name, k):
    with path(name):
        for n in (1, 17):
            weight, given = operands(n, k)
            for m in (0, 1, 8, 35):
                want = dense_reference.int8_linear(rows(m, k), weight, *given[2:], "relu")
                assert same_bits(rk.int8_sparse24_linear(rows(m, k), *given, "relu"), want), (m, n)
                assert same_bits(reference.int8_sparse24_linear(rows(m, k), *given, "relu"), want)


@pytest.mark.parametrize("name", PATHS)
def test_halves_hard_rows_pairs_and_leading_dimensions(name):
    weight, given = operands(17, 45)
    with path(name):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = hard_rows(45).to(dtype)
            assert same_bits(rk.int8_sparse24_linear(x, *given), dense_reference.int8_linear(x, weight, *given[2:]))
        wanted = dense_reference.int8_linear(rows(6, 45), weight, *given[2:], "none", *PAIR, *PAIR)
        got = rk.int8_sparse24_linear(rows(6, 45).view(2, 3, 45), *given, "none", *PAIR, *PAIR)
        assert got.shape == (2, 3, 17) and torch.equal(got.view(6, 17), wanted)


def test_traced():
    _, given = operands(5, 13)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.recpress.int8_sparse24_linear.default, (rows(3, 13), *given), test_utils=checks)
    out = rk.int8_sparse24_linear(
        rows(3, 13).to("meta"), *(t.to("meta") for t in given), "none", None, None, *(p.to("meta") for p in PAIR)
    )
    assert out.shape == (3, 5) and out.dtype == torch.uint8


VALUES, INDICES, SCALE, BIAS = operands(5, 13)[1]
X = rows(2, 13)
WRONG = {
    "x of int": ((X.int(), VALUES, INDICES, SCALE), "x is torch.int32; give float32"),
    "x without features": ((X[:, :0], VALUES, INDICES, SCALE), "x has shape"),
    "x of another K": (
        (rows(2, 17), VALUES, INDICES, SCALE),
        "x has 17 features and values shape .5, 8.",
    ),
    "values of float": ((X, VALUES.half(), INDICES, SCALE), "values is torch.float16; give int8"),
    "values of one dimension": ((X, VALUES[0], INDICES, SCALE), "values is torch.int8 of shape"),
    "indices of int8": ((X, VALUES, INDICES.to(torch.int8), SCALE), "indices is torch.int8"),
    "indices of another shape": ((X, VALUES, INDICES[:, :1], SCALE), "give uint8 .5, 2."),
    "indices in falling order": ((X, VALUES, torch.full_like(INDICES, 0x11), SCALE), "places 1 and 0 in group 0"),
    "a place beyond K": ((X, VALUES.clone().fill_(1), INDICES.clone().fill_(0x44 | 0xE0), SCALE), "beyond in_features"),
    "scale of another length": ((X, VALUES, INDICES, SCALE[:4]), "weight_scale is torch.float32 of shape"),
    "activation": ((X, VALUES, INDICES, SCALE, BIAS, "tanh"), "activation is 'tanh'"),
    "x_scale alone": ((X, VALUES, INDICES, SCALE, BIAS, "none", PAIR[0]), "belong together"),
    "x_scale zero": ((X, VALUES, INDICES, SCALE, BIAS, "none", PAIR[0] * 0, PAIR[1]), "x_scale is 0.0"),
    "devices": ((X, VALUES.to("meta"), INDICES, SCALE), "cpu, meta"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_operands(what):
    given, message = WRONG[what]
    with pytest.raises(rk.KernelInputError, match=f"int8_sparse24_linear: .*{message}"):
        rk.int8_sparse24_linear(*given)


def test_what_runs_is_said():
    assert "decompressed" in supports(X, VALUES, INDICES, SCALE).reason
