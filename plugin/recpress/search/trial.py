"""What was tried, and what came of it."""

import math
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from torch import nn

from recpress.errors import QualityGateError
from recpress.pipeline import Compressed
from recpress.report.paired import Paired
from recpress.report.tables import human_bytes

Verdict = Literal["original", "control", "kept", "missed", "not possible", "not tried"]


@dataclass(frozen=True)
class Trial:
    """One variant of a model.

    ``paired`` compares it with the original, None where there is nothing to compare; ``bytes`` are of parameters and
    buffers, ``seconds`` those of making it, without judging, and ``steps`` those of its optimiser.
    """

    name: str
    verdict: Verdict
    reason: str = ""
    paired: Paired | None = None
    bytes: int | None = None
    seconds: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Found:
    """What :func:`recpress.auto` found.

    Attributes:
        original: the model that was given, or that was trained.
        compressed: the smallest that keeps the target; None where none does.
        metric: what was judged, and ``least`` what was asked of it.
        trials: all that was tried, and what was not with its reason, in that order.
    """

    original: nn.Module
    compressed: Compressed | None
    metric: str
    least: float
    trials: tuple[Trial, ...]

    @property
    def model(self) -> nn.Module:
        """The compressed model, or the original where none keeps the target."""
        return self.original if self.compressed is None else self.compressed.model

    @property
    def refusal(self) -> str:
        """By how much each variant missed; empty where one was found."""
        if self.compressed is not None:
            return ""
        told = [_told(trial, self.least) for trial in self.trials if trial.verdict != "kept"]
        return f"no compressed model reaches {self.metric} {self.least:.5f}: {'; '.join(told)}"

    def accepted(self) -> Compressed:
        """What was found.

        Raises:
            QualityGateError: nothing, with the refusal.
        """
        if self.compressed is None:
            raise QualityGateError(self.refusal)
        return self.compressed

    def print(self) -> None:
        """The table of what was tried, and what was chosen."""
        console = Console()
        console.print(trials_table(self))
        chosen = "none: the original stays" if self.compressed is None else self.compressed.report.recipe.name
        console.print(f"chosen: {chosen}", highlight=False)


def trials_table(found: Found) -> Table:
    """One line a variant; the interval is that of the difference to the original, at 95 %."""
    columns = ("variant", found.metric, "difference", "95 % interval", "size", "of the original", "steps", "seconds")
    table = Table(*columns, "verdict", title=f"{found.metric} of at least {found.least:.5f} is asked for")
    whole = next(trial.bytes for trial in found.trials if trial.verdict == "original")
    for trial in found.trials:
        paired, interval = trial.paired, ""
        if paired is not None and trial.verdict != "original" and not math.isnan(paired.low):
            interval = f"{paired.low:+.5f} to {paired.high:+.5f}"
        table.add_row(
            trial.name,
            "" if paired is None else f"{paired.after:.5f}",
            "" if paired is None or trial.verdict == "original" else f"{paired.difference:+.5f}",
            interval,
            "" if trial.bytes is None else human_bytes(trial.bytes),
            "" if trial.bytes is None else f"{trial.bytes / max(whole, 1):.1%}",
            f"{trial.steps:,}" if trial.steps else "",
            f"{trial.seconds:.1f}",
            f"{trial.verdict}{': ' if trial.reason else ''}{trial.reason}",
        )
    return table


def _told(trial: Trial, least: float) -> str:
    if trial.paired is None:
        return f"{trial.name} {trial.verdict} ({trial.reason})"
    short = least - trial.paired.after
    how = f"{short:.5f} short" if short > 0 else "reaches it, and is not compressed"
    return f"{trial.name} {trial.paired.after:.5f}, {how}"
