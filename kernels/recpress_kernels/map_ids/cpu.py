"""map_ids on a CPU: the native kernel where there is one, torch where there is none."""

from array import array

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import IndexBoundsError
from recpress_kernels.map_ids import reference


def map_ids(ids: Tensor, rows: int, oov_row: int, remap: Tensor | None) -> Tensor:
    """The op on operands that are checked but for the values of ids and remap.

    Raises:
        IndexBoundsError: an id outside the table where ``oov_row`` is -1.
    """
    if native.map_ids is None:
        check_ids(ids, rows, oov_row)
        return reference.map_ids(ids, rows, oov_row, remap)
    ids, remap = ids.contiguous(), None if remap is None else remap.contiguous()
    out = torch.empty_like(ids)
    described = describe(rows, oov_row, remap)
    address = described.buffer_info()[0]
    if native.map_ids(address, ids.data_ptr(), ids.numel(), ids.dtype is torch.int64, out.data_ptr()):
        check_ids(ids, rows, oov_row)
    return out


def check_ids(ids: Tensor, rows: int, oov_row: int) -> None:
    """Check every id against the table, unless those outside are mapped.

    Raises:
        IndexBoundsError: names the id, its position and the bound.
    """
    if oov_row >= 0:
        return
    bad = reference.outside(ids, rows)
    if bad.any():
        at = bad.nonzero()[0].tolist()
        allowed = f"allowed are 0 to {rows - 1}" if rows else "the table has no rows"
        raise IndexBoundsError(f"map_ids: id {int(ids[tuple(at)])} at {at} is outside the table; {allowed}")


def describe(rows: int, oov_row: int, remap: Tensor | None) -> array:
    """The ``IdMap`` of abi.h; its address of remap, which is contiguous, is valid while that lives."""
    return array("q", (rows, oov_row, 0 if remap is None else remap.data_ptr()))
