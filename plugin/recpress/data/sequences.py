"""Sequences of items by user, split by leaving the last two out, and the text files that hold them.

The text is that of SASRec's authors: a line ``user item`` for each event, users and items from 1, the events of a user
in the order of time. Amazon's Video Games in that form is ``Video.txt`` of their repository. Gzip is read too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recpress.data.files import find, read_lines
from recpress.errors import DataError

NAMES = ("Video.txt", "sasrec_Video.txt")
NEGATIVES = 100
MIN_EVENTS = 3  # one to learn from, one to validate on, one to test


@dataclass(frozen=True, eq=False)
class Sequences:
    """``events[u]`` int64 ``[n]``: the items of user ``u`` in time order, items from 1 to ``num_items``."""

    events: tuple[np.ndarray, ...]
    num_items: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """Users to rank for: their histories and candidates.

    ``histories`` int64 ``[U, length]``, the last items, zeros before the first; ``candidates`` int64
    ``[U, 1 + negatives]``, the item that came next in column 0.
    """

    histories: Tensor
    candidates: Tensor

    def __len__(self) -> int:
        return len(self.histories)


def load(folder: Path) -> Sequences:
    """The first of :data:`NAMES` in ``folder``, as text or gzip.

    Raises:
        DataError: none is there, or a line is not two whole numbers of at least 1.
    """
    path = find(folder, NAMES)
    try:
        pairs = np.array([line.split() for line in read_lines(path)], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{path}: {error}; each line must be a user and an item, whole numbers") from None
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.min() < 1:
        raise DataError(f"{path}: each line must be a user and an item, whole numbers of at least 1")
    order = np.argsort(pairs[:, 0], kind="stable")
    users, items = pairs[order, 0], pairs[order, 1]
    events = np.split(items, np.flatnonzero(np.diff(users)) + 1)
    return Sequences(tuple(events), int(items.max()))


def histories(events: Sequence[np.ndarray], length: int) -> Tensor:
    """The last ``length`` items of each, int64 ``[len(events), length]``, zeros before the first."""
    padded = np.zeros((len(events), length), dtype=np.int64)
    for row, items in zip(padded, events, strict=True):
        kept = items[-length:]
        row[length - len(kept) :] = kept
    return torch.from_numpy(padded)


def leave_out(data: Sequences, *, length: int, last: int, seed: int) -> Ranking:
    """For each user of at least 3 events, what came before the event ``last`` from the end, to rank that event.

    Its rivals are :data:`NEGATIVES` items drawn evenly, without repetition, among those that the user has none of.

    Args:
        length: items of a history.
        last: 1 to test, 2 to validate.

    Raises:
        DataError: no user has 3 events, or a user lacks that many other items.
    """
    users = [items for items in data.events if len(items) >= MIN_EVENTS]
    if not users:
        raise DataError(f"no user has the {MIN_EVENTS} events that leaving the last two out takes")
    generator = np.random.default_rng(seed)
    candidates = np.stack([np.append(items[-last], _others(items, data.num_items, generator)) for items in users])
    return Ranking(histories([items[:-last] for items in users], length), torch.from_numpy(candidates))


def _others(items: np.ndarray, num_items: int, generator: np.random.Generator) -> np.ndarray:
    """NEGATIVES different items that are none of ``items``."""
    if num_items - len(set(items.tolist())) < NEGATIVES:
        raise DataError(f"a user has all but fewer than {NEGATIVES} of the {num_items} items; ranking needs more")
    chosen = dict.fromkeys(items.tolist(), False)
    count = 0
    while count < NEGATIVES:
        for item in generator.integers(1, num_items + 1, NEGATIVES).tolist():
            if item not in chosen and count < NEGATIVES:
                chosen[item] = True
                count += 1
    return np.array([item for item, negative in chosen.items() if negative], dtype=np.int64)
