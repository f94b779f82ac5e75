"""The bounds of indices and offsets, for every path: which one is broken, and what is allowed."""

import torch
from torch import Tensor

from recpress_kernels.errors import IndexBoundsError


def check_bags(tables: list[Tensor], indices: Tensor, offsets: Tensor) -> None:
    """Check every index and offset against its bound, before memory is touched.

    Raises:
        IndexBoundsError: names the table, the position, the value and the bound.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != indices.numel():
        raise IndexBoundsError(
            f"embedding_bag_rows: offsets run from {first} to {last}; they must run from 0 to the number of "
            f"indices, {indices.numel()}"
        )
    steps = offsets.diff()
    if steps.numel() and int(steps.min()) < 0:
        at = int((steps < 0).nonzero()[0])
        raise IndexBoundsError(
            f"embedding_bag_rows: offsets go down after entry {at}, from {int(offsets[at])} to "
            f"{int(offsets[at + 1])}; they must never go down"
        )
    batch = (offsets.numel() - 1) // len(tables)
    if not batch or not indices.numel():
        return
    bounds = offsets[::batch].tolist()
    for t, table in enumerate(tables):
        mine = indices[bounds[t] : bounds[t + 1]]
        if not mine.numel():
            continue
        low, high = (int(end) for end in torch.aminmax(mine))
        if low < 0 or high >= table.shape[0]:
            at = int(((mine < 0) | (mine >= table.shape[0])).nonzero()[0])
            raise IndexBoundsError(
                f"embedding_bag_rows: index {int(mine[at])} at position {bounds[t] + at} is outside table {t}; "
                f"allowed are 0 to {table.shape[0] - 1}"
            )
