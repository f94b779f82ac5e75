"""Ids as they come to rows of a table as it is stored, in plain torch: the truth for every device.

Of a table of ``rows`` rows::

    row[i] = id[i]          where 0 <= id[i] < rows
             oov_row        elsewhere (out of vocabulary)
    out[i] = row[i], or remap[row[i]] where there is a remap

What lies outside is found on the values as they are: no id of 64 bits is taken for another by being cut to 32.
"""

import torch
from torch import Tensor


def map_ids(ids: Tensor, rows: int, oov_row: int = -1, remap: Tensor | None = None) -> Tensor:
    """The op, by the formula on top of this file, on ids that are inside where ``oov_row`` is -1."""
    mapped = torch.where(outside(ids, rows), oov_row, ids).contiguous()
    return mapped if remap is None else remap[mapped.long()].to(ids.dtype)


def outside(ids: Tensor, rows: int) -> Tensor:
    """Which ids are no row of the table, bool of their shape."""
    last = min(rows - 1, torch.iinfo(ids.dtype).max)  # no number that the dtype cannot hold is compared with
    return (ids < 0) | (ids > last)
