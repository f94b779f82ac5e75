"""int8_sparse24_linear_fragments where no sparse tensor core is: the bits of int8_linear on the dense weight."""

from dataclasses import replace

import pytest
import torch
from support.int8_linear_oracle import Operands, operands
from support.sparse24_oracle import canonical, dense

from recpress_kernels import KernelInputError, int8_linear, int8_sparse24_linear_fragments
from recpress_kernels.formats.sparse24_gpu import FragmentWeight, pack
from recpress_kernels.int8_sparse24_linear import fragments


def layer(m: int, k: int, n: int, **options) -> tuple[Operands, FragmentWeight]:
    values, indices = canonical(n, -(-k // 4) * 4)
    if rest := k % 4:  # zeros where the padding is
        nibbles = dense(torch.ones_like(values), indices)[:, -4:].nonzero()[:, 1].view(n, 2)
        values[:, -2:] *= nibbles < rest
    return replace(operands(m, k, n, **options), weight=dense(values, indices)[:, :k]), pack(values, indices)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 13, 17), (5, 64, 16), (2, 479, 70), (0, 8, 3)])
@pytest.mark.parametrize("options", [{}, {"static": True}, {"dtype": torch.uint8, "quantized_out": True}], ids=str)
def test_awkward_shapes_to_the_bit(m, k, n, options):
    o, weight = layer(m, k, n, activation="relu", **options)
    given = int8_sparse24_linear_fragments(o.x, *weight.operands(), *o.all()[2:])
    wanted = int8_linear(o.x, o.weight.contiguous(), *o.all()[2:])
    assert given.dtype == wanted.dtype and torch.equal(given, wanted)


def test_wrong_operands_are_refused():
    o, weight = layer(3, 64, 16)
    values, metadata, sums, n = weight.operands()
    scale = o.weight_scale
    wrong = [
        ((o.x.double(), values, metadata, sums, n, scale), "x is torch.float64"),
        ((o.x[:, :0], values, metadata, sums, n, scale), "x has K = 0"),
        ((o.x.byte(), values, metadata, sums, n, scale), "x is torch.uint8"),
        ((o.x, values[..., :2], metadata, sums, n, scale), "values is"),
        ((o.x, values.transpose(2, 3), metadata, sums, n, scale), "values is"),
        ((o.x, values, metadata.long(), sums, n, scale), "metadata is torch.int64"),
        ((o.x, values, metadata, sums[:3], n, scale), "sums is"),
        ((o.x, values, metadata, sums, 33, scale), "values is"),
        ((o.x, values, metadata, sums, n, scale[:3]), "weight_scale is"),
        ((o.x, values, metadata, sums, n, scale, o.bias.half()), "bias is"),
        ((o.x, values, metadata, sums, n, scale, None, "tanh"), "activation is"),
        ((o.x, values, metadata, sums, n, scale, None, "none", torch.tensor(0.1)), "x_scale and x_zero_point"),
        ((o.x, values, metadata, sums.to("meta"), n, scale), "operands lie on"),
        ((o.x.repeat(1, 2), values, metadata, sums, n, scale), "K = 128 and the packed weight 1 steps"),
    ]
    for given, message in wrong:
        assert message in fragments.supports(*given).reason
        with pytest.raises(KernelInputError, match=message):
            int8_sparse24_linear_fragments(*given)


def test_the_slow_path_is_said():
    o, weight = layer(3, 64, 16)
    support = fragments.supports(o.x, *weight.operands(), o.weight_scale)
    assert support and "unpacked at each call" in support.reason and "lies on cpu" in support.reason


def test_a_flipped_bit_of_metadata_shows():
    o, weight = layer(3, 64, 16)
    wanted = int8_linear(*o.all())
    weight.metadata[0, 0, 5] ^= 0b1111
    assert not torch.equal(int8_sparse24_linear_fragments(o.x, *weight.operands(), *o.all()[2:]), wanted)


def test_an_exported_graph_calls_it():
    o, weight = layer(3, 13, 17)
    rest = (*weight.operands(), o.weight_scale, o.bias, "relu")
    torch.library.opcheck(torch.ops.recpress.int8_sparse24_linear_fragments.default, (o.x, *rest))

    class Model(torch.nn.Module):
        def forward(self, x):
            return int8_sparse24_linear_fragments(x, *rest)

    program = torch.export.export(Model(), (o.x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    x = torch.randn(7, 13)
    assert torch.equal(program.module()(x), int8_sparse24_linear_fragments(x, *rest))
