"""Quantisation-aware training: a model that computes in training what it will compute once compressed, and back.

>>> prepared = recpress.prepare(model, "int8", calibration=[(dense, sparse)])
>>> ...                                         # train it in your own loop, as any module
>>> compressed = recpress.convert(prepared)     # what compress gives
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from recpress import layers
from recpress.errors import KernelInputError, RecipeError, TrainingError, UnsupportedLayerError
from recpress.pipeline import Compressed, Report, pruned_first
from recpress.pruning import later
from recpress.pruning.oneshot import Pruned
from recpress.pruning.rows import PruneRow
from recpress.quantize.capture import Inputs, capture
from recpress.quantize.cluster import LEVELS
from recpress.quantize.fake import (
    LINEAR_SCHEMES,
    FakeClusteredLinear,
    FakeEmbedding,
    FakeEmbeddingBag,
    FakeLinear,
    RowQuantizer,
)
from recpress.quantize.fold import fold, foldable
from recpress.recipe import Recipe, Scheme, as_recipe
from recpress.rewrite import Judged, Row, account, before_pruning, copy_with, inputs_of, judge, with_taken
from recpress.tables import Counts, apply_table_rules
from recpress_kernels.formats.rows import quantize_rows_int4, quantize_rows_int8

_PLAN = "_recpress_plan"
_TWINS = (FakeLinear, FakeClusteredLinear, FakeEmbedding, FakeEmbeddingBag)


@dataclass(frozen=True)
class Plan:
    """What a prepared model becomes: the recipe, and the report's rows as far as they are known before training, the
    scheme of each prepared layer by its first name, and what was pruned before, or with ``gradual`` will be."""

    recipe: Recipe
    rows: tuple[Row, ...]
    schemes: dict[str, Scheme]
    pruning: tuple[PruneRow, ...]
    gradual: bool


def prepare(
    model: nn.Module,
    recipe: Recipe | str | Path = "int8",
    *,
    calibration: Iterable[Inputs] | None = None,
    learn_scales: bool = False,
    gradual: bool = False,
) -> nn.Module:
    """A copy of ``model`` in which each layer that ``recipe`` compresses is fake-quantised, ready to be trained.

    What is compressed, and why the rest is not, is decided as :func:`recpress.compress` decides it. The copy computes
    what :func:`convert` makes of it, and at first what compress would give. It is in eval mode, and trains in any loop:
    gradients go through the rounding as recpress.quantize.fake says. Its parameters have their names and shapes in
    ``model`` (``weight``, ``bias``), besides ``weight_scale`` and ``x_scale`` where scales are learned, so that a
    checkpoint of ``model`` loads with ``strict=False`` unless batch norms were folded.

    A ``BatchNorm1d`` straight after a linear layer that is compressed is folded into it with the statistics it has
    (found by torch.fx, or in ``nn.Sequential``), and is ``nn.Identity`` from then on: train first, prepare then, and
    load checkpoints before. Batch norms elsewhere stay; put them in eval mode if the batches of fine-tuning are not
    like those of training.

    Args:
        model: a trained model; it is not changed.
        recipe: a :class:`Recipe`, the name of a preset, or the path of a YAML file.
        calibration: inputs as compress takes them: they decide static ranges and what evens out a layer's columns,
            both fixed in training (but for learned ranges), and which layers are reached at all.
        learn_scales: train the scales of weights' channels and of static activations too (LSQ, Esser et al. 2020,
            arXiv 1902.08153), from where the rules of the recipe put them. Else a channel's scale follows its
            largest weight, and static ranges stay. Rows of activations and of tables always follow their own range.
        gradual: leave in what ``recipe.prune`` takes out, for a :class:`recpress.Pruner` on the copy in your loop, and
            give convert what its finish returns. What is compressed, and ranges on calibration inputs, are as if all
            had been pruned by magnitude. Not for thresholds, sparsegpt, units, dimensions and heads.

    Raises:
        RecipeError: the recipe is wrong, does not fit the model, or compresses nothing of it.
        PruningError: as compress.
        UnsupportedLayerError: the model cannot be copied, or a layer's weights cannot be quantised.
        CalibrationError: calibration is empty, missing though the recipe needs it, or fails.
    """
    recipe = as_recipe(recipe)
    if recipe.bias_correction or recipe.rounding == "adaround":
        raise RecipeError(
            f"recipe {recipe.name} has bias_correction or rounding: adaround, which training overwrites; leave them "
            "away to train, or use recpress.compress"
        )
    if gradual:
        calibration = None if calibration is None else list(calibration)
        dense, pruned = _as_if_pruned(model, recipe, calibration)
        source, pruning = pruned.model, pruned.rows
    else:
        source, pruning, calibration = pruned_first(model, recipe, calibration)
    new = copy_with(source, {})
    captured = None if calibration is None else capture(new, calibration)
    judged = judge(new, recipe, captured)
    compressed = judged.compressed()
    if not compressed and not pruning:
        raise RecipeError(_nothing(recipe, judged))
    rows = before_pruning(account(judged, {}, None), model, pruning)
    if gradual:
        later.reopen(new, dense)
    folds = {linear: norm for linear, norm in foldable(new).items() if judged.verdicts[linear][0] == "compressed"}
    for linear, norm in folds.items():
        fold(linear, norm)
    replaced: dict[int, nn.Module] = {id(norm): nn.Identity() for norm in folds.values()}
    for module, name, scheme in compressed:
        try:
            inputs = inputs_of(module, scheme, recipe, captured)
            replaced[id(module)] = _twin(module, scheme, recipe, inputs, learn_scales, module in folds)
        except KernelInputError as error:
            raise _refused(name, module, error) from None
    into = {judged.names[norm]: judged.names[linear][0] for linear, norm in folds.items()}
    new = copy_with(new, replaced)
    schemes = {name: scheme for _, name, scheme in compressed}
    rows = tuple(_folded(row, into.get(row.names)) for row in rows)
    setattr(new, _PLAN, Plan(recipe, rows, schemes, pruning, gradual))
    return new


def convert(
    prepared: nn.Module, *, counts: Counts | None = None, pruned: Iterable[PruneRow] | None = None
) -> Compressed:
    """What ``prepared``, made by :func:`prepare` and trained since, becomes: as :func:`recpress.compress` gives it.

    ``prepared`` is not changed. The report holds no quality; its parameters and bytes before are those of the model
    that was prepared.

    Args:
        prepared: the module that prepare returned.
        counts: as for compress, where the recipe drops rows by them. What it says of ids out of vocabulary and of rows
            that are dropped is done here: while it is trained, a prepared model takes the ids that the original takes.
        pruned: of a model that was prepared with ``gradual``: what the Pruner's finish returned.

    Raises:
        RecipeError, CalibrationError: what the recipe says of tables' rows does not fit, or counts are missing.
        TrainingError: ``prepared`` is no prepared model, a layer of it was taken out since, or ``pruned`` is missing,
            or given without having been asked for.
        UnsupportedLayerError: training left weights or scales that cannot be quantised (NaN, infinity).
    """
    plan = getattr(prepared, _PLAN, None)
    if plan is None:
        raise TrainingError(
            f"convert is given a {type(prepared).__name__} that recpress.prepare did not return; give that module "
            "itself, not one that wraps it"
        )
    plan = _with_pruned(plan, pruned)
    modules = dict(prepared.named_modules(remove_duplicate=False))
    replaced: dict[int, nn.Module] = {}
    after: dict[str, nn.Module] = {}
    for name, scheme in plan.schemes.items():
        twin = modules.get(name)
        if not isinstance(twin, _TWINS):
            raise TrainingError(f"layer {name!r} of the prepared model is a {type(twin).__name__} now; put it back")
        after[name] = replaced[id(twin)] = _converted(twin, name, scheme, plan.recipe)
    rows = [_final(row, after.get(row.names[0])) for row in plan.rows]
    model = copy_with(prepared, replaced)
    vars(model).pop(_PLAN, None)
    model, rows = apply_table_rules(model, rows, plan.recipe, counts)
    return Compressed(model, Report(plan.recipe, tuple(rows), {}, {}, pruning=plan.pruning))


def _as_if_pruned(model: nn.Module, recipe: Recipe, calibration: Iterable[Inputs] | None) -> tuple[nn.Module, Pruned]:
    if recipe.prune is None:
        raise RecipeError(f"recipe {recipe.name} prunes nothing that could be pruned gradually; give it prune")
    return later.as_if_pruned(model, recipe.prune, calibration)


def _with_pruned(plan: Plan, pruned: Iterable[PruneRow] | None) -> Plan:
    """``plan`` with what was pruned since it was made."""
    if plan.gradual != (pruned is not None):
        how = "with gradual=True; give pruned=..." if plan.gradual else "without gradual; leave pruned out:"
        raise TrainingError(f"the model was prepared {how} what recpress.Pruner's finish() returned")
    if pruned is None:
        return plan
    pruning = tuple(later.finished(plan.pruning, pruned))
    return replace(plan, rows=tuple(with_taken(plan.rows, pruning)), pruning=pruning)


def _twin(
    module: nn.Module, scheme: str, recipe: Recipe, inputs: layers.Inputs | None, learn_scales: bool, folded: bool
) -> nn.Module:
    if scheme in LEVELS:
        return FakeClusteredLinear(module, LEVELS[scheme], folded=folded)
    if isinstance(module, nn.Linear):
        if scheme not in LINEAR_SCHEMES:
            raise KernelInputError(f"scheme {scheme!r} cannot be trained; allowed are {', '.join(LINEAR_SCHEMES)}")
        given = {} if inputs is None else vars(inputs)
        return FakeLinear(module, scheme, inputs=given, learn_scales=learn_scales, folded=folded)
    twin = FakeEmbeddingBag if isinstance(module, nn.EmbeddingBag) else FakeEmbedding
    return twin(module, _row_quantizer(scheme, recipe))


def _row_quantizer(scheme: Scheme, recipe: Recipe) -> RowQuantizer:
    return partial(quantize_rows_int4, search=recipe.embedding_search) if scheme == "int4" else quantize_rows_int8


def _converted(twin: nn.Module, name: str, scheme: Scheme, recipe: Recipe) -> nn.Module:
    try:
        if isinstance(twin, FakeClusteredLinear):
            return _clustered(twin)
        if not isinstance(twin, FakeLinear):
            return layers.compressed(twin, scheme, search=recipe.embedding_search)
        with torch.no_grad():
            weight, scale = twin.integer_weight()
            pair = twin.input_pair() or ()
        if not all(torch.isfinite(t).all() for t in (weight, scale, *pair)):
            raise KernelInputError("its weights or learned scales are not finite; find where training diverged")
        bias = None if twin.bias is None else twin.bias.detach().float().clone()
        if scheme == "int8-weights":
            return layers.WeightOnlyLinear(weight.to(torch.int8), scale, bias)
        inputs = layers.Inputs(twin.multiplier, *pair)
        dense = layers.Int8Linear(weight.to(torch.int8), scale, bias, copy.deepcopy(inputs))
        return layers.Int8Sparse24Linear(dense) if scheme == "int8-24" else dense
    except KernelInputError as error:
        raise _refused(name, twin, error) from None


def _clustered(twin: FakeClusteredLinear) -> nn.Module:
    centroids = twin.values().detach()
    if not torch.isfinite(centroids).all():
        raise KernelInputError("its centroids are not finite; find where training diverged")
    bias = None if twin.bias is None else twin.bias.detach().float().clone()
    return layers.ClusteredLinear(twin.codes.to(torch.uint8), centroids.clone(), bias)


def _refused(name: str, module: nn.Module, error: KernelInputError) -> UnsupportedLayerError:
    kind = type(module).__name__.removeprefix("Fake")
    return UnsupportedLayerError(f"layer {name!r} ({kind}): {error}; or keep it by an override {{{name!r}: 'keep'}}")


def _final(row: Row, new: nn.Module | None) -> Row:
    """The row of a layer for which ``new`` stands; any other as it is."""
    if new is None:
        return row
    return replace(row, scheme=new.scheme, bytes_after=sum(t.nbytes for t in new.buffers()))


def _folded(row: Row, into: str | None) -> Row:
    """The row of a batch norm that was folded into that layer; any other as it is."""
    if into is None:
        return row
    reason = f"{into!r} computes it"
    return replace(row, status="compressed", scheme=f"folded into {into!r}", reason=reason, bytes_after=0)


def _nothing(recipe: Recipe, judged: Judged) -> str:
    reasons = [
        f"{aliases[0]!r}: {judged.verdicts[module][1]}"
        for module, aliases in judged.names.items()
        if next(module.parameters(recurse=False), None) is not None
    ]
    return (
        f"recipe {recipe.name} compresses nothing of this model, so that there is nothing to train it for; "
        f"{'; '.join(reasons) or 'it has no parameters'}"
    )
