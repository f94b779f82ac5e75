"""Pooled look-ups in tables of quantised rows, in plain torch: the truth for every device.

For table t of T and row b of a batch of B, with the indices i of bag ``t * B + b``, those at positions
``offsets[t * B + b]`` up to ``offsets[t * B + b + 1]``::

    out[b, begin_t : begin_t + dim_t] = sum_i weight[i] * (scale_t[i] * code_t[i, :] + bias_t[i])

in float32, the indices in their order; ``begin_t`` is the sum of the widths of the tables before t. Pooling
"mean" divides by the number of indices in the bag. An empty bag gives zeros. Pooling "none", of one table, gives the
rows as they are, ``[L, dim]``, with 0 added, as a bag of one has it. The table-batched form is that of FBGEMM's
table-batched embedding operator.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from recpress_kernels.formats.rows import TAIL_BYTES, dequantize_rows


def embedding_bag_rows(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
    dims: list[int] | None = None,
) -> Tensor:
    """The op, by the formula on top of this file: float32 ``[B, sum of widths]``."""
    dims = widths(tables, dims)
    if pooling == "none":
        return dequantize_rows(tables[0].index_select(0, indices.long()), dims[0]).add_(0.0)
    batch = (offsets.numel() - 1) // len(tables)
    offsets = offsets.long()
    bounds = offsets[::batch].tolist() if batch else []
    outs = []
    for t, (table, dim) in enumerate(zip(tables, dims, strict=True)):
        if not batch:
            outs.append(torch.zeros(0, dim, device=table.device))
            continue
        lengths = offsets[t * batch : (t + 1) * batch + 1].diff()
        mine = slice(bounds[t], bounds[t + 1])
        weights = None if per_sample_weights is None else per_sample_weights[mine]
        outs.append(_pool(table, dim, indices[mine].long(), lengths, pooling, weights))
    return torch.cat(outs, dim=1)


def widths(tables: Sequence[Tensor], dims: Sequence[int] | None) -> list[int]:
    """The width of each table's rows: ``dims``, or those of int8 rows where it is None."""
    return [table.shape[1] - TAIL_BYTES for table in tables] if dims is None else list(dims)


def _pool(table: Tensor, dim: int, indices: Tensor, lengths: Tensor, pooling: str, weights: Tensor | None) -> Tensor:
    rows = dequantize_rows(table.index_select(0, indices), dim)
    if weights is not None:
        rows = rows * weights[:, None]
    bag = torch.repeat_interleave(torch.arange(lengths.numel(), device=table.device), lengths)
    out = torch.zeros(lengths.numel(), rows.shape[1], device=table.device).index_add_(0, bag, rows)
    return out / lengths.clamp(min=1)[:, None] if pooling == "mean" else out
