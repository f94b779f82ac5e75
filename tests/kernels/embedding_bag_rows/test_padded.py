import pytest
import torch

from recpress_kernels import KernelInputError, bags_of_padded, embedding_bag_rows
from recpress_kernels.formats.rows import dequantize_rows_int8, quantize_rows_int4, quantize_rows_int8


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("pooling, weighted", [("sum", False), ("mean", False), ("sum", True)])
def test_pools_as_a_loop_over_rows(dtype, pooling, weighted):
    """Padding is an index outside the table, and NaN as a weight: neither may be read."""
    table = quantize_rows_int8(torch.randn(30, 8))
    ids = torch.randint(0, 30, (6, 5), dtype=dtype)
    lengths = torch.tensor([0, 5, 1, 3, 2, 0])
    weights = torch.rand(6, 5)
    for row, length in enumerate(lengths):
        ids[row, length:], weights[row, length:] = -1, torch.nan
    indices, offsets, given = bags_of_padded(ids, lengths, weights if weighted else None)
    assert indices.dtype == offsets.dtype == dtype and offsets.tolist() == [0, 0, 5, 6, 9, 11, 11]
    out = embedding_bag_rows([table], indices, offsets, pooling, given)
    floats = dequantize_rows_int8(table)
    for row, length in enumerate(lengths.tolist()):
        rows = floats[ids[row, :length].long()]
        if weighted:
            rows = rows * weights[row, :length, None]
        want = rows.sum(0) / max(length, 1) if pooling == "mean" else rows.sum(0)
        torch.testing.assert_close(out[row], want)


def test_many_tables_and_no_rows():
    tables, dims = [quantize_rows_int8(torch.randn(9, 4)), quantize_rows_int4(torch.randn(9, 4))], [4, 4]
    ids, lengths = torch.randint(0, 9, (2, 3, 4)), torch.tensor([[4, 0, 1], [2, 2, 0]])
    out = embedding_bag_rows(tables, *bags_of_padded(ids, lengths)[:2], "sum", None, dims)
    for t, table in enumerate(tables):
        one = embedding_bag_rows([table], *bags_of_padded(ids[t], lengths[t])[:2], "sum", None, [4])
        assert torch.equal(out[:, 4 * t : 4 * t + 4], one)
    indices, offsets, _ = bags_of_padded(ids[:, :0], lengths[:, :0])
    assert embedding_bag_rows(tables, indices, offsets, "sum", None, dims).shape == (0, 8)


@pytest.mark.parametrize(
    "ids, lengths, weights, message",
    [
        (torch.zeros(3, 2), torch.zeros(3).long(), None, "ids is torch.float32"),
        (torch.zeros(3).long(), torch.zeros(3).long(), None, r"ids is torch.int64 of shape \(3,\)"),
        (
            torch.zeros(3, 2).long(),
            torch.zeros(2).long(),
            None,
            r"lengths is torch.int64 of shape \(2,\); give .* \[3\]",
        ),
        (torch.zeros(3, 2).long(), torch.zeros(3), None, "lengths is torch.float32"),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), torch.zeros(3), "weights has shape"),
        (torch.zeros(3, 2).long(), torch.tensor([0, 3, 1]), None, r"length 3 at \[1\]; allowed are 0 to 2"),
        (torch.zeros(3, 2).long(), torch.tensor([0, 2, -1]), None, r"length -1 at \[2\]"),
    ],
)
def test_refuses(ids, lengths, weights, message):
    with pytest.raises(KernelInputError, match=message):
        bags_of_padded(ids, lengths, weights)
