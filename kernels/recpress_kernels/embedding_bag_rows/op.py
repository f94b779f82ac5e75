"""``torch.ops.recpress.embedding_bag_rows``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels.embedding_bag_rows import cpu, reference
from recpress_kernels.errors import IndexBoundsError, KernelInputError
from recpress_kernels.formats.rows import TAIL_BYTES
from recpress_kernels.library import LIBRARY
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
    return torch.ops.recpress.embedding_bag_rows(tables, indices, offsets, pooling, per_sample_weights)


def supports(
    tables: list[Tensor], indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None
) -> Support:
    """Whether the op takes operands of these dtypes, shapes and devices, and the path that runs them."""
    if not tables:
        return Support(False, "tables is empty; give at least one")
    for t, table in enumerate(tables):
        if table.dtype != torch.uint8 or table.dim() != 2 or table.shape[1] <= TAIL_BYTES:
            given = f"{table.dtype} of shape {tuple(table.shape)}"
            return Support(False, f"table {t} is {given}; give uint8 [rows, dim + {TAIL_BYTES}]")
    if indices.dtype not in _INTEGERS or indices.dim() != 1:
        given = f"{indices.dtype} of shape {tuple(indices.shape)}"
        return Support(False, f"indices is {given}; give int32 or int64 of one dimension")
    if offsets.dtype != indices.dtype or offsets.dim() != 1:
        given = f"{offsets.dtype} of shape {tuple(offsets.shape)}"
        return Support(False, f"offsets is {given}; give {indices.dtype} of one dimension, as indices")
    if offsets.shape[0] < 1 or (offsets.shape[0] - 1) % len(tables):
        return Support(
            False, f"offsets has {offsets.shape[0]} entries; {len(tables)} tables times the batch, plus 1, are needed"
        )
    if pooling not in POOLINGS:
        return Support(False, f"pooling is {pooling!r}; allowed are {', '.join(POOLINGS)}")
    if per_sample_weights is not None:
        if pooling != "sum":
            return Support(False, f"per_sample_weights with pooling {pooling!r}; they are defined for 'sum' alone")
        if per_sample_weights.dtype != torch.float32 or per_sample_weights.shape != indices.shape:
            given = f"{per_sample_weights.dtype} of shape {tuple(per_sample_weights.shape)}"
            return Support(False, f"per_sample_weights is {given}; give float32 of the shape of indices")
    devices = {t.device for t in (*tables, indices, offsets, per_sample_weights) if t is not None}
    if len(devices) > 1:
        named = ", ".join(sorted(str(d) for d in devices))
        return Support(False, f"operands lie on {named}; move them to one device")
    return Support(True, "torch look-ups" if indices.is_cpu else "plain-torch reference: no GPU kernel yet")


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


def _checked(
    tables: list[Tensor], indices: Tensor, offsets: Tensor, pooling: str, per_sample_weights: Tensor | None
) -> None:
    support = supports(tables, indices, offsets, pooling, per_sample_weights)
    if not support:
        raise KernelInputError(f"embedding_bag_rows: {support.reason}")


@torch.library.impl(LIBRARY, "embedding_bag_rows", "CPU")
def _cpu(
    tables: list[Tensor],
    indices: Tensor,
    offsets: Tensor,
    pooling: str = "sum",
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    _checked(tables, indices, offsets, pooling, per_sample_weights)
    check_bags(tables, indices, offsets)
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
