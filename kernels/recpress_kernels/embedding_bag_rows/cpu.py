"""embedding_bag_rows on a CPU: the native kernel where there is one, torch where there is none."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.embedding_bag_rows import reference
from recpress_kernels.embedding_bag_rows.bounds import check_bags
from recpress_kernels.formats.rows import TAIL_BYTES, dequantize_rows_int8

_FIELDS = 5
_DIM = 3


def embedding_bag_rows(
    tables: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
) -> Tensor:
    """The op: float32 ``[B, sum of widths]``, equal to the reference bit for bit.

    Raises:
        IndexBoundsError: an index outside its table, or offsets that describe no bags of these indices.
    """
    described = None if native.bags is None else describe(tables, range(len(tables)))
    if described is None:
        check_bags(tables, indices, offsets)
        return _through_torch(tables, indices, offsets, pooling, per_sample_weights)
    indices, offsets = indices.contiguous(), offsets.contiguous()
    weights = None if per_sample_weights is None else per_sample_weights.contiguous()
    batch = (offsets.shape[0] - 1) // len(tables)
    out = torch.empty(batch, sum(described[_DIM::_FIELDS]))
    code = native.bags(
        described.buffer_info()[0],
        len(tables),
        indices.data_ptr(),
        indices.shape[0],
        indices.dtype is torch.int64,
        offsets.data_ptr(),
        batch,
        None if weights is None else weights.data_ptr(),
        pooling == "mean",
        out.data_ptr(),
        native.isa,
    )
    if code:
        check_bags(tables, indices, offsets)
        native.check("embedding_bag_rows", code)
    return out


def describe(tables: Sequence[Tensor], columns: Sequence[int]) -> array | None:
    """The array of ``Table`` of abi.h, five int64 a table: rows, count, stride, dim, column.

    None where the bytes of a row do not lie side by side. The addresses are valid while the tables live.
    """
    fields: list[int] = []
    for table, column in zip(tables, columns, strict=True):
        count, width = table.shape
        stride, step = table.stride()
        if step != 1:
            return None
        fields += (table.data_ptr(), count, stride, width - TAIL_BYTES, column)
    return array("q", fields)


def path(tables: Sequence[Tensor]) -> str:
    """What runs bags of these tables, and why not something faster."""
    status = native.status()
    if not status.ok:
        return f"torch look-ups, slower: {status.reason}"
    odd = [t for t, table in enumerate(tables) if table.stride(1) != 1]
    if odd:
        return f"torch look-ups, slower: the bytes of a row of table {odd[0]} do not lie side by side; copy the table"
    return status.reason


def _through_torch(
    tables: Sequence[Tensor], indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None
) -> Tensor:
    batch = (offsets.numel() - 1) // len(tables)
    single = per_sample_weights is None and indices.numel() == batch * len(tables) and _steps_by_one(offsets)
    if not single:
        return reference.embedding_bag_rows(list(tables), indices, offsets, pooling, per_sample_weights)
    # Bags of one index, the usual case of a recommender, have a short way. The zero is the reference's first addend.
    per_table = indices.reshape(len(tables), batch)
    return torch.cat(
        [dequantize_rows_int8(t.index_select(0, i)) for t, i in zip(tables, per_table, strict=True)], dim=1
    ).add_(0.0)


def _steps_by_one(offsets: Tensor) -> bool:
    return torch.equal(offsets, torch.arange(offsets.numel(), dtype=offsets.dtype))
