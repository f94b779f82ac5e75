"""Prune a trained model in one step, and account for every parameter.

>>> pruned = recpress.prune(model, "2:4")
>>> recpress.compress(pruned.model, recpress.Recipe(linear="int8-24"))
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recpress.errors import PruningError, UnsupportedLayerError
from recpress.pruning import criteria, dimensions, heads, masks, patterns, permute, targets, units
from recpress.pruning.criteria import Loss
from recpress.pruning.rows import PruneRow
from recpress.pruning.sparsegpt import sparsegpt
from recpress.pruning.spec import FROM_GRADIENTS, FROM_INPUTS, STRUCTURED, PruneSpec
from recpress.pruning.targets import Skip, Target
from recpress.quantize.capture import Captured, capture


@dataclass(frozen=True)
class Pruned:
    """A pruned ``model`` whose masks hold, and a row for each of its parameters.

    The masks stay through training and copying (masks.py); ``recpress.pruning.masks.finish(model)`` bakes them in.
    """

    model: nn.Module
    rows: tuple[PruneRow, ...]

    @property
    def sparsity(self) -> float:
        """Share of the pruned parameters' elements that is gone: zero, or removed."""
        pruned = [row for row in self.rows if row.status == "pruned"]
        before = sum(row.before for row in pruned)
        return 1 - sum(row.after - row.zeros for row in pruned) / before if before else 0.0


def prune(
    model: nn.Module, spec: PruneSpec | str, *, calibration: Iterable[object] | None = None, loss: Loss | None = None
) -> Pruned:
    """A pruned copy of ``model``, in the mode that it is in, with its masks.

    Under torchrun each process prunes by what it is given: make them the same by recpress.pruning.ranks.share.

    Args:
        model: a trained model; it is not changed. What is masked in it stays so.
        spec: a :class:`PruneSpec`, or a pattern such as ``"2:4"`` with its defaults.
        calibration: for wanda, sparsegpt, activation, dimensions and heads: inputs as :func:`recpress.compress` takes
            them, some thousand rows. For gradient and taylor: whatever ``loss`` takes, an item a batch.
        loss: for gradient and taylor: ``loss(model, item)``, a scalar; the model is in eval mode.

    Raises:
        PruningError: the spec does not fit the model or this call, what it needs was not given, weights are not finite,
            nothing can be pruned, or nothing is learned from the gradients.
        CalibrationError: calibration is empty, the model fails on it, or it gives a layer NaN or infinity.
        UnsupportedLayerError: the model cannot be copied.
    """
    spec = PruneSpec(pattern=spec) if isinstance(spec, str) else spec
    _check(spec, calibration, loss)
    new = _copied(model)
    if spec.pattern in STRUCTURED:
        remove = {"units": units.remove, "dimensions": dimensions.remove, "heads": heads.remove}[spec.pattern]
        with evaluating(new):
            return Pruned(new, tuple(remove(new, spec, calibration)))
    found, skips = find(new, spec)
    before = {target.name: target.weight.numel() for target in found}
    thresholds: dict[str, float] = {}
    with evaluating(new):
        if spec.by == "sparsegpt":
            found, unreached = _sparsegpt(new, found, spec, list(calibration))
        else:
            scores, unreached = scored(new, found, spec, calibration, loss)
            found = [target for target in found if target.name in scores]
            if spec.permute:
                scores = _permuted(new, found, scores, spec)
            keep, thresholds = decide(spec, found, scores, spec.sparsity)
            for target in found:
                masks.narrow(target.weight, keep[target.name])
    return Pruned(new, tuple(rows(new, spec, found, [*skips, *unreached], before, thresholds)))


def reordered(model: nn.Module, spec: PruneSpec, calibration: Iterable[object] | None) -> nn.Module:
    """A copy of ``model`` with its hidden units in the order that ``spec.permute`` asks for; nothing is pruned.

    By magnitude where ``spec`` judges by gradients, of which there are none before training.

    Raises:
        PruningError: as :func:`prune`.
    """
    new = _copied(model)
    if not spec.permute:
        return new
    spec = spec.model_copy(update={"criterion": "magnitude"}) if spec.by in FROM_GRADIENTS else spec
    _check(spec, calibration, None)
    found, _ = find(new, spec)
    with evaluating(new):
        scores, _ = scored(new, found, spec, calibration, None)
        _permuted(new, [target for target in found if target.name in scores], scores, spec)
    return new


def find(model: nn.Module, spec: PruneSpec) -> tuple[list[Target], list[Skip]]:
    """The layers of ``model`` that ``spec`` prunes, and the parameters that it does not.

    Raises:
        PruningError: there are none, or their weights are not finite.
    """
    found, skips = targets.find(model, spec.keep, spec.n_m[1] if spec.n_m else None)
    if not found:
        reasons = "; ".join(f"{skip.name}: {skip.reason}" for skip in skips) or "it has no parameters"
        raise PruningError(f"nothing of this model can be pruned to {spec.pattern}: {reasons}")
    targets.check_finite(found)
    return found, skips


def scored(
    model: nn.Module,
    found: list[Target],
    spec: PruneSpec,
    calibration: Iterable[object] | None,
    loss: Loss | None,
) -> tuple[dict[str, Tensor], list[Skip]]:
    """Scores of the layers' weights by name, and the layers that calibration does not reach, which have none."""
    if spec.by in ("gradient", "taylor"):
        learned = criteria.gradients(model, found, calibration, loss)
        return {t.name: criteria.score(spec.by, t.weight, gradient=learned[t.name]) for t in found}, []
    if spec.by != "wanda":
        return {t.name: criteria.score(spec.by, t.weight) for t in found}, []
    captured = capture(model, calibration)
    reached, unreached = _reached(found, captured)
    scores = {t.name: criteria.score("wanda", t.weight, inputs=captured.inputs[id(t.module)]) for t in reached}
    return scores, unreached


def decide(
    spec: PruneSpec, found: list[Target], scores: Mapping[str, Tensor], sparsity: float | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What stays of each layer, and the thresholds where there were any.

    ``sparsity`` None: what n:m or the threshold says; else, of n:m, the share of groups that have come so far.
    """
    sizes = {target.name: target.weight.detach().float().abs() for target in found}
    if spec.n_m:
        n, m = spec.n_m
        keep = {name: patterns.keep_n_m(s, sizes[name], n, m) for name, s in scores.items()}
        if sparsity is not None:
            share = sparsity / (1 - n / m)
            keep = {name: patterns.part_n_m(k, scores[name], m, share) for name, k in keep.items()}
        return keep, {}
    if spec.threshold is None:
        return patterns.keep_share(scores, sizes, sparsity, spec.ranking), {}
    theta = {
        name: patterns.median_threshold(s) if spec.threshold == "median" else spec.threshold
        for name, s in scores.items()
    }
    keep = {name: patterns.keep_above(s, theta[name]) for name, s in scores.items()}
    for name in keep:
        if spec.threshold == "median" and theta[name] == 0:
            # More than half of the gradients are zero: over the threshold would be too few.
            keep |= patterns.keep_share({name: scores[name]}, sizes, 0.5, "layer")
    _check_left(keep, spec)
    return keep, theta


def rows(
    model: nn.Module,
    spec: PruneSpec,
    found: list[Target],
    skips: list[Skip],
    before: Mapping[str, int],
    thresholds: Mapping[str, float],
) -> Iterator[PruneRow]:
    """A row for each parameter of ``model``, in its order."""
    pruned = {id(target.weight): target.name for target in found}
    reasons = {skip.name: skip.reason for skip in skips}
    for name, parameter in model.named_parameters():
        zeros = int((parameter == 0).sum())
        layer = pruned.get(id(parameter))
        if layer is None:
            yield PruneRow(name, "kept", reasons[name], parameter.numel(), parameter.numel(), zeros)
            continue
        theta = thresholds.get(layer)
        how = f"{spec.pattern} by {spec.by}"
        if theta == 0 and spec.threshold == "median":
            how += ", whose median is 0: by rank"
        yield PruneRow(name, "pruned", how, before[layer], parameter.numel(), zeros, theta)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode, and each module in its own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            module.training = training.get(module, model.training)


def _permuted(model: nn.Module, found: list[Target], scores: dict[str, Tensor], spec: PruneSpec) -> dict[str, Tensor]:
    try:
        return permute.improve(model, found, scores, spec.n_m)
    except PruningError:
        if spec.permute == "auto":
            return scores
        raise


def _check(spec: PruneSpec, calibration: object, loss: Loss | None) -> None:
    if spec.by == "movement":
        raise PruningError("movement is gathered while a model trains; use recpress.Pruner in the training loop")
    if spec.pattern in ("dimensions", "heads") and calibration is None:
        raise PruningError(
            f"{spec.pattern} are followed and proved on inputs; give calibration=[...], some thousand rows"
        )
    if spec.by in FROM_INPUTS and calibration is None:
        raise PruningError(f"{spec.by} judges by the layers' inputs; give calibration=[...], some thousand rows")
    if spec.by in ("gradient", "taylor") and (calibration is None or loss is None):
        raise PruningError(f"{spec.by}: no gradients were computed; give calibration=[...] and loss(model, item)")
    if spec.share is None and spec.threshold is None:
        raise PruningError(f"pattern {spec.pattern!r} does not say how much goes; give sparsity")


def _check_left(keep: Mapping[str, Tensor], spec: PruneSpec) -> None:
    for name, k in keep.items():
        if not k.any():
            raise PruningError(f"no weight of layer {name!r} is more than the threshold {spec.threshold}; lower it")


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be copied ({error}); take out what copy.deepcopy refuses"
        ) from None


def _reached(found: list[Target], captured: Captured) -> tuple[list[Target], list[Skip]]:
    reached = [target for target in found if id(target.module) in captured.inputs]
    unreached = [
        Skip(f"{target.name}.weight", "no calibration input ran through it as a plain nn.Linear")
        for target in found
        if id(target.module) not in captured.inputs
    ]
    if not reached:
        raise PruningError("no calibration input ran through any of the layers to be pruned as a plain nn.Linear")
    return reached, unreached


def _sparsegpt(
    model: nn.Module, found: list[Target], spec: PruneSpec, calibration: list[object]
) -> tuple[list[Target], list[Skip]]:
    """Update and mask the layers in place, each on the inputs that the ones before, already pruned, give it."""
    reached, unreached = _reached(found, capture(model, calibration))
    for target in reached:
        inputs = capture(model, calibration).inputs[id(target.module)]
        weight, keep = sparsegpt(target.weight, inputs, n_m=spec.n_m, sparsity=spec.sparsity)
        with torch.no_grad():
            target.weight.copy_(weight)
        masks.narrow(target.weight, keep)
    return reached, unreached
