"""What is pruned while it is trained quantised: the model as it will be, with the weights that it still has.

A recipe's pruning usually comes first, and quantisation sees what it left. Where a :class:`recpress.Pruner` takes
weights out one after another instead, which layers will be 2:4 must be known before any is: as if all were pruned now.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Literal

from torch import nn

from recpress.errors import PruningError
from recpress.pruning import masks
from recpress.pruning.gradual import Pruner
from recpress.pruning.oneshot import Pruned, prune, reordered
from recpress.pruning.rows import PruneRow
from recpress.pruning.schedules import Polynomial, Schedule
from recpress.pruning.spec import FROM_GRADIENTS, STRUCTURED, PruneSpec
from recpress.recipe import Recipe

_FIRINGS = 20


def in_one_step(recipe: Recipe) -> Recipe:
    """``recipe`` for compress: by magnitude where it judges by the gradients of training."""
    if recipe.prune.by not in FROM_GRADIENTS:
        return recipe
    return recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"criterion": "magnitude"})})


def pruner(
    prepared: nn.Module,
    spec: PruneSpec,
    schedule: Schedule | Literal[True],
    steps: int,
    calibration: Iterable[object] | None,
) -> Pruner:
    """A Pruner of what recpress.prepare gave for a recipe that prunes by ``spec``, in a training of ``steps``.

    ``schedule`` True: with power 3 over the first half, which leaves the rest to recover in.

    Raises:
        PruningError: the schedule does not fit ``spec`` or the steps.
    """
    if schedule is True:
        if steps < 2:
            raise PruningError(f"training has {steps} step, which leaves none to prune gradually in; give more batches")
        schedule = Polynomial(spec.share, 0, steps // 2, frequency=max(1, steps // 2 // _FIRINGS))
    if not math.isclose(schedule.final, spec.share):
        raise PruningError(
            f"the schedule ends with sparsity {schedule.final}, and the recipe's is {spec.share}; make them the same"
        )
    spec = spec.model_copy(update={"sparsity": None, "permute": False})
    return Pruner(prepared, spec, schedule, steps=steps, calibration=calibration if spec.by == "wanda" else None)


def as_if_pruned(model: nn.Module, spec: PruneSpec, calibration: Iterable[object] | None) -> tuple[nn.Module, Pruned]:
    """A copy of ``model`` with its hidden units in the order that ``spec`` asks for, and that pruned by magnitude.

    Raises:
        PruningError: ``spec`` does not fit the model, or is none that a :class:`recpress.Pruner` can do.
    """
    if spec.share is None or spec.pattern in STRUCTURED or spec.by == "sparsegpt":
        what = f"{spec.pattern} by {spec.by}" if spec.share else f"a threshold of {spec.threshold}"
        raise PruningError(
            f"{what} is not done gradually; give n:m or unstructured with a sparsity, by another criterion than "
            "sparsegpt, or prune in one step"
        )
    dense = reordered(model, spec, calibration)
    at_once = spec.model_copy(update={"criterion": "magnitude", "permute": False})
    return dense, prune(dense, at_once)


def finished(rows: Iterable[PruneRow], by_pruner: Iterable[PruneRow]) -> Iterator[PruneRow]:
    """``rows`` of :func:`as_if_pruned` with what a Pruner made of those that are pruned, by their names."""
    found = {row.name: row for row in by_pruner}
    for row in rows:
        yield found.get(row.name, row) if row.status == "pruned" else row


def reopen(model: nn.Module, dense: nn.Module) -> None:
    """Give the masked parameters of ``model`` what ``dense``, which has the same names, holds; in place."""
    held = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        if isinstance(parameter, masks.MaskedParameter):
            masks.unmask(parameter)
            parameter.data.copy_(held[name].data)
            if isinstance(held[name], masks.MaskedParameter):
                masks.mask(parameter, held[name].mask)
