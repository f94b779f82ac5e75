"""What pruning reports of each parameter."""

from dataclasses import dataclass
from typing import Literal


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
