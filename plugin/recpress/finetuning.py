"""Fine-tune a model while it is quantised, in a ready loop, beside a control that is not quantised.

>>> tuned = recpress.finetune(model, "int8-tables4", train_loader, valid_loader, evaluate=my_metrics)
>>> tuned.report.quality_after, tuned.report.training.quality_control
>>> recpress.export(tuned, "artifact", example_inputs=..., input_names=...)
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from recpress.errors import TrainingError
from recpress.pipeline import Compressed, Evaluate, evaluated
from recpress.pruning import later
from recpress.pruning.schedules import Schedule
from recpress.qat import convert, prepare
from recpress.quantize.capture import ROWS, Inputs, call
from recpress.recipe import Recipe, as_recipe
from recpress.tables import Counts
from recpress.training import Batch, Epoch, Loss, Settings, Training, check_batches, fit, rows_of, to_device

_LABELS = ("label", "labels")


@dataclass(frozen=True)
class Finetuned(Compressed):
    """A compressed model, the report of how it was made, and ``control``: the original trained the same way.

    ``control`` is in eval mode; None where it was turned off.
    """

    control: nn.Module | None


def finetune(
    model: nn.Module,
    recipe: Recipe | str | Path,
    train: Iterable[Batch],
    valid: Iterable[Batch],
    *,
    loss: str | Loss = "distill",
    teacher: nn.Module | None = None,
    calibration: Iterable[Inputs] | None = None,
    evaluate: Evaluate | None = None,
    counts: Counts | None = None,
    epochs: int = 4,
    lr: float = 1e-4,
    scale_lr: float | None = None,
    schedule: str = "cosine",
    warmup: float = 0.05,
    patience: int = 2,
    dropout: bool | None = None,
    learn_scales: bool = False,
    gradual: bool | Schedule = False,
    control: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> Finetuned:
    """Compress ``model`` by ``recipe`` and train it, quantised, to be like the original again.

    By default it is distilled: the loss is the binary cross-entropy of its logits to the sigmoid of the original's, on
    the training rows and without dropout (G. Hinton et al. 2015, arXiv 1503.02531; for quantised models A. Mishra and
    D. Marr 2018, arXiv 1711.05852). A recommender over-fits within a few passes over the labels, and training on them
    once more costs a model that is not compressed as much as one that is; the original's scores say how far to go.

    With training the learning rate is small: the model starts close to a minimum, and must not leave it. The default is
    a tenth of Adam's usual 1e-3; give a tenth of what the model was trained with. It rises linearly over the first
    ``warmup`` of the steps, in which Adam knows little of the gradients' size, and falls to nothing along a cosine, so
    that weights near the middle between two steps of the quantiser come to rest (I. Loshchilov and F. Hutter 2017,
    arXiv 1608.03983; M. Nagel et al. 2022, arXiv 2203.11086, on weights that oscillate). Learned scales are some ten to
    a hundred times smaller than weights, and Adam moves each parameter by its learning rate whatever its size or its
    gradient's, so that theirs is a tenth by default.

    Expect no gain where quantisation without training lost next to nothing, as int4 tables with the rest in "int8" on
    MovieLens-100K: gradients that see past the rounding then move weights more than they mend, and the state before
    training is what is kept. Where it lost more, training wins part of it back.

    After each pass the loss on ``valid`` decides: the best state is kept, the one before training included, and
    training ends when ``patience`` passes bring nothing better. The control is the original with the same loss,
    batches and settings, not compressed: what it gains or loses is no merit or fault of compression. (Distilled from
    itself it stays where it is, but for rounding.)

    Args:
        model: a trained model; it is not changed, whatever happens.
        recipe: a :class:`Recipe`, the name of a preset, or the path of a YAML file.
        train, valid: batches, in anything that can be gone through again and again, such as a DataLoader or a list. A
            batch is ``(inputs, labels)``, inputs being a tensor, a tuple of positional arguments or a mapping of
            keyword arguments; or a flat tuple or list, its last item the labels, or a mapping with labels under
            ``label`` or ``labels``. With a ``loss`` of your own it is what that takes.
        loss: ``"distill"``, ``"labels"`` (binary cross-entropy to them), or ``loss(model, teacher, batch)`` that
            returns the mean over the batch, where ``teacher`` is the original in eval mode, without gradients.
        teacher: what is distilled from instead of ``model``: the dense original of a model that recpress.prune has
            pruned. It is in eval mode meanwhile, and as it was afterwards.
        calibration: as :func:`recpress.compress` takes it. None: the first batches of ``train``, up to 4,096 rows;
            none with a ``loss`` of your own.
        evaluate: metrics of a model by name, as for compress; called with the original, with what compression gives
            before training, with what it gives after, and with the control.
        counts: as for compress, where the recipe drops rows by them; they are dropped after training.
        epochs: passes over ``train`` at most.
        lr, scale_lr: Adam's learning rates of weights, and of learned scales: a tenth of lr by default.
        schedule: ``"cosine"`` or ``"constant"``, after the warm-up.
        warmup: share of all steps.
        dropout: whether it is on in training; None: with ``loss="labels"`` alone. Batch norms keep their statistics.
        learn_scales: as in :func:`recpress.prepare`.
        gradual: what ``recipe.prune`` takes out goes while the model trains, by a schedule (recpress.pruning.schedules)
            over the optimiser's steps, counted from 0, which ends with the recipe's sparsity; True: by
            :class:`Polynomial` over the first half of them. Of the passes only those that end after it can be kept.
            The recipe can then judge by gradient, taylor and movement too; and not by thresholds or sparsegpt, nor
            remove units, dimensions or heads. What is evaluated as before training is pruned in one step, by magnitude
            where the recipe judges by gradients. False: in one step, before training.
        control: False leaves the control away, and the report says so.
        seed: what dropout and a DataLoader without a generator of its own draw from, in both trainings. The global
            generators are as before afterwards. On the CPU the result is the same each time.
        progress: show bars; None: where stderr is a terminal.

    Raises:
        RecipeError: the recipe is wrong, does not fit the model, or compresses nothing of it.
        TrainingError: an argument is out of its range, there are no batches or batches of another form, or the loss
            becomes NaN or infinite; the message names the step.
        PruningError: what the recipe prunes does not fit the model, or ``gradual`` not it or the steps.
        UnsupportedLayerError, CalibrationError: as :func:`recpress.prepare`.
    """
    recipe = as_recipe(recipe)
    scale_lr = lr / 10 if scale_lr is None else scale_lr
    dropout = loss == "labels" if dropout is None else dropout
    settings = Settings(epochs, lr, scale_lr, schedule, warmup, patience, dropout, seed)
    objective = _objective(loss)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        check_batches("train", train)
        check_batches("valid", valid)
        if calibration is None and not callable(loss):
            calibration = first_inputs(train, device)
        calibration = None if calibration is None else list(calibration)
        how = {"calibration": calibration, "learn_scales": learn_scales}
        prepared, pruner = prepare(model, recipe, **how, gradual=bool(gradual)), None
        at_once = prepared
        if gradual:
            pruner = later.pruner(prepared, recipe.prune, gradual, settings.steps(train), calibration)
            at_once = prepare(model, later.in_one_step(recipe), **how)
        dense = copy.deepcopy(model) if control else None
        with _as_teacher(model), _as_teacher(teacher or model), _progress(progress) as bar:
            before = evaluated(model, evaluate)
            post_training = evaluated(convert(at_once, counts=counts).model, evaluate)
            given = (teacher or model, objective, train, valid, settings)
            run = fit(prepared, *given, on_step=bar("quantised"), pruner=pruner)
            dense_run = None if dense is None else fit(dense, *given, on_step=bar("control"))
        compressed = convert(prepared, counts=counts, pruned=None if pruner is None else pruner.finish())
        after, of_control = evaluated(compressed.model, evaluate), {} if dense is None else evaluated(dense, evaluate)
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    taught = "" if loss == "labels" else "original" if teacher is None else "given"
    training = Training(name, taught, settings, run, dense_run, post_training, of_control)
    report = replace(compressed.report, quality_before=before, quality_after=after, training=training)
    return Finetuned(compressed.model, report, dense)


def _objective(loss: str | Loss) -> Loss:
    if callable(loss):
        return loss
    known = {"distill": _distillation, "labels": _labels_loss}
    if loss not in known:
        raise TrainingError(f"loss is {loss!r}; allowed are {', '.join(known)}, or loss(model, teacher, batch)")
    return known[loss]


def _distillation(model: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    inputs, _ = split(batch)
    with torch.no_grad():
        target = torch.sigmoid(logits_of(teacher, inputs))
    return binary_cross_entropy_with_logits(logits_of(model, inputs), target)


def _labels_loss(model: nn.Module, _teacher: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = split(batch)
    logits = logits_of(model, inputs)
    if not isinstance(labels, Tensor) or labels.numel() != logits.numel():
        given = f"of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise TrainingError(f"the labels of a batch are {given}, for logits of shape {tuple(logits.shape)}; {_FORM}")
    return binary_cross_entropy_with_logits(logits, labels.view_as(logits).float())


_FORM = (
    "give (inputs, labels), (tensor, ..., labels) or a mapping with labels under 'label', a label a logit; or a "
    "loss(model, teacher, batch) of your own"
)


def split(batch: Batch) -> tuple[Inputs, object]:
    """A batch's inputs, as ``recpress.quantize.capture.call`` takes them, and its labels.

    Raises:
        TrainingError: the batch is of another form.
    """
    if isinstance(batch, Mapping):
        labels = next((batch[name] for name in _LABELS if name in batch), None)
        return {name: value for name, value in batch.items() if name not in _LABELS}, labels
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        given = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TrainingError(f"a batch is a {given}; {_FORM}")
    *inputs, labels = batch
    return inputs[0] if len(inputs) == 1 else tuple(inputs), labels


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """What ``model`` gives for ``inputs``, float32.

    Raises:
        TrainingError: it is no float tensor.
    """
    logits = call(model, inputs)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TrainingError(f"the model gives a {type(logits).__name__}, not a float tensor of logits; {_FORM}")
    return logits.float()


def first_inputs(train: Iterable[Batch], device: torch.device) -> list[Inputs]:
    """Inputs of the first batches, up to 4,096 rows: for calibration."""
    found, rows = [], 0
    for batch in train:
        found.append(split(to_device(batch, device))[0])
        rows += rows_of(batch)
        if rows >= ROWS:
            break
    return found


@contextmanager
def _as_teacher(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode and without gradients, and as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, grad in wanted:
            p.requires_grad_(grad)


@contextmanager
def _progress(show: bool | None) -> Iterator[Callable[[str], Callable[[int, int, Epoch | None], None]]]:
    """Bars on stderr: a function that begins one and returns what ``fit`` tells its steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    disable = not (sys.stderr.isatty() if show is None else show)
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=disable) as progress:

        def begin(description: str) -> Callable[[int, int, Epoch | None], None]:
            task = progress.add_task(description, total=None, note="")

            def advance(step: int, steps: int, epoch: Epoch | None) -> None:
                note = {} if epoch is None else {"note": f"validation loss {epoch.valid_loss:.5f}"}
                progress.update(task, completed=step, total=steps, **note)

            return advance

        yield begin
