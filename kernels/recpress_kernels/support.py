"""Whether an op can run on given operands, and why not: stated once per op, asked by everyone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """The answer of an op's ``supports``: ``ok``, and in ``reason`` why not, or which path runs."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok
