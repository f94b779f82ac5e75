"""Tables as the native kernels take them, and single look-ups in many of them at once."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.embedding_bag_rows import cpu, pages
from recpress_kernels.embedding_bag_rows.bounds import Maps, count_of
from recpress_kernels.embedding_bag_rows.reference import widths
from recpress_kernels.errors import IndexBoundsError, KernelInputError
from recpress_kernels.formats.rows import LEVELS, TAIL_BYTES, bits_of, row_bytes
from recpress_kernels.int8_linear.op import device_problem
from recpress_kernels.library import direct, eager
from recpress_kernels.map_ids.cpu import describe
from recpress_kernels.map_ids.op import IdMap, map_problem
from recpress_kernels.map_ids.reference import outside

_WIDE = {torch.int32: 0, torch.int64: 1}


class RowTables:
    """Tables of int8 or int4 rows, each with the column of its indices, described once for the kernels.

    To describe and check 26 tables takes 50 us, five times the look-ups of one row on a CPU; for a GPU the description
    is copied to it besides, which a CUDA graph cannot capture. This object owns aliases of the tables, so that the
    addresses in its description stay valid as long as it lives; copies describe their own. On a CPU it puts large
    pages under them (pages.py), which copies the tables once.

    Args:
        tables: T tensors uint8 in the form of formats/rows.py, on one device, at least one: ``[rows_t, dim_t + 4]`` of
            int8 or ``[rows_t, ceil(dim_t / 2) + 4]`` of int4.
        columns: for each table the column of the indices that it is looked up by; by default t for table t.
        dims: the width of each table's rows, which tells int8 from int4; None where all are int8.
        maps: for each table what map_ids does to its indices before the look-up, here in the same call, or None for
            nothing; None where no table has one.

    Raises:
        KernelInputError: a table has another dtype, shape or device, or the columns, dims or maps do not fit.
    """

    __slots__ = ("_described", "address", "columns", "dims", "maps", "needs", "on_gpu", "tables", "width")

    def __init__(
        self,
        tables: Sequence[Tensor],
        columns: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        maps: Maps | None = None,
    ) -> None:
        self.columns = tuple(range(len(tables)) if columns is None else columns)
        if not tables or len(self.columns) != len(tables) or min(self.columns) < 0:
            raise KernelInputError(
                f"RowTables: {len(tables)} tables and columns {self.columns}; give at least one table and as many "
                "columns, from 0"
            )
        if problem := tables_problem(tables, dims):
            raise KernelInputError(f"RowTables: {problem}")
        if problem := _maps_problem(tables, maps):
            raise KernelInputError(f"RowTables: {problem}")
        self.tables = tuple(table.detach() for table in tables)
        pages.put_under(self.tables)
        self.maps = None if maps is None or not any(maps) else tuple(map(_contiguous, maps))
        self.dims = widths(tables, dims)
        """The width of each table's rows."""
        self.width = sum(self.dims)
        self.needs = max(self.columns) + 1
        here = self.tables[0].device.type
        self._described = self._describe() if here == "cpu" else (None,)
        described = self._described[0]
        self.address = None if described is None else described.buffer_info()[0]
        self.on_gpu = _describe_on_gpu(self) if here == "cuda" else None

    def _describe(self) -> tuple[array | None, list[array | None]]:
        """The tables and their maps for the native kernels; the former hold addresses of the latter."""
        maps = [None if m is None else describe(m.rows, m.oov_row, m.remap) for m in self.maps or [None] * len(self)]
        at = [0 if m is None else m.buffer_info()[0] for m in maps]
        return cpu.describe(self.tables, self.dims, self.columns, at), maps

    def __len__(self) -> int:
        return len(self.tables)

    def __reduce__(self):
        return RowTables, (self.tables, self.columns, self.dims, self.maps)

    @property
    def dims_of_op(self) -> list[int] | None:
        """``dims`` as the op takes it: None where all rows are int8, as graphs have always had it."""
        return None if self.dims == widths(self.tables, None) else self.dims


def _describe_on_gpu(tables: RowTables):
    from recpress_kernels.embedding_bag_rows import cuda  # on first use: triton exists on Linux alone

    return cuda.describe(tables.tables, tables.dims, tables.columns, tables.maps)


def tables_problem(tables: Sequence[Tensor], dims: Sequence[int] | None) -> str | None:
    """Why ``tables`` with rows of ``dims`` values cannot be those of a call, or None."""
    if not tables:
        return "tables is empty; give at least one"
    if dims is not None and len(dims) != len(tables):
        return f"dims has {len(dims)} entries for {len(tables)} tables; give the width of each table's rows"
    device = tables[0].device
    for t, table in enumerate(tables):
        shape = table.shape
        if table.dtype is not torch.uint8 or len(shape) != 2 or shape[1] <= TAIL_BYTES:
            return f"{_told(t, table)}; give uint8 [rows, dim + {TAIL_BYTES}]"
        if dims is not None and bits_of(shape[1], dims[t]) is None:
            needs = " or ".join(f"{row_bytes(dims[t], bits)} (int{bits})" for bits in LEVELS)
            return f"{_told(t, table)}, its dim {dims[t]}; rows of that many values take {needs} bytes"
        if table.device != device:
            return f"{_told(t, table)} on {table.device}, table 0 on {device}; move them to one device"
    return None


def _maps_problem(tables: Sequence[Tensor], maps: Maps | None) -> str | None:
    """Why ``maps`` are none of these tables, or None. What a remap holds is checked here, once."""
    if maps is None:
        return None
    if len(maps) != len(tables):
        return f"{len(maps)} maps for {len(tables)} tables; give one or None for each"
    for t, (table, m) in enumerate(zip(tables, maps, strict=True)):
        if m is None:
            continue
        if problem := map_problem(m.rows, m.oov_row, m.remap):
            return f"the map of table {t}: {problem}"
        stored = table.shape[0]
        if m.remap is None and m.rows > stored:
            return f"the map of table {t} has ids up to {m.rows - 1}, the table {stored} rows; give as many, or a remap"
        if m.remap is not None and m.remap.device != table.device:
            return (
                f"the remap of table {t} is on {m.remap.device}, the table on {table.device}; move them to one device"
            )
        if m.remap is not None and bool(outside(m.remap, stored).any()):
            at = int(outside(m.remap, stored).nonzero()[0])
            return f"the remap of table {t} takes id {at} to row {int(m.remap[at])}; allowed are 0 to {stored - 1}"
    return None


def _contiguous(m: IdMap | None) -> IdMap | None:
    return m if m is None or m.remap is None else replace(m, remap=m.remap.detach().contiguous())


def _told(t: int, table: Tensor) -> str:
    return f"table {t} is {table.dtype} of shape {tuple(table.shape)}"


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
        IndexBoundsError: an index outside its table; on a GPU as embedding_bag_rows has it.
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
    out = pages.empty(batch, front_width + tables.width)
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
    if tables.on_gpu is not None and eager(indices) and (front is None or eager(front)):
        return _on_gpu(tables, indices, front)
    if front is not None:
        return torch.cat([front, look_up_rows(tables, indices)], dim=1)
    if direct(indices):
        check_rows(tables, indices)
    maps = tables.maps or [None] * len(tables)
    ids = [indices[:, column] for column in tables.columns]
    flat = torch.cat([part if m is None else m(part) for m, part in zip(maps, ids, strict=True)])
    offsets = torch.arange(flat.shape[0] + 1, dtype=flat.dtype, device=flat.device)
    return torch.ops.recpress.embedding_bag_rows(list(tables.tables), flat, offsets, "sum", None, tables.dims_of_op)


def _on_gpu(tables: RowTables, indices: Tensor, front: Tensor | None) -> Tensor:
    from recpress_kernels.embedding_bag_rows import cuda

    if problem := device_problem(tables.tables[0], indices, front):
        raise KernelInputError(f"look_up_rows: {problem}")
    with torch.cuda.device(indices.device):
        return cuda.look_up_rows(tables.on_gpu, indices, front, partial(check_rows, tables, indices))


def check_rows(tables: RowTables, indices: Tensor) -> None:
    """Check every index against its table.

    Raises:
        IndexBoundsError: names the table, the row and column, the value and the bound.
    """
    for t, (table, column) in enumerate(zip(tables.tables, tables.columns, strict=True)):
        count = count_of(table, tables.maps and tables.maps[t])
        if count is None:
            continue
        bad = outside(indices[:, column], count)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise IndexBoundsError(
                f"look_up_rows: index {int(indices[row, column])} at row {row}, column {column} is outside table {t}; "
                f"allowed are 0 to {count - 1}"
            )
