"""embedding_bag_rows on a GPU: describe the tables, allocate, launch what launch.py chose, and ask for bad indices.

An index outside its table is an error here as on a CPU, and that has to be waited for: one copy of up to a kilobyte
from the device. While a CUDA graph is captured nothing can wait: what such an index goes into is NaN, and no more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from recpress_kernels.embedding_bag_rows import kernel
from recpress_kernels.embedding_bag_rows.bounds import Maps, check_bags
from recpress_kernels.embedding_bag_rows.launch import Config, Kind, choose_bags, choose_rows, kind_of, row_align
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.rows import bits_of

_MOST = (1 << 31) - 1


@dataclass(frozen=True)
class Described:
    """Tables, and the maps of their ids, as the kernels take them.

    ``fields`` is int64 ``[T, 11]`` on their device, in the order of kernel.py; ``width`` the sum of their dims.
    """

    tables: Sequence[Tensor]
    maps: Maps | None
    fields: Tensor
    kind: Kind
    width: int


def problem(tables: Sequence[Tensor]) -> str:
    """What keeps the kernels from reading these tables, or nothing."""
    for t, table in enumerate(tables):
        if table.stride(1) != 1:
            return f"the bytes of a row of table {t} do not lie side by side; copy the table"
        if max(table.shape[0], table.stride(0)) > _MOST:
            return f"table {t} has {table.shape[0]} rows, {table.stride(0)} bytes apart; the kernels count to {_MOST}"
    return ""


def describe(
    tables: Sequence[Tensor], dims: Sequence[int], columns: Sequence[int], maps: Maps | None = None
) -> Described | None:
    """``tables`` for the kernels, or None where :func:`problem` has a word on them.

    Raises:
        KernelInputError: a CUDA graph is being captured, into which no description can be copied.
    """
    if problem(tables):
        return None
    if _capturing(tables[0]):
        raise KernelInputError(
            "embedding_bag_rows: a list of tables is described on the device at each call, which a CUDA graph cannot "
            "capture; make RowTables of them before"
        )
    fields, aligns, begin = [], [], 0
    for table, dim, column, id_map in zip(tables, dims, columns, maps or [None] * len(tables), strict=True):
        (rows, width), stride = table.shape, table.stride(0)
        mapped = (rows, -1, 0) if id_map is None else (id_map.rows, id_map.oov_row, _address(id_map.remap))
        fields.append((table.data_ptr(), rows, stride, width, dim, bits_of(width, dim), column, begin, *mapped))
        begin += dim
        aligns.append(row_align(table.data_ptr(), stride, width, _reach(table)))
    kind = kind_of([row[5] for row in fields], aligns, dims, mapped=maps is not None)
    # What comes from ordinary memory is copied aside before this returns, and nothing waits.
    on_device = torch.tensor(fields, dtype=torch.int64).to(tables[0].device, non_blocking=True)
    return Described(tables, maps, on_device, kind, begin)


def embedding_bag_rows(
    described: Described,
    indices: Tensor,
    offsets: Tensor,
    pooling: str,
    per_sample_weights: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """The op on checked operands; ``config`` stands instead of what launch.py would choose.

    Raises:
        IndexBoundsError: an index outside its table, or offsets that describe no bags of these indices.
    """
    count = len(described.tables)
    batch = (offsets.shape[0] - 1) // count
    indices, offsets = indices.contiguous(), offsets.contiguous()

    def recheck() -> None:
        check_bags(described.tables, indices, offsets, described.maps)

    if pooling == "none":
        return look_up_rows(described, indices[:, None], None, recheck, offsets=offsets, config=config)
    out = torch.empty(batch, described.width, device=indices.device)
    if batch == 0:
        recheck()
        return out
    kind = described.kind
    config = config or choose_bags(kind)
    bad = torch.zeros(config.block_d, dtype=torch.int32, device=indices.device)
    kernel.bags_kernel[(triton.cdiv(batch, config.block_b), count, triton.cdiv(kind.dim, config.block_d))](
        described.fields,
        indices,
        offsets,
        None if per_sample_weights is None else per_sample_weights.contiguous(),
        bad,
        out,
        batch,
        indices.shape[0],
        described.width,
        MEAN=pooling == "mean",
        UNROLL=config.unroll,
        **_options(kind, config, kind.out_align),
    )
    _ask(bad, recheck)
    return out


def look_up_rows(
    described: Described,
    indices: Tensor,
    front: Tensor | None,
    recheck: Callable[[], None],
    *,
    offsets: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """One row of each table for each row of ``indices`` ``[B, C]``, behind ``front`` ``[B, F]``, both of any strides.

    ``recheck`` raises where an index is outside its table, and names it; it is called where NaN was written, or where
    ``offsets`` are given and describe no bags of B indices.
    """
    batch, count = indices.shape[0], len(described.tables)
    front = front if front is None or front.stride(1) == 1 else front.contiguous()
    front_width = 0 if front is None else front.shape[1]
    out = torch.empty(batch, front_width + described.width, device=indices.device)
    kind = described.kind
    config = config or choose_rows(kind, batch)
    bad = torch.zeros(config.block_d, dtype=torch.int32, device=indices.device)
    if offsets is not None:
        ends = offsets.new_tensor([0]), offsets.new_tensor([batch])
        steps = torch.diff(offsets, prepend=ends[0], append=ends[1])
        bad[0] = (steps < 0).any() | (steps[0] != 0) | (steps[-1] != 0)
    if batch == 0:
        _ask(bad, recheck)
        return out
    programs = count + (front is not None)
    kernel.rows_kernel[(triton.cdiv(batch, config.block_b), programs, triton.cdiv(kind.dim, config.block_d))](
        described.fields,
        indices,
        front,
        bad,
        out,
        batch,
        front_width,
        out.shape[1],
        *indices.stride(),
        0 if front is None else front.stride(0),
        **_options(kind, config, math.gcd(kind.out_align, front_width)),
    )
    _ask(bad, recheck)
    return out


def _options(kind: Kind, config: Config, out_align: int) -> dict[str, object]:
    """Products and sums are not fused, so that they have the same bits on every device."""
    blocks = {"BLOCK_B": config.block_b, "BLOCK_D": config.block_d, "num_warps": config.num_warps}
    tables = {"BITS": kind.bits, "ALIGN": kind.align, "OUT_ALIGN": out_align, "MAPPED": kind.mapped}
    return {**tables, **blocks, "enable_fp_fusion": False}


def _ask(bad: Tensor, recheck: Callable[[], None]) -> None:
    """Wait for ``bad``, unless a CUDA graph is being captured; where it is raised, see whether an index is to blame."""
    if not _capturing(bad) and bad.cpu().any():
        recheck()


def _capturing(on: Tensor) -> bool:
    return on.is_cuda and torch.cuda.is_current_stream_capturing()


def _address(remap: Tensor | None) -> int:
    return 0 if remap is None else remap.data_ptr()


def _reach(table: Tensor) -> int:
    """How many bytes of storage there are from the beginning of the last row on."""
    last = table.storage_offset() + (max(table.shape[0], 1) - 1) * table.stride(0)
    return table.untyped_storage().nbytes() - last
