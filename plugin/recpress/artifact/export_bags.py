"""Which arguments of an exported model are bags, and what its examples tell of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recpress.artifact.bounds import Bound
from recpress.artifact.manifest import BagSpec, RaggedSpec
from recpress.artifact.ragged import LENGTHS, VALUES, Bag
from recpress.errors import ExportError

_INTEGERS = {torch.int32: "int32", torch.int64: "int64"}


@dataclass(frozen=True)
class Placed:
    """A bag with the positions of its two arguments."""

    bag: Bag
    values_at: int
    bags_at: int

    @property
    def form(self) -> str:
        return "lengths" if self.bag.offsets is None else "offsets"

    def lengths(self, examples: Sequence[Tensor]) -> Tensor:
        """How many values each row of the examples has, ``[B]``."""
        given, values = examples[self.bags_at], examples[self.values_at]
        if self.form == "lengths":
            return given
        return torch.diff(given, append=given.new_full((1,), values.numel()))


def place_bags(bags: Sequence[Bag], names: Sequence[str], examples: Sequence[Tensor]) -> list[Placed]:
    """Find the arguments of ``bags`` and check their examples.

    Raises:
        ExportError: a bag names no input, an input twice, or both offsets and lengths; or its examples do not fit.
    """
    named = [name for bag in bags for name in (bag.values, bag.offsets, bag.lengths) if name is not None]
    absent = [name for name in named if name not in names]
    if absent or len(set(named)) != len(named) or len(named) != 2 * len(bags):
        raise ExportError(
            f"bags name {', '.join(map(repr, named))}; give each its values and either offsets or lengths, every one "
            f"an input of its own; there are {', '.join(map(repr, names))}"
        )
    if bags and {LENGTHS, VALUES} & set(names):
        raise ExportError(f"inputs are called {LENGTHS!r} or {VALUES!r}, as the packed bags are; choose another name")
    placed = [Placed(bag, names.index(bag.values), names.index(bag.offsets or bag.lengths)) for bag in bags]
    dtypes = {examples[at].dtype for p in placed for at in (p.values_at, p.bags_at)}
    if len(dtypes) > 1 or not dtypes <= _INTEGERS.keys():
        raise ExportError(f"examples of bags are {', '.join(map(str, dtypes))}; give all as int64, or all as int32")
    for p in placed:
        _check(p, examples)
    return placed


def _check(placed: Placed, examples: Sequence[Tensor]) -> None:
    values, lengths, bag = examples[placed.values_at], placed.lengths(examples), placed.bag
    starts = 0 if placed.form == "lengths" or not lengths.numel() else int(examples[placed.bags_at][0])
    fits = values.dim() == lengths.dim() == 1 and starts == 0 and int(lengths.sum()) == values.numel()
    if not fits or not lengths.numel() or int(lengths.min()) < 0 or int(lengths.max()) > bag.max_length:
        raise ExportError(
            f"the examples of bag {bag.values!r} are {tuple(values.shape)} values in bags of {lengths.tolist()[:10]}; "
            f"give values [N] and {placed.form} [batch] that part all of them into bags of at most {bag.max_length}"
        )


def twice(placed: Sequence[Placed], examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The examples of one row, two times."""
    shifts = {p.bags_at: examples[p.values_at].numel() for p in placed if p.form == "offsets"}
    return tuple(torch.cat([given, given + shifts.get(i, 0)]) for i, given in enumerate(examples))


def one_value_each(placed: Sequence[Placed], rows: int) -> dict[int, Tensor]:
    """Offsets and lengths, by position, of bags of one value each."""
    forms = {"offsets": torch.arange(rows), "lengths": torch.ones(rows, dtype=torch.int64)}
    return {p.bags_at: forms[p.form] for p in placed}


def ragged_spec(
    placed: Sequence[Placed], examples: Sequence[Tensor], bounds: Sequence[Mapping[int, Bound]]
) -> RaggedSpec | None:
    """What the manifest says of the bags; None without any."""
    if not placed:
        return None
    bags = []
    for p in placed:
        values, bound = examples[p.values_at], bounds[p.values_at].get(0)
        known = bound is not None and not bound.any_id
        bags.append(
            BagSpec(
                name=p.bag.values,
                form=p.form,
                max_length=p.bag.max_length,
                values_at=p.values_at,
                bags_at=p.bags_at,
                low=int(values.min()) if values.numel() else 0,
                high=int(values.max()) if values.numel() else 0,
                table_low=bound.low if known else None,
                table_high=bound.high if known else None,
            )
        )
    return RaggedSpec(dtype=_INTEGERS[examples[placed[0].values_at].dtype], bags=tuple(bags))
