"""sparse24_linear on canonical operands and on fragments where no sparse tensor core is: right all the same."""

import pytest
import torch
from support.sparse24_oracle import Layer, half_layer

from recpress_kernels import KernelInputError, sparse24_linear, sparse24_linear_fragments
from recpress_kernels.formats.sparse24_gpu import pack
from recpress_kernels.sparse24_linear import fragments, op

DTYPES = (torch.float16, torch.bfloat16)
FORMS = ("canonical", "fragments")


def run(o: Layer, form: str) -> torch.Tensor:
    if form == "canonical":
        return sparse24_linear(o.x, o.values, o.indices, o.bias, o.activation)
    return sparse24_linear_fragments(o.x, *pack(o.values, o.indices).operands(), o.bias, o.activation)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 13, 17), (5, 64, 16), (2, 479, 70), (0, 8, 3)])
def test_awkward_shapes(m, k, n, dtype, form):
    o = half_layer(m, k, n, dtype)
    y = run(o, form)
    assert y.dtype == dtype and y.shape == (m, n)
    assert m == 0 or o.excess(y) <= 0
    whole = half_layer(m, k, n, dtype, whole=True)
    assert torch.equal(run(whole, form), whole.truth().to(dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu_tanh", "gelu_erf", "sigmoid", "silu"])
def test_activations_and_leading_dimensions(activation, form):
    o = half_layer(6, 12, 5, torch.float16, whole=True, activation=activation)
    wanted = o.truth().view(2, 3, 5)
    o.x, o.bias = o.x.view(2, 3, 12), o.bias.float()
    torch.testing.assert_close(run(o, form).double(), wanted, rtol=2**-10, atol=2**-14)


def test_a_wrong_index_shows_on_both_forms():
    """A negative control: were indices not read, the tests above would be worth nothing."""
    o = half_layer(3, 64, 16, torch.float16, whole=True)
    wanted = o.truth().half()
    o.indices[0, 0] = 0b1110_0100 if o.indices[0, 0] != 0b1110_0100 else 0b0100_0100
    for form in FORMS:
        assert not torch.equal(run(o, form)[:, 0], wanted[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 12)}, "float32"),
        ({"x": torch.zeros(3, 16, dtype=torch.float16)}, "K = 16"),
        ({"x": torch.zeros(3, 12, dtype=torch.bfloat16)}, "values is torch.float16"),
        ({"indices": torch.full((5, 1), 0x44, dtype=torch.uint8)}, "indices is"),
        ({"indices": torch.zeros(5, 2, dtype=torch.uint8)}, "rising order"),
        ({"bias": torch.zeros(4)}, "bias is"),
        ({"bias": torch.zeros(5, dtype=torch.float64)}, "bias is"),
        ({"activation": "tanh"}, "allowed are none, relu"),
    ],
)
def test_wrong_canonical_operands_are_refused(change, message):
    o = half_layer(3, 12, 5, torch.float16)
    operands = {**vars(o), **change}
    with pytest.raises(KernelInputError, match=message):
        sparse24_linear(**operands)


def test_wrong_fragments_are_refused():
    o = half_layer(3, 64, 16, torch.float16)
    values, metadata, n = pack(o.values, o.indices).operands()
    wrong = [
        ((o.x.float(), values, metadata, n), "x is torch.float32"),
        ((o.x, values.view(torch.bfloat16), metadata, n), "values is torch.bfloat16"),
        ((o.x, values.transpose(2, 3), metadata, n), "contiguous"),
        ((o.x, values, metadata.transpose(1, 2), n), "metadata is"),
        ((o.x, values, metadata, 17), "values is"),
        ((o.x, values, metadata, 0), "out_features is 0"),
        ((o.x[:, :60].repeat(1, 2), values, metadata, n), "K = 120 and the packed weight 1 steps"),
        ((o.x, values, metadata, n, torch.zeros(15)), "bias is"),
        ((o.x, values, metadata, n, None, "tanh"), "activation is"),
        ((o.x, values.to("meta"), metadata, n), "operands lie on"),
    ]
    for operands, message in wrong:
        assert message in fragments.supports(*operands).reason
        with pytest.raises(KernelInputError, match=message):
            sparse24_linear_fragments(*operands)


def test_the_slow_path_is_said():
    o = half_layer(3, 64, 16, torch.float16)
    for support in (
        op.supports(o.x, o.values, o.indices),
        fragments.supports(o.x, *pack(o.values, o.indices).operands()),
    ):
        assert support and "unpacked at each call" in support.reason and "slow" in support.reason


@pytest.mark.parametrize("form", FORMS)
def test_graphs_see_through_it(form):
    o = half_layer(3, 13, 17, torch.bfloat16)
    operands = (o.values, o.indices) if form == "canonical" else pack(o.values, o.indices).operands()
    name = "sparse24_linear" if form == "canonical" else "sparse24_linear_fragments"
    torch.library.opcheck(getattr(torch.ops.recpress, name).default, (o.x, *operands, o.bias, "relu"))
