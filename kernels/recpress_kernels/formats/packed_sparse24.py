"""A 2:4 layer in the packed buffer of packed.py: what the native kernels gather activations by.

Of a panel of 16 columns each unit of 16 k (8 kept values a column) is 192 bytes, 0.75 bytes a weight::

    values   int8  [2, 16, 4]   those kept of the first 8 k, then of the second, 4 a column
    places   uint8 [16, 4]      bits 0 to 2: which of the first 8 k value [0, c, j] meets; 4 to 6: which of the
                                second value [1, c, j] meets

The byte of places is a control of ``vpshufb`` as it lies, and again shifted by 4: that instruction reads bits 0 to 3
and bit 7 alone, so nothing is masked.

The four values of a column and 8 k may lie in any order, since each brings its place. The kernels add the products of
values 0 and 1 in 16 bits, and those of 2 and 3, and where the weights allow it those of both halves of the unit: the
same limit of 258 as for dense weights, in packed.py. Packing takes, of the 18 ways in which 8 values part into two
such sums, that of the smallest sums. Kept values are the large ones; even so 95 to 99.5 % of the units of normally
distributed weights of 8 bits and 256 to 1024 inputs reach depth 2, where 40 to 77 % would in their canonical order.
"""

import torch
from torch import Tensor

from recpress_kernels.formats.sparse24 import Sparse24, pack_nibbles, unpack_nibbles

UNIT, PANEL = 16, 16
UNIT_BYTES = 12 * PANEL
_SPLITS = torch.tensor([[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]])  # of 4 values into two products
_SWAPPED = torch.cat([_SPLITS, _SPLITS[:, [2, 3, 0, 1]]])
_UNITS_AT_ONCE = 2**14  # which bounds the memory that choosing the order takes


def pack(sparse: Sparse24) -> Tensor:
    """int8 ``sparse`` ``[N, K]`` as uint8 ``[columns / 16, k_padded / 16, 192]``, columns and k padded with zeros."""
    n, units = sparse.values.shape[0], -(-sparse.in_features // UNIT)
    columns = -(-n // PANEL) * PANEL
    groups = sparse.values.shape[1] // 2
    values = torch.zeros(columns, units * 4, 2, dtype=torch.int8)
    values[:n, :groups] = sparse.values.view(n, groups, 2)
    nibbles = torch.full((columns, units * 4), 0 | 1 << 2, dtype=torch.uint8)
    nibbles[:n, :groups] = unpack_nibbles(sparse.indices, groups)
    places = torch.stack([nibbles & 3, nibbles >> 2], dim=2)
    places[:, 1::2] += 4  # the second group of 8 k
    values, places = values.view(columns, units, 2, 4), places.view(columns, units, 2, 4)
    order = torch.cat([_order(part) for part in values.split(-(-_UNITS_AT_ONCE // units))])
    values, places = values.gather(3, order), places.gather(3, order)
    both = places[:, :, 0] | places[:, :, 1] << 4
    unit = torch.cat([values.view(torch.uint8), both[:, :, None]], dim=2)  # [columns, units, 3, 4]
    return unit.view(-1, PANEL, units, 3, 4).permute(0, 2, 3, 1, 4).reshape(-1, units, UNIT_BYTES)


def unpack(panels: Tensor, n: int, k: int) -> Sparse24 | None:
    """The exact inverse of :func:`pack`; None where a column does not keep two places of each four."""
    units = panels.shape[1]
    unit = panels.view(-1, units, 3, PANEL, 4).permute(0, 3, 1, 2, 4).reshape(-1, units, 3, 4)[:n]
    places = torch.stack([unit[:, :, 2] & 15, unit[:, :, 2] >> 4], dim=2)
    places, order = places.sort(dim=3)
    groups = -(-k // 4)
    values = unit[:, :, :2].gather(3, order).reshape(n, -1)[:, : 2 * groups].contiguous()
    pairs = places.view(n, units, 2, 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    group = torch.tensor([0, 1], dtype=torch.uint8)
    if not ((first >> 2 == group) & (second >> 2 == group) & (first < second)).all():
        return None
    nibbles = (first & 3 | (second & 3) << 2).view(n, -1)[:, :groups]
    return Sparse24(values.view(torch.int8), pack_nibbles(nibbles), k)


def wide_units(panels: Tensor, limit: int) -> Tensor:
    """Which units' two products must be widened one by one: bool ``[columns / 16, units]``."""
    values = panels[..., : 2 * 4 * PANEL].view(torch.int8).view(*panels.shape[:2], 2, PANEL, 2, 2).to(torch.int16)
    wide = torch.zeros(panels.shape[:2], dtype=torch.bool)
    for sign in (1, -1):
        sums = (values * sign).clamp_(min=0).sum(dim=(2, 5))
        wide |= sums.flatten(2).amax(dim=2) > limit
    return wide


def _order(values: Tensor) -> Tensor:
    """For int8 ``[rows, units, 2, 4]`` the order of each four that makes the larger of the 16-bit sums smallest."""
    worst = None
    for sign in (1, -1):
        part = (values.to(torch.int16) * sign).clamp_(min=0)
        first = part[:, :, 0][..., _SPLITS].unflatten(3, (2, 2)).sum(dim=4, dtype=torch.int16)  # [rows, units, 3, 2]
        second = part[:, :, 1][..., _SWAPPED].unflatten(3, (2, 2)).sum(dim=4, dtype=torch.int16)  # [rows, units, 6, 2]
        sums = (first[:, :, :, None] + second[:, :, None]).amax(dim=4)
        worst = sums if worst is None else torch.maximum(worst, sums)
    best = worst.flatten(2).argmin(dim=2)
    return torch.stack([_SPLITS[best // len(_SWAPPED)], _SWAPPED[best % len(_SWAPPED)]], dim=2)
