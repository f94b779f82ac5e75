"""Numbers of parameters that stand and fall together, as groups.

A slot is one place along one axis of a parameter or buffer: column 3 of a table, row 7 of a linear layer's weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """Places ``[n]``, int64, along ``axis`` of ``tensor``, the parameter or buffer itself."""

    tensor: Tensor
    axis: int
    places: Tensor


class Coordinates:
    """Groups of slots. Labels are int64: a slot's number from 1, 0 where a number belongs to no slot, and -1 where it
    is one of as many equal ones as whatever it meets has.
    """

    def __init__(self) -> None:
        self._parent = [0]
        self._why: dict[int, str] = {}
        self._first: dict[tuple[int, int], int] = {}
        self._axes: list[tuple[int, Tensor, int]] = []

    def slots(self, tensor: Tensor, axis: int) -> Tensor:
        """The labels ``[size]`` of all places along ``axis`` of ``tensor``; the same whenever it is asked."""
        key, size = (id(tensor), axis), tensor.shape[axis]
        if key not in self._first:
            self._first[key] = len(self._parent)
            self._axes.append((len(self._parent), tensor, axis))
            self._parent.extend(range(len(self._parent), len(self._parent) + size))
        return torch.arange(self._first[key], self._first[key] + size)

    def roots(self, labels: Tensor) -> Tensor:
        """One label of each group for all of its labels."""
        unique, place = labels.unique(return_inverse=True)
        return torch.tensor([self._find(label) for label in unique.tolist()], dtype=torch.int64)[place]

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Those of ``one`` with those of ``other``, broadcast, wherever both are slots."""
        count = len(self._parent)
        one, other = torch.broadcast_tensors(one, other)
        pairs = (one * count + other)[(one > 0) & (other > 0)].unique()
        for pair in pairs.tolist():
            a, b = (self._find(label) for label in divmod(pair, count))
            if a != b:
                self._parent[b] = a
                if b in self._why:
                    self._why.setdefault(a, self._why[b])

    def pin(self, labels: Tensor, why: str) -> None:
        """None of these can go; ``why`` says it of "it"."""
        for label in labels[labels > 0].unique().tolist():
            self._why.setdefault(self._find(label), why)

    def why(self, label: int) -> str | None:
        """Why the group of ``label`` cannot go, or None where it can."""
        return self._why.get(self._find(label))

    def groups(self) -> dict[int, list[Slots]]:
        """The slots of each group by its root."""
        found: dict[int, list[Slots]] = {}
        for first, tensor, axis in self._axes:
            roots = self.roots(torch.arange(first, first + tensor.shape[axis]))
            for root in roots.unique().tolist():
                found.setdefault(root, []).append(Slots(tensor, axis, (roots == root).nonzero()[:, 0]))
        return found

    def _find(self, label: int) -> int:
        if label <= 0:
            return label
        while self._parent[label] != label:
            self._parent[label] = label = self._parent[self._parent[label]]
        return label


def joined(groups: Iterable[list[Slots]]) -> list[Slots]:
    """The slots of several groups, those of one axis of one tensor together."""
    places: dict[tuple[int, int], list[Slots]] = {}
    for group in groups:
        for slots in group:
            places.setdefault((id(slots.tensor), slots.axis), []).append(slots)
    return [
        Slots(same[0].tensor, same[0].axis, torch.cat([slots.places for slots in same]).unique())
        for same in places.values()
    ]
