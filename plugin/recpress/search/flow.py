"""One run of the automatic flow: what it tries, in which order, and what it has spent."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from recpress.errors import CalibrationError, PruningError, RecipeError, TrainingError, UnsupportedLayerError
from recpress.finetuning import Finetuned, finetune
from recpress.pipeline import Compressed, Report, compress
from recpress.pruning.oneshot import evaluating
from recpress.quantize.capture import Inputs
from recpress.recipe import Recipe
from recpress.report.paired import Paired
from recpress.rewrite import before_pruning
from recpress.search.judge import Judge, Target, compared
from recpress.search.steps_back import step_back
from recpress.search.trial import Trial
from recpress.tables import Counts
from recpress.training import Batch, Loss, Run

STEPS_BACK = 3
"""Gentler recipes that are tried of each candidate."""


@dataclass(frozen=True)
class Material:
    """What variants are made from: batches, calibration inputs, counts of ids, and how to train."""

    train: Iterable[Batch] | None
    valid: Iterable[Batch] | None
    calibration: list[Inputs] | None
    counts: Counts | None
    loss: str | Loss | None
    epochs: int
    lr: float
    seed: int

    def steps(self) -> int:
        """Of the optimiser in one training, at most."""
        return self.epochs * (len(self.train) if hasattr(self.train, "__len__") else sum(1 for _ in self.train))


@dataclass
class Budget:
    """Steps of optimisers and seconds that may be spent, None where any number may, and those that were."""

    steps: int | None
    seconds: float | None
    spent_steps: int = 0
    spent_seconds: float = 0.0

    def refusal(self, steps: int) -> str:
        """Why nothing that takes ``steps`` may begin; empty where it may."""
        if self.seconds is not None and self.spent_seconds >= self.seconds:
            return f"{self.spent_seconds:.1f} of {self.seconds} seconds are spent"
        if self.steps is not None and self.spent_steps + steps > self.steps:
            return f"it may take {steps:,} steps, and {self.spent_steps:,} of {self.steps:,} are spent"
        return ""


@dataclass
class Flow:
    """Tries candidates, keeps a :class:`Trial` of each variant, and the smallest that reaches the target.

    ``least`` is what was asked, and ``met`` whether the original reaches it.
    """

    original: nn.Module
    judge: Judge
    target: Target
    material: Material
    budget: Budget
    trials: list[Trial] = field(default_factory=list)
    best: Compressed | None = None

    def __post_init__(self) -> None:
        self._before = self._figures(self.original)
        itself = compared(self.judge, self._before, self._before)
        self.least = self.target.least(itself.before)
        self.met = itself.before >= self.least
        self._loss = self.material.loss or ("distill" if self.met else "labels")
        self._control = True
        self._pruned: dict[str, tuple[Compressed | None, Trial]] = {}
        reason = "reaches it" if self.met else f"falls {self.least - itself.before:.5f} short"
        taken = self.budget.spent_seconds
        self.trials.append(Trial("original", "original", reason, itself, _bytes(self.original), taken))

    def candidate(self, recipe: Recipe) -> None:
        """Prune and fine-tune, if ``recipe`` prunes; what reaches the target, or else the original, is quantised."""
        if recipe.prune is None:
            self._quantised(self.original, recipe, None)
            return
        spec = recipe.prune
        key = spec.model_dump_json()
        if key not in self._pruned:
            alone = Recipe(name=f"{spec.pattern} by {spec.by}", linear="keep", embedding="keep", prune=spec)
            made, kept = self._trained(f"{alone.name}, fine-tuned", self.original, alone, None)
            self._pruned[key] = (made if kept else None, self.trials[-1])
        (pruned, before), rest = self._pruned[key], Recipe(**{**recipe.model_dump(), "prune": None})
        if pruned is None:
            self.trials.append(Trial(recipe.name, "not tried", f"{before.name}: {before.verdict}"))
        elif (rest.linear, rest.embedding) != ("keep", "keep") or rest.overrides or rest.oov or rest.prune_rows:
            self._quantised(pruned.model, rest, pruned.report)

    def _quantised(self, source: nn.Module, recipe: Recipe, pruned: Report | None) -> None:
        """Quantise ``source``; step back while that falls short, and then train it quantised."""
        asked = recipe
        for _ in range(1 + STEPS_BACK):
            made, kept = self._try(recipe.name, lambda now=recipe: self._compress(source, now), pruned)
            if made is None or kept:
                return
            recipe = step_back(recipe, made.report.rows)
            if recipe is None:
                break
        self._trained(f"{asked.name}, trained", source, asked, pruned)

    def _compress(self, source: nn.Module, recipe: Recipe) -> Compressed:
        return compress(source, recipe, calibration=self.material.calibration, counts=self.material.counts)

    def _trained(
        self, name: str, source: nn.Module, recipe: Recipe, pruned: Report | None
    ) -> tuple[Compressed | None, bool]:
        """Fine-tune ``source`` by ``recipe``, the first time with a control."""
        given, control = self.material, self._control
        if given.train is None:
            self.trials.append(Trial(name, "not tried", "it is trained, for which train and valid are not given"))
            return None, False
        teacher = None if source is self.original or self._loss == "labels" else self.original
        taught = {"loss": self._loss, "teacher": teacher, "control": control, "progress": False}
        options = {name: getattr(given, name) for name in ("train", "valid", "calibration", "counts")}
        options |= {name: getattr(given, name) for name in ("epochs", "lr", "seed")}
        make = lambda: finetune(source, recipe, **options, **taught)  # noqa: E731
        return self._try(name, make, pruned, given.steps() * (2 if control else 1))

    def _try(
        self, name: str, make: Callable[[], Compressed], pruned: Report | None, steps: int = 0
    ) -> tuple[Compressed | None, bool]:
        """Make a variant within the budget and judge it; None where it was not made, and whether it is good enough."""
        if reason := self.budget.refusal(steps):
            self.trials.append(Trial(name, "not tried", reason))
            return None, False
        start = time.perf_counter()
        try:
            made = make()
        except (CalibrationError, PruningError, RecipeError, TrainingError, UnsupportedLayerError) as error:
            self.budget.spent_seconds += time.perf_counter() - start
            self.trials.append(Trial(name, "not possible", str(error), seconds=time.perf_counter() - start))
            return None, False
        taken = time.perf_counter() - start
        self.budget.spent_seconds += taken
        training = made.report.training
        took = 0 if training is None else training.run.steps
        if training is not None and training.control is not None:
            taken -= self._judge_control(made, training.control)
        self.budget.spent_steps += took
        paired = compared(self.judge, self._before, self._figures(made.model))
        kept = paired.after >= self.least
        self.trials.append(self._trial(name, made, paired, taken, took))
        made = self._accounted(made, pruned, paired)
        if kept and (self.best is None or made.report.bytes_after < self.best.report.bytes_after):
            self.best = made
        return made, kept

    def _trial(self, name: str, made: Compressed, paired: Paired, seconds: float, steps: int) -> Trial:
        size = made.report.bytes_after
        if paired.after < self.least:
            return Trial(name, "missed", f"{self.least - paired.after:.5f} short", paired, size, seconds, steps)
        sure = not paired.before + paired.low < self.least  # NaN, where there is no interval, is no doubt
        reason = "" if sure else "though its interval reaches below"
        return Trial(name, "kept", reason, paired, size, seconds, steps)

    def _judge_control(self, made: Finetuned, run: Run) -> float:
        """A line for the control; the seconds that it took."""
        self._control = False
        self.budget.spent_steps += run.steps
        taken = sum(epoch.seconds for epoch in run.epochs)
        paired = compared(self.judge, self._before, self._figures(made.control))
        reason = "reaches it" if paired.after >= self.least else f"falls {self.least - paired.after:.5f} short"
        name = "original, trained the same way"
        self.trials.append(Trial(name, "control", reason, paired, _bytes(made.control), taken, run.steps))
        return taken

    def _accounted(self, made: Compressed, pruned: Report | None, paired: Paired) -> Compressed:
        """``made`` with the quality in its report, and with what was pruned and trained before."""
        quality = {self.target.metric: paired.before}, {self.target.metric: paired.after}
        report = replace(made.report, quality_before=quality[0], quality_after=quality[1])
        if pruned is not None:
            report = replace(
                report,
                recipe=Recipe(**{**report.recipe.model_dump(), "prune": pruned.recipe.prune}),
                rows=tuple(before_pruning(report.rows, self.original, pruned.pruning)),
                training=report.training or pruned.training,
                pruning=pruned.pruning,
            )
        return replace(made, report=report)

    def _figures(self, model: nn.Module) -> np.ndarray:
        with evaluating(model):
            return self.judge.figures(model)


def _bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
