"""``torch.ops.recpress.embedding_bag_rows``: checks, registration and dispatch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recpress_kernels.embedding_bag_rows import cpu, reference
from recpress_kernels.embedding_bag_rows.bounds import check_bags, rows_of_bags
from recpress_kernels.embedding_bag_rows.reference import widths
from recpress_kernels.embedding_bag_rows.tables import RowTables, tables_problem
from recpress_kernels.errors import KernelInputError
from recpress_kernels.library import LIBRARY, direct, eager
from recpress_kernels.support import Support

POOLINGS = ("sum", "mean", "none")
_INTEGERS = (torch.int32, torch.int64)

LIBRARY.define(
    "embedding_bag_rows(Tensor[] tables, Tensor indices, Tensor offsets, str pooling='sum', "
    "Tensor? per_sample_weights=None, int[]? dims=None) -> Tensor"
)


def embedding_bag_rows(
    tables: Sequence[Tensor] | RowTables,
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
    dims: Sequence[int] | None = None,
) -> Tensor:
    """Look up bags of indices in T tables of quantised rows and pool each bag.

    Args:
        tables: T tensors uint8 in the form of formats/rows.py, at least one: ``[rows_t, dim_t + 4]`` of int8 or
            ``[rows_t, ceil(dim_t / 2) + 4]`` of int4, mixed as one likes. Or RowTables, which are described once and
            save 2 us a table and call, on a GPU a copy to it; their columns mean nothing here, their maps do.
        indices: int32 or int64 ``[L]``, all bags of table 0, then all of table 1, and so on.
        offsets: dtype of indices, ``[T * B + 1]``: bag b of table t is at ``offsets[t * B + b]`` up to
            ``offsets[t * B + b + 1]``; it begins with 0, never goes down and ends with L.
            padded.py makes the two of padded ids.
        pooling: ``"sum"``, ``"mean"``, or with one table ``"none"`` for the rows as they are.
        per_sample_weights: float32 ``[L]``, with pooling "sum" only.
        dims: the width of each table's rows, which tells int8 from int4 (one value a row: int8); None where all are
            int8, or with RowTables, which have their own.

    Returns:
        float32 ``[B, sum of dim_t]``, or ``[L, dim]`` with pooling "none"; an empty bag gives zeros. The formula stands
        in reference.py.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value.
        IndexBoundsError: an index outside its table, or offsets that describe no bags of these indices. On a GPU it is
            waited for, once a call; while a CUDA graph is captured nothing is raised, and those bags become NaN.
    """
    if isinstance(tables, RowTables):
        return _described(tables, indices, offsets, pooling, per_sample_weights, dims)
    if direct(indices) and all(type(table) is Tensor for table in tables):
        return _cpu(tables, indices, offsets, pooling, per_sample_weights, dims)
    return torch.ops.recpress.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights, dims)


def _described(
    tables: RowTables,
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
    dims: Sequence[int] | None,
) -> Tensor:
    if dims is not None and list(dims) != tables.dims:
        raise KernelInputError(f"embedding_bag_rows: dims is {list(dims)}, RowTables have {tables.dims}; leave it out")
    if not direct(indices) and not (tables.on_gpu is not None and eager(indices)):
        indices = rows_of_bags(tables.maps, indices, offsets)
        given = (list(tables.tables), indices, offsets, pooling, per_sample_weights)
        return torch.ops.recpress.embedding_bag_rows(*given, tables.dims_of_op)
    if reason := _bags_problem(tables.tables, indices, offsets, pooling, per_sample_weights):
        raise KernelInputError(f"embedding_bag_rows: {reason}")
    if tables.on_gpu is not None:
        return _on_gpu(tables.on_gpu, indices, offsets, pooling, per_sample_weights)
    operands = (tables.tables, indices, offsets, pooling, per_sample_weights, tables.dims, tables.width, tables.maps)
    return cpu.run(tables.address, *operands)


def supports(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
    dims: list[int] | None = None,
) -> Support:
    """Whether the op takes operands of these dtypes, shapes and devices, and the path that runs them."""
    if reason := problem(tables, indices, offsets, pooling, per_sample_weights, dims):
        return Support(False, reason)
    return Support(True, cpu.path(tables) if indices.is_cpu else _gpu_path(tables))


def _gpu_path(tables: Sequence[Tensor]) -> str:
    from recpress_kernels.embedding_bag_rows import cuda  # on first use: triton exists on Linux alone

    reason = cuda.problem(tables)
    return f"torch look-ups, slower: {reason}" if reason else "Triton-language kernel, one launch for all tables"


def problem(
    tables: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
    dims: Sequence[int] | None,
) -> str | None:
    """Why the op refuses operands of these dtypes, shapes and devices, or None."""
    return tables_problem(tables, dims) or _bags_problem(tables, indices, offsets, pooling, per_sample_weights)


def _bags_problem(
    tables: Sequence[Tensor], indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None
) -> str | None:
    if indices.dtype not in _INTEGERS or indices.dim() != 1:
        given = f"{indices.dtype} of shape {tuple(indices.shape)}"
        return f"indices is {given}; give int32 or int64 of one dimension"
    if offsets.dtype != indices.dtype or offsets.dim() != 1:
        given = f"{offsets.dtype} of shape {tuple(offsets.shape)}"
        return f"offsets is {given}; give {indices.dtype} of one dimension, as indices"
    if offsets.shape[0] < 1 or (offsets.shape[0] - 1) % len(tables):
        return f"offsets has {offsets.shape[0]} entries; {len(tables)} tables times the batch, plus 1, are needed"
    if pooling not in POOLINGS:
        return f"pooling is {pooling!r}; allowed are {', '.join(POOLINGS)}"
    if pooling == "none" and len(tables) > 1:
        return f"pooling 'none' with {len(tables)} tables; it is defined for one"
    if per_sample_weights is not None:
        if pooling != "sum":
            return f"per_sample_weights with pooling {pooling!r}; they are defined for 'sum' alone"
        if per_sample_weights.dtype != torch.float32 or per_sample_weights.shape != indices.shape:
            given = f"{per_sample_weights.dtype} of shape {tuple(per_sample_weights.shape)}"
            return f"per_sample_weights is {given}; give float32 of the shape of indices"
    devices = {t.device for t in (tables[0], indices, offsets, per_sample_weights) if t is not None}
    if len(devices) > 1:
        return f"operands lie on {', '.join(sorted(str(d) for d in devices))}; move them to one device"
    return None


def _checked(
    tables: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None,
    dims: Sequence[int] | None,
) -> list[int]:
    if reason := problem(tables, indices, offsets, pooling, per_sample_weights, dims):
        raise KernelInputError(f"embedding_bag_rows: {reason}")
    return widths(tables, dims)


@torch.library.impl(LIBRARY, "embedding_bag_rows", "CPU")
def _cpu(
    tables: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
    dims: Sequence[int] | None = None,
) -> Tensor:
    dims = _checked(tables, indices, offsets, pooling, per_sample_weights, dims)
    return cpu.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights, dims)


@torch.library.impl(LIBRARY, "embedding_bag_rows", "CUDA")
def _cuda(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
    dims: list[int] | None = None,
) -> Tensor:
    from recpress_kernels.embedding_bag_rows import cuda

    dims = _checked(tables, indices, offsets, pooling, per_sample_weights, dims)
    described = cuda.describe(tables, dims, range(len(tables)))
    if described is None:
        check_bags(tables, indices, offsets)
        return reference.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights, dims)
    return _on_gpu(described, indices, offsets, pooling, per_sample_weights)


def _on_gpu(described, indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None) -> Tensor:
    from recpress_kernels.embedding_bag_rows import cuda

    with torch.cuda.device(indices.device):
        return cuda.embedding_bag_rows(described, indices, offsets, pooling, per_sample_weights)


@torch.library.register_fake("recpress::embedding_bag_rows", lib=LIBRARY)
def _fake(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
    dims: list[int] | None = None,
) -> Tensor:
    rows = indices.shape[0] if pooling == "none" else (offsets.shape[0] - 1) // len(tables)
    return indices.new_empty(rows, sum(widths(tables, dims)), dtype=torch.float32)
