"""``torch.ops.recpress.map_ids``: checks, registration and dispatch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.library import LIBRARY, direct
from recpress_kernels.map_ids import cpu, reference
from recpress_kernels.support import Support

LIBRARY.define("map_ids(Tensor ids, int rows, int oov_row=-1, Tensor? remap=None) -> Tensor")


@dataclass(frozen=True, eq=False)
class IdMap:
    """The arguments of :func:`map_ids` beside the ids, as tables hold them."""

    rows: int
    oov_row: int = -1
    remap: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        return map_ids(ids, self.rows, self.oov_row, self.remap)


def map_ids(ids: Tensor, rows: int, oov_row: int = -1, remap: Tensor | None = None) -> Tensor:
    """Ids as they come to rows of a table as it is stored: what is outside to one row, then through a remap.

    Args:
        ids: int32 or int64 of any shape.
        rows: how many ids the table has, from 0 on.
        oov_row: what an id outside (out of vocabulary) becomes, before the remap; -1 makes it an error.
        remap: int32 ``[rows]``, the stored row of each id, or None where they are the same. Its values are not looked
            at here: the table that is looked up by them checks them.

    Returns:
        Of the shape and dtype of ids, contiguous. The formula stands in reference.py.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value.
        IndexBoundsError: an id outside the table where ``oov_row`` is -1; on a GPU this waits for it.
    """
    if direct(ids):
        return _cpu(ids, rows, oov_row, remap)
    return torch.ops.recpress.map_ids(ids, rows, oov_row, remap)


def supports(ids: Tensor, rows: int, oov_row: int = -1, remap: Tensor | None = None) -> Support:
    """Whether the op takes operands of these dtypes, shapes, devices and numbers, and the path that runs them."""
    if reason := _problem(ids, rows, oov_row, remap):
        return Support(False, reason)
    if not ids.is_cpu:
        return Support(True, "plain torch: comparisons and a gather, as many passes over the ids")
    return Support(True, native.status().reason)


def map_problem(rows: int, oov_row: int, remap: Tensor | None) -> str | None:
    """Why these cannot be a table's map, whatever the ids, or None."""
    if rows < 0:
        return f"rows is {rows}; give the number of ids, at least 0"
    if not -1 <= oov_row < max(rows, 0):
        return f"oov_row is {oov_row}; allowed are -1, which makes an id outside an error, and 0 to {rows - 1}"
    if remap is not None and (remap.dtype != torch.int32 or tuple(remap.shape) != (rows,)):
        return f"remap is {remap.dtype} of shape {tuple(remap.shape)}; give int32 [{rows}], a stored row for each id"
    return None


def _problem(ids: Tensor, rows: int, oov_row: int, remap: Tensor | None) -> str | None:
    if ids.dtype not in (torch.int32, torch.int64):
        return f"ids is {ids.dtype}; give int32 or int64"
    if reason := map_problem(rows, oov_row, remap):
        return reason
    if oov_row > torch.iinfo(ids.dtype).max:
        return f"oov_row is {oov_row}, which ids of {ids.dtype} cannot hold; give int64"
    if remap is not None and remap.device != ids.device:
        return f"ids lie on {ids.device} and remap on {remap.device}; move them to one device"
    return None


def _check(ids: Tensor, rows: int, oov_row: int, remap: Tensor | None) -> None:
    if reason := _problem(ids, rows, oov_row, remap):
        raise KernelInputError(f"map_ids: {reason}")


@torch.library.impl(LIBRARY, "map_ids", "CPU")
def _cpu(ids: Tensor, rows: int, oov_row: int = -1, remap: Tensor | None = None) -> Tensor:
    _check(ids, rows, oov_row, remap)
    return cpu.map_ids(ids, rows, oov_row, remap)


@torch.library.impl(LIBRARY, "map_ids", "CUDA")
def _cuda(ids: Tensor, rows: int, oov_row: int = -1, remap: Tensor | None = None) -> Tensor:
    _check(ids, rows, oov_row, remap)
    cpu.check_ids(ids, rows, oov_row)
    return reference.map_ids(ids, rows, oov_row, remap)


@torch.library.register_fake("recpress::map_ids", lib=LIBRARY)
def _fake(ids: Tensor, rows: int, oov_row: int = -1, remap: Tensor | None = None) -> Tensor:
    return ids.new_empty(ids.shape)
