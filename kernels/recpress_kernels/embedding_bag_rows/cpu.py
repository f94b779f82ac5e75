"""embedding_bag_rows on a CPU: the native kernel where there is one, torch where there is none."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.embedding_bag_rows import reference
from recpress_kernels.embedding_bag_rows.bounds import Maps, check_bags, rows_of_bags
from recpress_kernels.formats.rows import bits_of, dequantize_rows


def embedding_bag_rows(
    tables: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
    dims: Sequence[int],
) -> Tensor:
    """The op: float32 ``[B, sum of widths]``, equal to the reference bit for bit.

    Raises:
        IndexBoundsError: an index outside its table, or offsets that describe no bags of these indices.
    """
    described = None if native.bags is None else describe(tables, dims, range(len(tables)))
    address = None if described is None else described.buffer_info()[0]
    return run(address, tables, indices, offsets, pooling, per_sample_weights, dims, sum(dims))


def run(
    address: int | None,
    tables: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
    dims: Sequence[int],
    width: int,
    maps: Maps | None = None,
) -> Tensor:
    """The op on tables that are described at ``address``, or are not; ``width`` is the sum of ``dims``.

    With ``maps`` the indices are ids, which the description maps.
    """
    if address is None or native.bags is None:
        check_bags(tables, indices, offsets, maps)
        indices = rows_of_bags(maps, indices, offsets)
        return _through_torch(tables, indices, offsets, pooling, per_sample_weights, dims)
    indices, offsets = indices.contiguous(), offsets.contiguous()
    if pooling == "none":
        return _rows(address, tables, indices, offsets, width, maps)
    weights = None if per_sample_weights is None else per_sample_weights.contiguous()
    batch = (offsets.shape[0] - 1) // len(tables)
    out = torch.empty(batch, width)
    code = native.bags(
        address,
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
        check_bags(tables, indices, offsets, maps)
        native.check("embedding_bag_rows", code)
    return out


def _rows(
    address: int, tables: Sequence[Tensor], indices: Tensor, offsets: Tensor, width: int, maps: Maps | None
) -> Tensor:
    check_bags(tables, indices, offsets, maps)
    out = torch.empty(indices.shape[0], width)
    strides = (1, 0, indices.dtype is torch.int64, None, 0, 0)
    code = native.rows(address, 1, indices.data_ptr(), indices.shape[0], *strides, out.data_ptr(), native.isa)
    native.check("embedding_bag_rows", code)
    return out


def describe(
    tables: Sequence[Tensor], dims: Sequence[int], columns: Sequence[int], maps: Sequence[int] | None = None
) -> array | None:
    """The array of ``Table`` of abi.h, seven int64 a table: rows, count, stride, dim, column, bits, address of a map.

    None where the bytes of a row do not lie side by side. The addresses are valid while the tables live.
    """
    fields: list[int] = []
    for table, dim, column, id_map in zip(tables, dims, columns, maps or [0] * len(tables), strict=True):
        count, width = table.shape
        stride, step = table.stride()
        if step != 1:
            return None
        fields += (table.data_ptr(), count, stride, dim, column, bits_of(width, dim), id_map)
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
    tables: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
    dims: Sequence[int],
) -> Tensor:
    batch = (offsets.numel() - 1) // len(tables)
    single = per_sample_weights is None and indices.numel() == batch * len(tables) and _steps_by_one(offsets)
    if not single or pooling == "none":
        return reference.embedding_bag_rows(list(tables), indices, offsets, pooling, per_sample_weights, list(dims))
    # Bags of one index, the usual case of a recommender, have a short way. The zero is the reference's first addend.
    per_table = indices.reshape(len(tables), batch)
    parts = zip(tables, per_table, dims, strict=True)
    return torch.cat([dequantize_rows(t.index_select(0, i), dim) for t, i, dim in parts], dim=1).add_(0.0)


def _steps_by_one(offsets: Tensor) -> bool:
    return torch.equal(offsets, torch.arange(offsets.numel(), dtype=offsets.dtype))
