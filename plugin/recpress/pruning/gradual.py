"""Prune a model while the user's own loop trains it.

>>> pruner = recpress.Pruner(model, "2:4", Polynomial(final=0.5, begin=100, end=900), steps=1000)
>>> for step, batch in enumerate(loader):
...     loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
...     pruner.step(step)
>>> rows = pruner.finish()
"""

import math
from collections.abc import Iterable

from torch import Tensor, nn

from recpress.errors import PruningError
from recpress.pruning import masks, ranks
from recpress.pruning.criteria import Accumulator
from recpress.pruning.oneshot import PruneRow, decide, evaluating, find, rows, scored
from recpress.pruning.schedules import Schedule
from recpress.pruning.spec import FROM_GRADIENTS, STRUCTURED, PruneSpec


class Pruner:
    """Masks on the parameters of ``model``, in place, that grow by ``schedule``; what is masked stays masked.

    Of an n:m pattern, sparsity s on the way to 1 - n/m means that the share s / (1 - n/m) of a layer's groups is n:m,
    those that lose least by it.

    Under torchrun every process has its own, on its own replica, and calls it at the same steps: what is masked is the
    same on all of them, whatever rows each has seen.

    Args:
        model: the model that is trained, prepared by recpress.prepare or not; of DistributedDataParallel its module.
        spec: a :class:`PruneSpec` without sparsity or threshold, or a pattern; weights by magnitude, wanda, gradient,
            taylor or movement. The scores of the last three are gathered at each step of the optimiser between two
            firings, movement's from the first step on.
        schedule: of recpress.pruning.schedules; for n:m it must end with 1 - n/m.
        steps: the number of steps of the training, if it is known, so that a schedule that does not end within it is
            refused at once.
        calibration: for wanda: inputs, run through the model each time the schedule fires; under torchrun each process
            may have its own, and all count.

    Raises:
        PruningError: the spec or the schedule does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: PruneSpec | str,
        schedule: Schedule,
        *,
        steps: int | None = None,
        calibration: Iterable[object] | None = None,
    ) -> None:
        spec = PruneSpec(pattern=spec) if isinstance(spec, str) else spec
        _check(spec, schedule, steps, calibration)
        self.model, self.spec, self.schedule, self.sparsity = model, spec, schedule, 0.0
        self._calibration = None if calibration is None else list(calibration)
        self._targets, self._skips = find(model, spec)
        self._fired: int | None = None
        self._gathered = Accumulator(spec.by, self._targets) if spec.by in FROM_GRADIENTS else None

    def step(self, step: int) -> float | None:
        """To be called after each step of the optimiser, with its number from 0.

        Returns the new sparsity where the schedule fires, at this step or at one since the last call, else None.

        Raises:
            PruningError: nothing was learned from gradients, or calibration reaches no layer.
        """
        due = self.schedule.latest(step)
        if due is None or (self._fired is not None and due <= self._fired):
            return None
        sparsity = self.schedule.at(due)
        if sparsity > 0:
            self._prune(sparsity)
        self._fired, self.sparsity = due, sparsity
        return sparsity

    @property
    def finished(self) -> bool:
        """Whether the schedule has fired to its end: from then on nothing more is masked."""
        return math.isclose(self.sparsity, self.schedule.final)

    def finish(self) -> list[PruneRow]:
        """Take off the hooks, bake the masks in, and account for every parameter.

        Raises:
            PruningError: the schedule has not fired to its end.
        """
        if not self.finished:
            fired = "never fired" if self._fired is None else f"last fired at step {self._fired}"
            raise PruningError(
                f"the schedule {fired} and is at sparsity {self.sparsity}, not at its final {self.schedule.final}; "
                "call step(step) after every step, and train to its end"
            )
        if self._gathered is not None:
            self._gathered.close()
        before = {target.name: target.weight.numel() for target in self._targets}
        masks.finish(self.model)
        return list(rows(self.model, self.spec, self._targets, self._skips, before, {}))

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint needs beside the model's own: masks, what was gathered, and where the schedule is.

        It is the same on every process: one may write it for all.
        """
        held = {name: keep.clone() for name, keep in masks.masks(self.model).items()}
        sums = {} if self._gathered is None else {name: s.clone() for name, s in self._gathered.sums.items()}
        steps = 0 if self._gathered is None else self._gathered.steps
        return {"masks": held, "sums": sums, "steps": steps, "fired": self._fired, "sparsity": self.sparsity}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from :meth:`state_dict`; load the model's own first.

        Raises:
            PruningError: its masks do not fit the model.
        """
        masks.apply(self.model, state["masks"])
        self._fired, self.sparsity = state["fired"], state["sparsity"]
        if self._gathered is not None:
            self._gathered.sums.update({name: s.clone() for name, s in state["sums"].items()})
            self._gathered.steps = state["steps"]

    def _prune(self, sparsity: float) -> None:
        with evaluating(self.model):
            scores = self._scores()
        for target in self._targets:
            held = getattr(target.weight, "mask", None)
            if held is not None:  # below every other score, so that it goes first again
                scores[target.name] = scores[target.name].masked_fill(~held, -math.inf)
        keep, _ = decide(self.spec, self._targets, scores, sparsity)
        keep = ranks.of_the_first(keep) if ranks.several() else keep
        for target in self._targets:
            masks.narrow(target.weight, keep[target.name])

    def _scores(self) -> dict[str, Tensor]:
        if self._gathered is None:
            scores, unreached = scored(self.model, self._targets, self.spec, self._calibration, None)
            if ranks.several() and self.spec.by == "wanda":
                shapes = {target.name: target.weight.shape for target in self._targets}
                scores = ranks.root_of_squares(scores, shapes, self._targets[0].weight.device)
                unreached = [skip for skip in unreached if skip.name.removesuffix(".weight") not in scores]
            self._targets = [target for target in self._targets if target.name in scores]
            self._skips += unreached
            return scores
        scores = {name: summed.clone() for name, summed in self._gathered.scores().items()}
        if self._gathered.kind != "movement":
            self._gathered.reset()
        return scores


def _check(spec: PruneSpec, schedule: Schedule, steps: int | None, calibration: object) -> None:
    if spec.pattern in STRUCTURED or spec.by == "sparsegpt":
        what = f"{spec.pattern} change shapes" if spec.pattern in STRUCTURED else "sparsegpt updates weights"
        raise PruningError(f"{what} under the optimiser that holds them; use recpress.prune, and train what it returns")
    if spec.sparsity is not None or spec.threshold is not None:
        raise PruningError("the schedule says how much goes; leave sparsity and threshold out of the spec")
    if spec.permute:
        raise PruningError("permute moves weights under the optimiser that holds them; use recpress.prune")
    if spec.by == "wanda" and calibration is None:
        raise PruningError("wanda judges by the layers' inputs; give calibration=[...], some thousand rows")
    if spec.n_m and not math.isclose(schedule.final, spec.share):
        raise PruningError(f"the schedule ends with sparsity {schedule.final}, and {spec.pattern} is {spec.share}")
    if steps is None:
        return
    if schedule.first >= steps:
        raise PruningError(f"the schedule first fires at step {schedule.first} of {steps} (0 to {steps - 1}): never")
    reached = schedule.at(schedule.latest(steps - 1))
    if not math.isclose(reached, schedule.final):
        raise PruningError(
            f"the schedule is at sparsity {reached} in the last of {steps} steps, not at its final {schedule.final}"
        )
