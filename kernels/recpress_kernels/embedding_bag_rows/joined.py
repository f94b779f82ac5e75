"""Bags of several tables, each with ids of its own, in one call: what a graph holds as a call a table."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from recpress_kernels.embedding_bag_rows.bounds import check_bags
from recpress_kernels.embedding_bag_rows.op import embedding_bag_rows
from recpress_kernels.embedding_bag_rows.tables import RowTables
from recpress_kernels.errors import KernelInputError
from recpress_kernels.library import direct


def pool_bags(
    tables: RowTables,
    indices: Sequence[Tensor],
    bags: Sequence[int] | Sequence[Tensor],
    pooling: str = "sum",
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """The bags of each table side by side, in one call of :func:`embedding_bag_rows`, whose bits they have.

    Args:
        tables: T tables.
        indices: for each table, int32 or int64 ``[L_t]``, of one dtype.
        bags: for each table, how many of its indices make a bag, at least 1; or its offsets ``[B + 1]`` in the dtype of
            indices.
        pooling: "sum" or "mean".
        weights: for each table, float32 ``[L_t]``, with "sum" alone; None for no weights.

    Returns:
        float32 ``[B, sum of dim_t]``.

    Raises:
        KernelInputError: an operand has another dtype or shape, or the tables' batches differ.
        IndexBoundsError: an index outside its table, or offsets that describe no bags of their table's indices.
    """
    if isinstance(bags[0], int):
        make = _kept if direct(indices[0]) else _fixed  # what is made while a graph is traced is of that trace
        offsets = make(tuple(bags), _batch(indices, bags), indices[0].dtype)
    else:
        offsets = bags[0] if len(bags) == 1 else _joined(tables, indices, bags)
    if weights is not None:
        _check_weights(indices, weights)
        weights = weights[0] if len(weights) == 1 else torch.cat(tuple(weights))
    flat = indices[0] if len(indices) == 1 else torch.cat(tuple(indices))
    return embedding_bag_rows(tables, flat, offsets, pooling, weights)


def _batch(indices: Sequence[Tensor], bags: Sequence[int]) -> int:
    """How many bags each table has."""
    sizes = [part.shape[0] for part in indices]
    batch = sizes[0] // bags[0]
    if sizes != [batch * each for each in bags]:
        told = ", ".join(f"{size} in bags of {each}" for size, each in zip(sizes, bags, strict=True))
        raise KernelInputError(f"pool_bags: the tables have {told} indices; give the same number of whole bags for all")
    return batch


def _check_weights(indices: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Each table's own: joined, what one has too many could be what the next has too few."""
    for t, (part, own) in enumerate(zip(indices, weights, strict=True)):
        if own.shape != part.shape:
            raise KernelInputError(
                f"pool_bags: the weights of table {t} have shape {tuple(own.shape)}; give that of its indices, "
                f"{tuple(part.shape)}"
            )


@lru_cache(maxsize=32)
def _kept(bags: tuple[int, ...], batch: int, dtype: torch.dtype) -> Tensor:
    """Those of :func:`_fixed`, which take longer to make than a small batch's bags."""
    return _fixed(bags, batch, dtype)


def _fixed(bags: tuple[int, ...], batch: int, dtype: torch.dtype) -> Tensor:
    """Offsets of bags of one length a table."""
    lengths = torch.tensor(bags, dtype=dtype).repeat_interleave(batch)
    return torch.cat([torch.zeros(1, dtype=dtype), lengths.cumsum(0, dtype=dtype)])


def _joined(tables: RowTables, indices: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
    """The offsets of all tables' bags. Each table's own must hold in itself: joined, one's last bag meets the next."""
    sizes = [part.shape[0] for part in indices]
    if len({own.shape for own in offsets}) > 1:
        told = ", ".join(str(list(own.shape)) for own in offsets)
        raise KernelInputError(
            f"pool_bags: the tables' offsets have shapes {told}; give the same number of bags for all"
        )
    each = torch.stack(tuple(offsets))
    if each[:, 0].any() or each[:, -1].tolist() != sizes:
        for t, (part, own) in enumerate(zip(indices, offsets, strict=True)):
            check_bags(tables.tables[t : t + 1], part, own, tables.maps and tables.maps[t : t + 1])
    begins = torch.tensor([0, *sizes[:-1]], dtype=each.dtype).cumsum(0, dtype=each.dtype)
    return torch.cat([(each[:, :-1] + begins[:, None]).flatten(), each.new_full((1,), sum(sizes))])
