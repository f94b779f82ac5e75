"""What pruning reports of each parameter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class PruneRow:
    """What became of one parameter.

    ``before`` and ``after`` count its elements, ``zeros`` those of ``after`` that are zero; ``reason`` is what decided,
    or why it is as it was. ``threshold`` is the score that had to be exceeded, where there was one.
    """

    name: str
    status: Literal["pruned", "kept"]
    reason: str
    before: int
    after: int
    zeros: int
    threshold: float | None = None


def accounted(
    model: nn.Module, before: Mapping[str, int], reasons: Mapping[str, str], otherwise: str
) -> Iterator[PruneRow]:
    """A row for each parameter of ``model``, which had ``before`` elements; ``otherwise`` is the reason of others."""
    for name, parameter in model.named_parameters():
        after, zeros = parameter.numel(), int((parameter == 0).sum())
        status = "pruned" if after < before[name] else "kept"
        yield PruneRow(name, status, reasons.get(name, otherwise), before[name], after, zeros)
