"""Compress a trained model by a recipe: the whole pipeline, in one screen."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from recpress.errors import PruningError
from recpress.pruning.oneshot import prune
from recpress.pruning.rows import PruneRow
from recpress.pruning.spec import FROM_GRADIENTS
from recpress.quantize.capture import Inputs, capture
from recpress.recipe import Recipe, as_recipe
from recpress.rewrite import Row, before_pruning, rewrite
from recpress.tables import Counts, apply_table_rules
from recpress.training import Training

Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Report:
    """What was done to each module, and the quality before and after.

    The rows' parameters and bytes add up to the model's own; ``quality_before`` and ``quality_after`` are what
    ``evaluate`` returned, empty without it. ``training`` is that of :func:`recpress.finetune`, None without it.
    ``pruning`` has a row for each parameter where the recipe prunes.
    """

    recipe: Recipe
    rows: tuple[Row, ...]
    quality_before: dict[str, float]
    quality_after: dict[str, float]
    training: Training | None = None
    pruning: tuple[PruneRow, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def bytes_before(self) -> int:
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        return sum(row.bytes_after for row in self.rows)


@dataclass(frozen=True)
class Compressed:
    """A compressed ``model`` in eval mode and the ``report`` of how it was made."""

    model: nn.Module
    report: Report


def compress(
    model: nn.Module,
    recipe: Recipe | str | Path = "int8",
    *,
    calibration: Iterable[Inputs] | None = None,
    evaluate: Evaluate | None = None,
    counts: Counts | None = None,
) -> Compressed:
    """Compress ``model`` by ``recipe`` and account for every parameter.

    Args:
        model: a trained model; it is not changed. The result is in eval mode whatever mode it is in. Layers that are
            compressed already are left as they are.
        recipe: a :class:`Recipe`, the name of a preset, or the path of a YAML file.
        calibration: inputs to run the model on, each a tensor, a tuple of positional arguments or a mapping
            of keyword arguments; some thousand rows like those that the model will score. Layers that none of
            them reaches are left alone and reported so; of the others the report gives the error on them, and which
            share of the model's comes from each, for which the model runs once a layer on the first 1,024 rows.
        evaluate: called with the original and with the compressed model, both in eval mode; returns metrics
            by name, which go into the report and the artifact.
        counts: how often each row of a table was looked up in training, by the tables' names, as
            :func:`recpress.count_ids` gives them; needed where the recipe drops rows by it.

    Raises:
        RecipeError: the recipe is wrong, or does not fit the model.
        UnsupportedLayerError: a layer's weights cannot be quantised (NaN, infinity, beyond float16).
        PruningError: what the recipe prunes does not fit the model, or needs calibration.
        CalibrationError: calibration is empty, missing though the recipe needs it, or no list; the model fails on it,
            or it gives a layer NaN or infinity; counts are missing or of other tables.
    """
    recipe = as_recipe(recipe)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        before = evaluated(model, evaluate)
        source, pruning, calibration = pruned_first(model, recipe, calibration)
        captured = None if calibration is None else capture(source, calibration)
        new, rows = rewrite(source, recipe, captured=captured)
        new, rows = apply_table_rules(new, before_pruning(rows, model, pruning), recipe, counts)
    finally:
        for module, mode in training.items():
            module.training = mode
    report = Report(recipe, tuple(rows), before, evaluated(new, evaluate), pruning=pruning)
    return Compressed(new, report)


def pruned_first(
    model: nn.Module, recipe: Recipe, calibration: Iterable[Inputs] | None
) -> tuple[nn.Module, tuple[PruneRow, ...], Iterable[Inputs] | None]:
    """``model`` pruned as ``recipe`` says, or as it is; its rows; and calibration, which can be gone through again.

    Raises:
        PruningError: the recipe's pruning does not fit the model, or needs calibration.
    """
    if recipe.prune is None:
        return model, (), calibration
    if recipe.prune.by in FROM_GRADIENTS:
        raise PruningError(
            f"recipe {recipe.name} prunes by {recipe.prune.by}, which judges by the gradients of a loss, and here is "
            "none; use recpress.finetune with gradual=True, or recpress.prune with calibration and loss and compress "
            "what it gives, or name another criterion"
        )
    calibration = None if calibration is None else list(calibration)
    pruned = prune(model, recipe.prune, calibration=calibration)
    return pruned.model, pruned.rows, calibration


def evaluated(model: nn.Module, evaluate: Evaluate | None) -> dict[str, float]:
    if evaluate is None:
        return {}
    with torch.no_grad():
        return {str(name): float(value) for name, value in evaluate(model).items()}
