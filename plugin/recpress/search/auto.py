"""Compress a model as far as a quality allows, by trying recipes in order.

>>> found = recpress.auto(model, train, valid, rows=judged, share=0.999)   # 99.9 % of its AUC
>>> recpress.export(found.accepted(), "artifact", example_inputs=..., input_names=...)
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from recpress.errors import SearchError
from recpress.finetuning import first_inputs
from recpress.quantize.capture import Inputs
from recpress.recipe import Recipe, as_recipe
from recpress.search.flow import Budget, Flow, Material
from recpress.search.judge import Evaluate, Judge, OfMetric, OfRows, Target
from recpress.search.trial import Found
from recpress.tables import Counts
from recpress.training import Batch, Loss, check_batches

WHERE_MET = ("int8-tables4", "int8")
WHERE_MISSED = ("structured-50-int8-tables4", "structured-50-int8", "prune-24-int8-tables4", "prune-24-int8")
"""What is tried by default where the original reaches the target, and where it falls short."""


def auto(
    model: nn.Module | Callable[[], nn.Module],
    train: Iterable[Batch] | None = None,
    valid: Iterable[Batch] | None = None,
    *,
    rows: Iterable[Batch] | None = None,
    evaluate: Evaluate | None = None,
    metric: str = "AUC",
    at_least: float | None = None,
    share: float | None = None,
    candidates: Sequence[Recipe | str | Path] | None = None,
    calibration: Iterable[Inputs] | None = None,
    counts: Counts | None = None,
    loss: str | Loss | None = None,
    epochs: int = 4,
    lr: float = 1e-4,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    show: bool = True,
) -> Found:
    """The smallest compressed model that keeps a target, or the original with what each try fell short of.

    Where the original reaches the target it is quantised, and each candidate is judged again: one that falls short is
    tried with the layer of most error in a gentler scheme, up to three times, and then trained quantised.
    Where the original falls short it is pruned and fine-tuned, since pruning may regularise it, and what then reaches
    the target is quantised in the same way. The first training has a control, the original trained
    the same way without compression, with a line of its own: what it gains is no merit of pruning.

    The figure decides, and the table has the interval beside it. Whatever is chosen on ``rows`` is flattered by having
    been chosen: report the quality on rows that were not used here. Of the same arguments the result is the same on the
    CPU, but for ``seconds``, which may stop sooner on a slower machine.

    Args:
        model: a trained model, which is not changed, or a function that trains and returns one.
        train, valid: batches as :func:`recpress.finetune` takes them; without them nothing is trained.
        rows: batches with labels 0 or 1, to judge the AUC of the logits by, with DeLong's paired interval.
        evaluate: instead of ``rows``: called with a model in eval mode, gives metrics by name, of which more is better:
            numbers, or values ``[N]`` of a row or a user each, the same each time, whose mean is judged with the
            bootstrap's paired interval.
        metric: which of them.
        at_least, share: what is asked: a value, or a share of the original's.
        candidates: recipes in the order in which they are tried; None: :data:`WHERE_MET` or :data:`WHERE_MISSED`. One
            that prunes is pruned and fine-tuned first, and is quantised only if that reaches the target.
        calibration: as :func:`recpress.compress` takes it; None: the first inputs of ``train``.
        counts: as for compress.
        loss: of fine-tuning; None: ``"distill"`` where the original reaches the target and ``"labels"`` where not,
            since there is nothing to be gained from being like it.
        epochs, lr: of each fine-tuning.
        steps, seconds: nothing new is begun that would, or that has, taken more steps of optimisers, or seconds, in
            all; None: no limit. What was left out is in the table.
        seed: of every training, the given function's too: torch's global generator is set and put back.
        show: print the table.

    Raises:
        SearchError: no target or two, nothing to judge by, or figures that cannot be compared.
        TrainingError, RecipeError: batches, or names of candidates, are not as needed. What fails on one candidate
            alone is a line of the table.
    """
    target = Target(metric, at_least, share)
    judge = _judge(rows, evaluate, metric)
    given = None if candidates is None else [as_recipe(candidate) for candidate in candidates]
    if given is not None and not given:
        raise SearchError("candidates is empty, so that there is nothing to try; give recipes, or leave it away")
    if (train is None) != (valid is None):
        raise SearchError("train and valid belong together; give both, or neither for no training")
    for name, batches in (("train", train), ("valid", valid)):
        if batches is not None:
            check_batches(name, batches)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        original, taken = _made(model)
        if calibration is None and train is not None and not callable(loss):
            calibration = first_inputs(train, next((p.device for p in original.parameters()), torch.device("cpu")))
    calibration = None if calibration is None else list(calibration)
    material = Material(train, valid, calibration, counts, loss, epochs, lr, seed)
    flow = Flow(original, judge, target, material, Budget(steps, seconds, spent_seconds=taken))
    for recipe in given or [as_recipe(name) for name in (WHERE_MET if flow.met else WHERE_MISSED)]:
        flow.candidate(recipe)
    found = Found(original, flow.best, metric, flow.least, tuple(flow.trials))
    if show:
        found.print()
    return found


def _judge(rows: Iterable[Batch] | None, evaluate: Evaluate | None, metric: str) -> Judge:
    if (rows is None) == (evaluate is None):
        raise SearchError("say what to judge by: give one of rows, whose AUC is judged, and evaluate")
    if evaluate is not None:
        return OfMetric(evaluate, metric)
    if metric != "AUC":
        raise SearchError(f"metric is {metric!r}, and of rows the AUC is judged; give evaluate for another metric")
    return OfRows(rows)


def _made(model: nn.Module | Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """The model, and the seconds that training it took."""
    if isinstance(model, nn.Module):
        return model, 0.0
    start = time.perf_counter()
    made = model()
    if not isinstance(made, nn.Module):
        raise SearchError(f"the function that trains gives a {type(made).__name__}; it must return the nn.Module")
    return made, time.perf_counter() - start
