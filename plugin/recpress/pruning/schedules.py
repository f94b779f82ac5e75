"""How sparse a model is at which step of its training.

A schedule fires at certain steps, counted from 0, and says the sparsity there; between them nothing changes. Sparsity
never falls: what is masked stays masked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from recpress.errors import PruningError


class Schedule(Protocol):
    """What :class:`recpress.Pruner` asks a schedule."""

    @property
    def first(self) -> int:
        """The first step at which it fires."""

    @property
    def final(self) -> float:
        """The sparsity that it ends with."""

    def latest(self, step: int) -> int | None:
        """The last step up to ``step`` at which it fires; None before the first."""

    def at(self, step: int) -> float:
        """The sparsity from ``step``, one at which it fires, on."""


@dataclass(frozen=True)
class Constant:
    """One sparsity from step ``begin`` on.

    Raises:
        PruningError: sparsity is not over 0 and under 1, or begin under 0.
    """

    sparsity: float
    begin: int = 0

    def __post_init__(self) -> None:
        _check_sparsity("sparsity", self.sparsity, zero=False)
        _check_step("begin", self.begin)

    @property
    def first(self) -> int:
        return self.begin

    @property
    def final(self) -> float:
        return self.sparsity

    def latest(self, step: int) -> int | None:
        return self.begin if step >= self.begin else None

    def at(self, step: int) -> float:
        return self.sparsity


@dataclass(frozen=True)
class Polynomial:
    """Fast at first, slower as less is left (M. Zhu and S. Gupta 2017, arXiv 1710.01878, there with power 3)::

        s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ^ power        begin <= t <= end

    It fires at begin, every ``frequency`` steps from there, and at end.

    Raises:
        PruningError: a sparsity is outside [0, 1), final under initial or 0, end not behind begin, frequency under 1,
            or power not positive.
    """

    final: float
    begin: int
    end: int
    initial: float = 0.0
    frequency: int = 100
    power: float = 3.0

    def __post_init__(self) -> None:
        _check_sparsity("final", self.final, zero=False)
        _check_sparsity("initial", self.initial, zero=True)
        _check_step("begin", self.begin)
        _check_step("end", self.end)
        if self.end <= self.begin:
            raise PruningError(f"end is {self.end} and begin {self.begin}; give an end behind begin, or Constant")
        if self.final < self.initial:
            raise PruningError(f"final {self.final} is under initial {self.initial}; sparsity never falls")
        if isinstance(self.frequency, bool) or not isinstance(self.frequency, int) or self.frequency < 1:
            raise PruningError(f"frequency is {self.frequency!r}; give a whole number of steps of at least 1")
        if not 0 < self.power < float("inf"):
            raise PruningError(f"power is {self.power}; give a positive finite number")

    @property
    def first(self) -> int:
        return self.begin

    def latest(self, step: int) -> int | None:
        if step < self.begin:
            return None
        return self.end if step >= self.end else step - (step - self.begin) % self.frequency

    def at(self, step: int) -> float:
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**self.power


@dataclass(frozen=True)
class Steps:
    """A table ``{step: sparsity}``, such as ``Steps({1000: 0.3, 10000: 0.5})``.

    Raises:
        PruningError: the table is empty, a sparsity outside [0, 1), falling, or none over 0; a step under 0.
    """

    table: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.table:
            raise PruningError("the table of steps is empty, so that it never fires; give {step: sparsity}")
        for step, sparsity in self.table.items():
            _check_step("a step of the table", step)
            _check_sparsity(f"sparsity at step {step}", sparsity, zero=True)
        ordered = dict(sorted(self.table.items()))
        values = list(ordered.values())
        if values != sorted(values):
            raise PruningError(f"sparsity falls in {ordered}; what is masked stays masked: give rising ones")
        if not values[-1]:
            raise PruningError(f"sparsity is 0 throughout {ordered}, so that nothing is ever pruned")
        object.__setattr__(self, "table", ordered)

    @property
    def first(self) -> int:
        return next(iter(self.table))

    @property
    def final(self) -> float:
        return list(self.table.values())[-1]

    def latest(self, step: int) -> int | None:
        return max((at for at in self.table if at <= step), default=None)

    def at(self, step: int) -> float:
        return self.table[step]


def _check_sparsity(name: str, value: float, *, zero: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1 or (value == 0 and not zero):
        least = "at least 0" if zero else "over 0"
        raise PruningError(f"{name} is {value!r}; give a share of {least} and under 1")


def _check_step(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PruningError(f"{name} is {value!r}; give a whole number of at least 0")
