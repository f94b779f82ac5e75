import pytest
import torch

from recpress_kernels import IndexBoundsError, KernelInputError, embedding_bag_rows
from recpress_kernels.embedding_bag_rows import reference
from recpress_kernels.formats.rows import dequantize_rows_int8, quantize_rows_int4, quantize_rows_int8


def tables(*shapes):
    return [quantize_rows_int8(torch.randn(rows, dim)) for rows, dim in shapes]


def test_by_hand():
    table = quantize_rows_int8(torch.tensor([[0.0, 255.0], [1.0, 1.0], [2.0, 257.0]]))
    out = embedding_bag_rows([table], torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]))
    assert out.tolist() == [[2.0, 512.0], [0.0, 0.0], [1.0, 1.0]]
    mean = embedding_bag_rows([table], torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]), "mean")
    assert mean.tolist() == [[1.0, 256.0], [0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_is_torch_embedding_bag_of_the_dequantised_tables(dtype, mode, weighted):
    if weighted and mode == "mean":
        pytest.skip("torch and this op define weights for 'sum' alone")
    shapes = [(10, 4), (1, 7), (50, 16)]
    packed = tables(*shapes)
    lengths = torch.tensor([[0, 3, 1, 0], [2, 0, 5, 1], [1, 1, 1, 0]])  # empty bags, the last one too
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
    indices = torch.cat(
        [torch.randint(0, rows, (int(n),)) for (rows, _), n in zip(shapes, lengths.sum(1), strict=True)]
    )
    weights = torch.rand(indices.numel()) if weighted else None
    out = embedding_bag_rows(packed, indices.to(dtype), offsets.to(dtype), mode, weights)
    expected = []
    for t, table in enumerate(packed):
        part = slice(int(offsets[4 * t]), int(offsets[4 * t + 4]))
        expected.append(
            torch.nn.functional.embedding_bag(
                indices[part],
                dequantize_rows_int8(table),
                offsets[4 * t : 4 * t + 4] - offsets[4 * t],
                mode=mode,
                per_sample_weights=None if weights is None else weights[part],
            )
        )
    assert out.shape == (4, 27)
    torch.testing.assert_close(out, torch.cat(expected, dim=1), rtol=1e-6, atol=1e-6)


def test_single_look_ups_are_bit_equal_to_the_reference():
    packed = tables((30, 8), (20, 16))
    indices = torch.cat([torch.randint(0, 30, (9,)), torch.randint(0, 20, (9,))])
    offsets = torch.arange(19)
    expected = reference.embedding_bag_rows(packed, indices, offsets)
    assert torch.equal(embedding_bag_rows(packed, indices, offsets), expected)
    assert torch.equal(expected[:, :8], dequantize_rows_int8(packed[0])[indices[:9]])


def test_no_rows_and_empty_bags():
    packed = tables((3, 4), (2, 2))
    none = torch.zeros(0, dtype=torch.int64)
    assert embedding_bag_rows(packed, none, torch.tensor([0])).shape == (0, 6)
    assert torch.equal(embedding_bag_rows(packed, none, torch.zeros(5, dtype=torch.int64)), torch.zeros(2, 6))


@pytest.mark.parametrize("value", [-1, 3, 2**40, -(2**62)])
def test_an_index_out_of_range_is_named(value):
    with pytest.raises(IndexBoundsError, match=rf"index {value} at position 2 is outside table 1; allowed are 0 to 2"):
        embedding_bag_rows(tables((5, 4), (3, 4)), torch.tensor([4, 4, value, 0]), torch.tensor([0, 1, 2, 3, 4]))


@pytest.mark.parametrize(
    "offsets, message",
    [([1, 2, 3], "run from 1 to 3"), ([0, 1, 2], "run from 0 to 2"), ([0, 4, 3], "go down after entry 1")],
)
def test_offsets_that_describe_no_bags(offsets, message):
    with pytest.raises(IndexBoundsError, match=message):
        embedding_bag_rows(tables((5, 4)), torch.tensor([0, 1, 2]), torch.tensor(offsets))


def test_a_table_of_no_rows_has_no_valid_index():
    with pytest.raises(IndexBoundsError, match="outside table 0"):
        embedding_bag_rows([quantize_rows_int8(torch.zeros(0, 4))], torch.tensor([0]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tables": []}, "tables is empty"),
        ({"tables": [torch.zeros(3, 8)]}, "table 0 is torch.float32"),
        ({"tables": [torch.zeros(3, 4, dtype=torch.uint8)]}, "table 0 is"),
        ({"indices": torch.zeros(2)}, "indices is torch.float32"),
        ({"indices": torch.zeros(1, 2, dtype=torch.int64)}, "one dimension"),
        ({"offsets": torch.zeros(3, dtype=torch.int32)}, "offsets is torch.int32"),
        ({"offsets": torch.zeros(0, dtype=torch.int64)}, "offsets has 0 entries"),
        ({"pooling": "max"}, "pooling is 'max'; allowed are sum, mean, none"),
        ({"pooling": "mean", "per_sample_weights": torch.ones(2)}, "defined for 'sum' alone"),
        ({"per_sample_weights": torch.ones(3)}, "per_sample_weights is"),
    ],
)
def test_refuses(change, message):
    given = {"tables": tables((3, 4)), "indices": torch.tensor([0, 1]), "offsets": torch.tensor([0, 1, 2])} | change
    with pytest.raises(KernelInputError, match=message):
        embedding_bag_rows(**given)


def test_is_a_proper_op():
    args = (tables((3, 4), (5, 2)), torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 3, 4]))
    torch.library.opcheck(torch.ops.recpress.embedding_bag_rows.default, args)
    torch.library.opcheck(torch.ops.recpress.embedding_bag_rows.default, (*args, "sum", torch.ones(4)))
    mixed = ([args[0][0], quantize_rows_int4(torch.randn(5, 9))], *args[1:], "mean", None, [4, 9])
    torch.library.opcheck(torch.ops.recpress.embedding_bag_rows.default, mixed)
    torch.library.opcheck(
        torch.ops.recpress.embedding_bag_rows.default,
        (args[0][:1], torch.tensor([2, 0]), torch.tensor([0, 0, 2]), "none"),
    )
