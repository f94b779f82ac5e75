"""The bounds of indices and offsets, for every path: which one is broken, and what is allowed."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from recpress_kernels.errors import IndexBoundsError
from recpress_kernels.map_ids.op import IdMap

Maps = Sequence[IdMap | None]


def count_of(table: Tensor, id_map: IdMap | None) -> int | None:
    """How many indices a table takes, from 0 on; None where it takes any."""
    if id_map is None:
        return table.shape[0]
    return id_map.rows if id_map.oov_row < 0 else None


def check_bags(tables: Sequence[Tensor], indices: Tensor, offsets: Tensor, maps: Maps | None = None) -> None:
    """Check every index and offset against its bound, before memory is touched; indices are ids where there are maps.

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
        mine, count = indices[bounds[t] : bounds[t + 1]], count_of(table, maps and maps[t])
        if count is None or not mine.numel():
            continue
        low, high = (int(end) for end in torch.aminmax(mine))
        if low < 0 or high >= count:
            at = int(((mine < 0) | (mine >= count)).nonzero()[0])
            raise IndexBoundsError(
                f"embedding_bag_rows: index {int(mine[at])} at position {bounds[t] + at} is outside table {t}; "
                f"allowed are 0 to {count - 1}"
            )


def rows_of_bags(maps: Maps | None, indices: Tensor, offsets: Tensor) -> Tensor:
    """Ids of bags that are checked, in the order of embedding_bag_rows, as rows of their tables."""
    batch = (offsets.numel() - 1) // len(maps) if maps else 0
    if not batch or not any(maps):
        return indices
    bounds = offsets[::batch].tolist()
    parts = [indices[begin:end] for begin, end in pairwise(bounds)]
    return torch.cat([part if m is None else m(part) for m, part in zip(maps, parts, strict=True)])
