"""``torch.ops.recpress.embedding_bag_rows``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels.embedding_bag_rows import cpu, reference
from recpress_kernels.embedding_bag_rows.bounds import check_bags
from recpress_kernels.embedding_bag_rows.tables import table_problem
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.rows import TAIL_BYTES
from recpress_kernels.library import LIBRARY, direct
from recpress_kernels.support import Support

POOLINGS = ("sum", "mean")
_INTEGERS = (torch.int32, torch.int64)

LIBRARY.define(
    "embedding_bag_rows(Tensor[] tables, Tensor indices, Tensor offsets, str pooling='sum', "
    "Tensor? per_sample_weights=None) -> Tensor"
)


def embedding_bag_rows(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Look up bags of indices in T tables of int8 rows and pool each bag.

    Args:
        tables: T tensors uint8 ``[rows_t, dim_t + 4]`` in the form of formats/rows.py, at least one.
        indices: int32 or int64 ``[L]``, all bags of table 0, then all of table 1, and so on.
        offsets: dtype of indices, ``[T * B + 1]``: bag b of table t is at ``offsets[t * B + b]`` up to
            ``offsets[t * B + b + 1]``; it begins with 0, never goes down and ends with L.
        pooling: ``"sum"`` or ``"mean"``.
        per_sample_weights: float32 ``[L]``, with pooling "sum" only.

    Returns:
        float32 ``[B, sum of dim_t]``; an empty bag gives zeros. The formula stands in reference.py.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value.
        IndexBoundsError: an index outside its table, or offsets that describe no bags of these indices.
    """
    if direct(indices) and all(type(table) is Tensor for table in tables):
        return _cpu(tables, indices, offsets, pooling, per_sample_weights)
    return torch.ops.recpress.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights)


def supports(
    tables: list[Tensor], indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None
) -> Support:
    """Whether the op takes operands of these dtypes, shapes and devices, and the path that runs them."""
    if reason := problem(tables, indices, offsets, pooling, per_sample_weights):
        return Support(False, reason)
    return Support(True, cpu.path(tables) if indices.is_cpu else "plain-torch reference: no GPU kernel yet")


def problem(
    tables: list[Tensor], indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None
) -> str | None:
    """Why the op refuses operands of these dtypes, shapes and devices, or None."""
    if not tables:
        return "tables is empty; give at least one"
    for t, table in enumerate(tables):
        if reason := table_problem(t, table):
            return reason
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
    if per_sample_weights is not None:
        if pooling != "sum":
            return f"per_sample_weights with pooling {pooling!r}; they are defined for 'sum' alone"
        if per_sample_weights.dtype != torch.float32 or per_sample_weights.shape != indices.shape:
            given = f"{per_sample_weights.dtype} of shape {tuple(per_sample_weights.shape)}"
            return f"per_sample_weights is {given}; give float32 of the shape of indices"
    devices = {t.device for t in (*tables, indices, offsets, per_sample_weights) if t is not None}
    if len(devices) > 1:
        return f"operands lie on {', '.join(sorted(str(d) for d in devices))}; move them to one device"
    return None


def _checked(
    tables: list[Tensor], indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None
) -> None:
    if reason := problem(tables, indices, offsets, pooling, per_sample_weights):
        raise KernelInputError(f"embedding_bag_rows: {reason}")


@torch.library.impl(LIBRARY, "embedding_bag_rows", "CPU")
def _cpu(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    _checked(tables, indices, offsets, pooling, per_sample_weights)
    return cpu.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights)


@torch.library.impl(LIBRARY, "embedding_bag_rows", "CUDA")
def _cuda(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    _checked(tables, indices, offsets, pooling, per_sample_weights)
    check_bags(tables, indices, offsets)
    return reference.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights)


@torch.library.register_fake("recpress::embedding_bag_rows", lib=LIBRARY)
def _fake(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    batch = (offsets.shape[0] - 1) // len(tables)
    width = sum(table.shape[1] - TAIL_BYTES for table in tables)
    return indices.new_empty(batch, width, dtype=torch.float32)
