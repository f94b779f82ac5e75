"""embedding_bag_rows on a CPU, with a short path for bags of one index, the usual case of a recommender."""

import torch
from torch import Tensor

from recpress_kernels.embedding_bag_rows import reference
from recpress_kernels.formats.rows import dequantize_rows_int8


def embedding_bag_rows(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
) -> Tensor:
    """The op: float32 ``[B, sum of widths]``, equal to the reference bit for bit."""
    batch = (offsets.numel() - 1) // len(tables)
    single = per_sample_weights is None and indices.numel() == batch * len(tables) and _steps_by_one(offsets)
    if not single:
        return reference.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights)
    per_table = indices.view(len(tables), batch)
    return torch.cat(
        [dequantize_rows_int8(t.index_select(0, i)) for t, i in zip(tables, per_table, strict=True)], dim=1
    )


def _steps_by_one(offsets: Tensor) -> bool:
    return torch.equal(offsets, torch.arange(offsets.numel(), dtype=offsets.dtype))
