"""Tables of quantised rows and bags in them, for the kernels of a GPU wherever they run, and the reference's answer."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recpress_kernels.embedding_bag_rows import reference
from recpress_kernels.formats.rows import quantize_rows_int4, quantize_rows_int8
from recpress_kernels.map_ids.op import IdMap
from recpress_kernels.map_ids.reference import map_ids

ONE_TABLE = (
    (9, 1, 8),
    (5, 16, 8),
    (30, 64, 8),
    (7, 17, 8),
    (9, 60, 8),
    (9, 1, 4),
    (30, 64, 4),
    (7, 25, 4),
    (9, 300, 8),
)
"""Rows, dim and bits: rows of 4-byte and of no alignment, of 16 bytes (60 values), and wider than one program."""
EQUAL = ((30, 64, 8), (4, 64, 8), (1, 64, 8))
UNEQUAL = ((30, 64, 8), (9, 12, 8), (1, 128, 8))
MIXED = ((30, 64, 4), (9, 12, 8), (1, 7, 4), (5, 64, 8))


@dataclass(frozen=True)
class Bags:
    """What embedding_bag_rows takes, but for the pooling."""

    tables: list[Tensor]
    indices: Tensor
    offsets: Tensor
    weights: Tensor
    dims: list[int]


def table(rows: int, dim: int, bits: int, seed: int = 0) -> Tensor:
    """Quantised rows whose scales lie orders of magnitude apart."""
    g = torch.Generator().manual_seed(seed + 1000 * rows + dim)
    floats = torch.randn(rows, dim, generator=g) * 10 ** torch.linspace(-6, 3, rows)[:, None]
    return (quantize_rows_int8 if bits == 8 else quantize_rows_int4)(floats)


def padded(rows: Tensor, multiple: int = 16) -> Tensor:
    """``rows`` as a view of rows of a multiple of 16 bytes, poison between them."""
    width = rows.shape[1]
    wide = torch.full((len(rows), -(-width // multiple) * multiple), 0xCB, dtype=torch.uint8)
    wide[:, :width] = rows
    return wide[:, :width]


def bags(shapes, batch: int, longest: int, dtype: torch.dtype = torch.int64, seed: int = 0) -> Bags:
    """Bags of 0 to ``longest`` indices in tables of ``shapes``; the last of each table is empty."""
    g = torch.Generator().manual_seed(seed)
    tables = [table(*shape, seed=t) for t, shape in enumerate(shapes)]
    lengths = torch.randint(0, longest + 1, (len(tables), batch), generator=g)
    lengths[:, -1:] = 0
    picked = [torch.randint(0, len(t), (int(n),), generator=g) for t, n in zip(tables, lengths.sum(1), strict=True)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
    indices = torch.cat(picked)
    weights = torch.randn(indices.numel(), generator=g)
    return Bags(tables, indices.to(dtype), offsets.to(dtype), weights, [dim for _, dim, _ in shapes])


def mapped_bags(batch: int) -> tuple[Bags, list[IdMap | None], Tensor]:
    """Bags of rows, the maps of the ids that lead to them, and those ids: a table for each kind of map."""
    g = torch.Generator().manual_seed(batch)
    shapes = ((30, 64, 8), (5, 12, 4), (9, 64, 8), (12, 7, 8))
    remap = torch.randint(0, 9, (200,), generator=g, dtype=torch.int32)
    maps = [IdMap(30, 4), None, IdMap(200, 199, remap), IdMap(12, -1, torch.arange(12).flip(0).int())]
    b = bags(shapes, batch, 4)
    bounds = b.offsets[::batch].tolist()
    lows, highs = (-(2**62), 0, -500, 0), (2**62, 5, 500, 12)
    ids = [
        torch.randint(low, high, (end - begin,), generator=g)
        for low, high, begin, end in zip(lows, highs, bounds[:-1], bounds[1:], strict=True)
    ]
    ids[0][::2] = ids[0][::2] % 30
    rows = [i if m is None else map_ids(i, m.rows, m.oov_row, m.remap) for m, i in zip(maps, ids, strict=True)]
    return replace(b, indices=torch.cat(rows)), maps, torch.cat(ids)


def expected(b: Bags, pooling: str = "sum", weights: Tensor | None = None) -> Tensor:
    return reference.embedding_bag_rows(b.tables, b.indices, b.offsets, pooling, weights, b.dims)


def same(given: Tensor, wanted: Tensor) -> None:
    """Equal in every bit, the sign of zero too; NaN equals NaN."""
    assert given.dtype == wanted.dtype == torch.float32 and given.shape == wanted.shape
    alike = (given.view(torch.int32) == wanted.view(torch.int32)) | (given.isnan() & wanted.isnan())
    assert alike.all(), f"{int((~alike).sum())} of {alike.numel()} values differ"
