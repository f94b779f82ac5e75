"""Features of any number of ids a row, packed: the values of all bags in one tensor, their lengths in another.

On the wire, for B rows and F bags:

* ``bag_lengths`` ``[B, F]``: how many values bag f of row b has;
* ``bag_values`` ``[B, L]``: the values, row by row and bag by bag within a row, then zeros up to B * L, where
  ``L = max(1, ceil(number of values / B))``.

Row by row, so that requests are joined by putting one behind the other. As ``[B, L]``, since a server that batches
wants the same first dimension of all inputs of a request, which may have several rows. One pair for all bags, since a
server is slow on a hundred inputs. A model takes a pair a bag, as ``nn.EmbeddingBag`` does: its values ``[N_f]``, and
either their offsets ``[B]`` or their lengths ``[B]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recpress.artifact.manifest import DTYPES, InputSpec, Manifest, RaggedSpec

LENGTHS, VALUES = "bag_lengths", "bag_values"
Rows = tuple[Tensor, ...]
"""Inputs in order; with bags, last the lengths ``[B, F]`` and the values ``[N]``, as on the wire but for the zeros."""


@dataclass(frozen=True)
class Bag:
    """Two arguments of a model that are a feature of any number of ids a row, by their input names.

    Attributes:
        values: the ids, ``[N]``.
        offsets: where each row's ids begin, ``[B]``; or None.
        lengths: how many ids each row has, ``[B]``; or None.
        max_length: how many ids a row may have at most.
    """

    values: str
    offsets: str | None = None
    lengths: str | None = None
    max_length: int = 100


def pack_bags(bags: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """What a client sends for bags in the manifest's order, each as its values ``[N]`` and its lengths ``[B]``."""
    lengths = torch.stack([torch.from_numpy(np.ascontiguousarray(each)) for _, each in bags], dim=1)
    values = torch.cat([torch.from_numpy(np.ascontiguousarray(each)) for each, _ in bags])
    packed = _transposed(values, lengths.T)
    return {LENGTHS: lengths.to(packed.dtype).numpy(), VALUES: filled(packed, len(lengths)).numpy()}


def filled(values: Tensor, rows: int) -> Tensor:
    """Packed values ``[N]`` as they travel, ``[rows, L]``."""
    out = values.new_zeros(rows * _width(values.numel(), rows))
    out[: values.numel()] = values
    return out.reshape(rows, -1)


def trimmed(lengths: Tensor, values: Tensor) -> Tensor | None:
    """The packed values ``[N]`` of what came, ``[B, L]``, for lengths that are not negative; None where L differs."""
    rows, total = lengths.shape[0], int(lengths.sum())
    return values.reshape(-1)[:total] if tuple(values.shape) == (rows, _width(total, rows)) else None


def _width(values: int, rows: int) -> int:
    return max(1, -(-values // rows))


def names(manifest: Manifest) -> list[str]:
    """The inputs of a model as clients name them, in the order of :data:`Rows`."""
    return [spec.name for spec in manifest.inputs] + ([] if manifest.ragged is None else [LENGTHS, VALUES])


def lengths_specs(manifest: Manifest) -> tuple[InputSpec, ...]:
    """The lengths as an input like others, a column a bag; nothing where there are no bags."""
    if manifest.ragged is None:
        return ()
    most = tuple(bag.max_length for bag in manifest.ragged.bags)
    none = (0,) * len(most)
    return (
        InputSpec(
            name=LENGTHS,
            dtype=manifest.ragged.dtype,
            shape=(len(most),),
            low=none,
            high=most,
            table_low=none,
            table_high=most,
        ),
    )


def problem(ragged: RaggedSpec, lengths: Tensor, values: Tensor) -> str | None:
    """What is wrong with lengths ``[B, F]`` and with the form of values as they travel, by row and bag, or None."""
    most = torch.tensor([bag.max_length for bag in ragged.bags], dtype=lengths.dtype)
    bad = (lengths < 0) | (lengths > most)
    if bool(bad.any()):
        row, f = bad.nonzero()[0].tolist()
        return (
            f"input {LENGTHS!r}, row {row}, bag {ragged.bags[f].name!r} is {int(lengths[row, f])}; allowed are 0 to "
            f"{int(most[f])}"
        )
    if values.dtype != DTYPES[ragged.dtype] or trimmed(lengths, values) is None:
        rows, total = lengths.shape[0], int(lengths.sum())
        return (
            f"input {VALUES!r} is {values.dtype} of shape {tuple(values.shape)}; the lengths of {rows} rows add up to "
            f"{total}, which travel as {ragged.dtype} of shape ({rows}, {_width(total, rows)})"
        )
    return None


def wire_rows(manifest: Manifest, rows: Mapping[str, Tensor], which: slice) -> dict[str, Tensor]:
    """Some rows by name as they travel, of rows by name whose bags are packed ``[N]``."""
    inputs = names(manifest)
    taken = dict(zip(inputs, part(manifest.ragged, tuple(rows[n] for n in inputs), which), strict=True))
    if manifest.ragged is not None:
        taken[VALUES] = filled(taken[VALUES], len(taken[LENGTHS]))
    return taken


def arguments(ragged: RaggedSpec | None, rows: Rows) -> Rows:
    """The arguments of the graph in order."""
    if ragged is None:
        return rows
    *plain, lengths, values = rows
    sizes = lengths.sum(0).tolist()
    placed = {}
    for bag, ids, counts in zip(ragged.bags, _transposed(values, lengths).split(sizes), lengths.unbind(1), strict=True):
        placed[bag.values_at] = ids
        placed[bag.bags_at] = counts.contiguous() if bag.form == "lengths" else counts.cumsum(0) - counts
    given = iter(plain)
    return tuple(placed[i] if i in placed else next(given) for i in range(len(plain) + len(placed)))


def part(ragged: RaggedSpec | None, rows: Rows, which: slice) -> Rows:
    """Some of the rows."""
    if ragged is None:
        return tuple(given[which] for given in rows)
    *plain, lengths, values = rows
    ends = torch.cat([lengths.new_zeros(1), lengths.sum(1)]).cumsum(0)
    begin, end, _ = which.indices(len(lengths))
    return (*(given[which] for given in plain), lengths[which], values[int(ends[begin]) : int(ends[end])])


def _transposed(values: Tensor, lengths: Tensor) -> Tensor:
    """Values ``[N]`` that lie row by row of their lengths ``[P, Q]``, column by column."""
    now, then = lengths.reshape(-1), lengths.T.reshape(-1)
    begins = (now.cumsum(0) - now).reshape(lengths.shape).T.reshape(-1)
    shift = torch.repeat_interleave(begins - (then.cumsum(0) - then), then.long())
    return values[shift + torch.arange(values.numel())]


def owners(lengths: Tensor) -> Tensor:
    """For each packed value, the flat index of its bag in ``[B, F]``."""
    return torch.repeat_interleave(torch.arange(lengths.numel()), lengths.reshape(-1).long())


def draw(ragged: RaggedSpec, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Made lengths and values: lengths uniform up to the bag's, row 0 without any; values uniform in each bag's range.

    The first values of a bag are the ends of its range.
    """
    dtype = DTYPES[ragged.dtype]
    most = torch.tensor([min(bag.max_length, _DRAWN) for bag in ragged.bags])
    unit = torch.rand(rows, len(ragged.bags), generator=generator, dtype=torch.float64)
    lengths = torch.floor((most + 1) * unit).long()
    lengths[0], lengths[1] = 0, most
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*map(_drawn_from, ragged.bags), strict=True))
    bag = owners(lengths) % len(ragged.bags)
    unit = torch.rand(len(bag), generator=generator, dtype=torch.float64)
    values = torch.minimum(low[bag] + torch.floor((high - low + 1)[bag] * unit), high[bag])
    for f in range(len(ragged.bags)):
        places = (bag == f).nonzero()[:2, 0]
        values[places] = torch.stack([low[f], high[f]])[: len(places)]
    return lengths.to(dtype), values.to(dtype)


_DRAWN = 20
"""How many values a made bag has at most, however many it may have."""


def _drawn_from(bag) -> tuple[float, float]:
    known = bag.table_low is not None
    return (bag.table_low, bag.table_high) if known else (bag.low, bag.high)
