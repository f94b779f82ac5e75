"""Tables as the native kernels take them, and single look-ups in many of them at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.embedding_bag_rows import cpu
from recpress_kernels.errors import IndexBoundsError, KernelInputError
from recpress_kernels.formats.rows import TAIL_BYTES
from recpress_kernels.library import direct

_WIDE = {torch.int32: 0, torch.int64: 1}


class RowTables:
    """Tables of int8 rows, each with the column of its indices, described once for the native kernels.

    To describe and check 26 tables takes 50 us, five times the look-ups of one row. This object owns aliases of the
    tables, so that the addresses in its description stay valid as long as it lives; copies describe their own.

    Args:
        tables: T tensors uint8 ``[rows_t, dim_t + 4]`` in the form of formats/rows.py, on the CPU, at least one.
        columns: for each table the column of the indices that it is looked up by; by default t for table t.

    Raises:
        KernelInputError: a table has another dtype, shape or device, or the columns do not fit.
    """

    __slots__ = ("_described", "address", "columns", "needs", "tables", "width")

    def __init__(self, tables: Sequence[Tensor], columns: Sequence[int] | None = None) -> None:
        self.columns = tuple(range(len(tables)) if columns is None else columns)
        if not tables or len(self.columns) != len(tables) or min(self.columns) < 0:
            raise KernelInputError(
                f"RowTables: {len(tables)} tables and columns {self.columns}; give at least one table and as many "
                "columns, from 0"
            )
        for t, table in enumerate(tables):
            if problem := table_problem(t, table) or (None if table.is_cpu else f"table {t} is on {table.device}"):
                raise KernelInputError(f"RowTables: {problem}")
        self.tables = tuple(table.detach() for table in tables)
        self.width = sum(table.shape[1] - TAIL_BYTES for table in tables)
        self.needs = max(self.columns) + 1
        self._described = cpu.describe(self.tables, self.columns)
        self.address = None if self._described is None else self._described.buffer_info()[0]

    def __len__(self) -> int:
        return len(self.tables)

    def __reduce__(self):
        return RowTables, (self.tables, self.columns)

    @property
    def dims(self) -> list[int]:
        """The width of each table's rows."""
        return [table.shape[1] - TAIL_BYTES for table in self.tables]


def table_problem(t: int, table: Tensor) -> str | None:
    """Why ``table`` cannot be table ``t`` of a call, or None."""
    if table.dtype != torch.uint8 or table.dim() != 2 or table.shape[1] <= TAIL_BYTES:
        return f"table {t} is {table.dtype} of shape {tuple(table.shape)}; give uint8 [rows, dim + {TAIL_BYTES}]"
    return None


def look_up_rows(tables: RowTables, indices: Tensor, front: Tensor | None = None) -> Tensor:
    """One row of each table for each row of ``indices``, behind the numbers of ``front``.

    ``out[b] = [front[b], row indices[b, columns[0]] of table 0, row indices[b, columns[1]] of table 1, ...]``, the
    rows as float32 ``scale * code + bias``: the bits of :func:`embedding_bag_rows` on bags of one index.

    Args:
        tables: T tables and their columns.
        indices: int32 or int64 ``[B, C]`` of any strides; ``[B]`` with one table of column 0.
        front: float32 ``[B, F]``, or None for nothing.

    Returns:
        float32 ``[B, F + sum of dim_t]``.

    Raises:
        KernelInputError: an operand has another dtype, shape or device.
        IndexBoundsError: an index outside its table.
    """
    shape, wide = indices.shape, _WIDE.get(indices.dtype)
    plain = front is None or (direct(front) and front.dtype is torch.float32 and front.is_contiguous())
    if native.rows is None or tables.address is None or wide is None or not plain or not direct(indices):
        return _general(tables, indices, front)
    if len(shape) != 2 or shape[1] < tables.needs or (front is not None and front.shape[:-1] != shape[:1]):
        return _general(tables, indices, front)
    batch = shape[0]
    row_stride, column_stride = indices.stride()
    front_width = 0 if front is None else front.shape[1]
    out = torch.empty(batch, front_width + tables.width)
    code = native.rows(
        tables.address,
        len(tables.tables),
        indices.data_ptr(),
        batch,
        row_stride,
        column_stride,
        wide,
        None if front is None else front.data_ptr(),
        front_width,
        front_width,
        out.data_ptr(),
        native.isa,
    )
    if code:
        check_rows(tables, indices)
        native.check("look_up_rows", code)
    return out


def _general(tables: RowTables, indices: Tensor, front: Tensor | None) -> Tensor:
    if indices.dim() == 1 and tables.needs == 1:
        return look_up_rows(tables, indices[:, None], front)
    if indices.dtype not in _WIDE or indices.dim() != 2 or indices.shape[1] < tables.needs:
        given = f"{indices.dtype} of shape {tuple(indices.shape)}"
        raise KernelInputError(f"look_up_rows: indices is {given}; give int32 or int64 [B, C], C >= {tables.needs}")
    if front is not None and (front.dtype != torch.float32 or front.dim() != 2 or len(front) != len(indices)):
        given = f"{front.dtype} of shape {tuple(front.shape)}"
        raise KernelInputError(f"look_up_rows: front is {given}; give float32 [{len(indices)}, F], as indices")
    if front is not None:
        return torch.cat([front, look_up_rows(tables, indices)], dim=1)
    if direct(indices):
        check_rows(tables, indices)
    flat = indices[:, list(tables.columns)].t().reshape(-1)
    offsets = torch.arange(flat.shape[0] + 1, dtype=flat.dtype, device=flat.device)
    return torch.ops.recpress.embedding_bag_rows(list(tables.tables), flat, offsets)


def check_rows(tables: RowTables, indices: Tensor) -> None:
    """Check every index against its table.

    Raises:
        IndexBoundsError: names the table, the row and column, the value and the bound.
    """
    for t, (table, column) in enumerate(zip(tables.tables, tables.columns, strict=True)):
        bad = (indices[:, column] < 0) | (indices[:, column] >= table.shape[0])
        if bad.any():
            row = int(bad.nonzero()[0])
            raise IndexBoundsError(
                f"look_up_rows: index {int(indices[row, column])} at row {row}, column {column} is outside table {t}; "
                f"allowed are 0 to {table.shape[0] - 1}"
            )
