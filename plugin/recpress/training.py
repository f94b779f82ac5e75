"""A loop that trains a copy of a model towards a loss, and leaves it where validation was best."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recpress.errors import KernelInputError, TrainingError
from recpress.pruning.gradual import Pruner

Batch = object
Loss = Callable[[nn.Module, nn.Module, Batch], Tensor]
"""``loss(model, teacher, batch)``: the mean loss of the batch, a scalar."""
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """How to train; :func:`recpress.finetune` says what each is for.

    Raises:
        TrainingError: a value is out of its range.
    """

    epochs: int
    lr: float
    scale_lr: float
    schedule: str
    warmup: float
    patience: int
    dropout: bool
    seed: int

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TrainingError(f"{name} is {value!r}; give a whole number of at least 1")
        for name in ("lr", "scale_lr"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise TrainingError(f"{name} is {value!r}; give a positive finite number")
        if not 0 <= self.warmup <= 1:
            raise TrainingError(f"warmup is {self.warmup!r}; give the share of all steps, 0 to 1")
        if self.schedule not in SCHEDULES:
            raise TrainingError(f"schedule is {self.schedule!r}; allowed are {', '.join(SCHEDULES)}")

    def steps(self, train: Iterable[Batch]) -> int:
        """The optimiser's, at most."""
        return self.epochs * (len(train) if hasattr(train, "__len__") else sum(1 for _ in train))

    def factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by at ``step`` of ``steps``, both counted from 0."""
        warm = self.warmup * steps
        if step + 1 < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) if step > warm else 1.0


@dataclass(frozen=True)
class Epoch:
    """One pass: its number, mean loss on the training batches and on those of validation, and seconds.

    Number 0 is what there was before training, without a training loss.
    """

    number: int
    loss: float | None
    valid_loss: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """The passes made, the one at which the model was left, of the least validation loss, and the optimiser's steps."""

    epochs: tuple[Epoch, ...]
    best: Epoch
    steps: int


@dataclass(frozen=True)
class Training:
    """How a compressed model was trained, and what else that training does.

    Attributes:
        objective: ``"distill"``, ``"labels"`` or the name of the loss that was given.
        teacher: what the loss was handed to be like: the ``"original"``, or one that was ``"given"``; empty for
            ``"labels"``.
        settings: how.
        run: the compressed model's; number 0 of its passes is post-training quantisation.
        control: the same training of the model without compression; None where it was turned off, so that what
            training by itself does to the quality is not known.
        quality_post_training, quality_control: what ``evaluate`` returned for the model quantised without training,
            and for the control; empty without it.
    """

    objective: str
    teacher: Literal["", "original", "given"]
    settings: Settings
    run: Run
    control: Run | None
    quality_post_training: dict[str, float]
    quality_control: dict[str, float]


def fit(
    model: nn.Module,
    teacher: nn.Module,
    loss: Loss,
    train: Iterable[Batch],
    valid: Iterable[Batch],
    settings: Settings,
    *,
    on_step: Callable[[int, int, Epoch | None], object],
    pruner: Pruner | None = None,
) -> Run:
    """Train ``model`` in place, and leave it in eval mode at the pass of the best validation loss, 0 included.

    Args:
        teacher: handed to ``loss``.
        on_step: called after each step with its number from 1, the number of steps and, after a pass, its epoch.
        pruner: of ``model``, called after each step. A pass that ends before its schedule, 0 included, is never the
            best, and patience begins with the first that ends after it.

    Raises:
        TrainingError: no batches, a loss that is not finite or no scalar that depends on the model, or no parameter
            to train.
    """
    steps = settings.steps(train)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        optimizers = _optimizers(model, settings)
        factor = lambda step: settings.factor(step, steps)  # noqa: E731
        schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
        done = [Epoch(0, None, _validate(model, teacher, loss, valid, device, "before training"), 0.0)]
        best, best_state = (done[0], copy.deepcopy(model.state_dict())) if pruner is None else (None, None)
        step = 0
        while len(done) <= settings.epochs and (best is None or len(done) - 1 - best.number < settings.patience):
            started = time.perf_counter()
            _mode(model, dropout=settings.dropout)
            total = rows = 0.0
            for batch in train:
                step += 1
                where = f"at step {step} (pass {len(done)})"
                value = _loss(loss, model, teacher, to_device(batch, device), where)
                _step(value, optimizers, schedulers, where)
                total, rows = total + float(value.detach()) * rows_of(batch), rows + rows_of(batch)
                if pruner is not None:
                    pruner.step(step - 1)
                on_step(step, steps, None)
            if not rows:
                raise TrainingError(f"train gives no batches in pass {len(done)}; give what can be gone through again")
            valid_loss = _validate(model, teacher, loss, valid, device, f"after pass {len(done)}")
            done.append(Epoch(len(done), total / rows, valid_loss, time.perf_counter() - started))
            done_pruning = pruner is None or pruner.finished
            if done_pruning and (best is None or valid_loss < best.valid_loss):
                best, best_state = done[-1], copy.deepcopy(model.state_dict())
            on_step(step, steps, done[-1])
    if best is None:
        raise TrainingError(
            f"{step} steps were made, of {steps} that the first pass promised, and pruning is at sparsity "
            f"{pruner.sparsity} of {pruner.schedule.final}; see that train gives as many batches in each pass"
        )
    model.load_state_dict(best_state)
    model.eval()
    return Run(tuple(done), best, step)


def check_batches(name: str, batches: Iterable[Batch]) -> None:
    """Refuse what cannot be gone through more than once, or holds nothing.

    Raises:
        TrainingError: as said.
    """
    if iter(batches) is batches:
        raise TrainingError(
            f"{name} is a {type(batches).__name__}, used up after one pass; give a list, a DataLoader or what else "
            "can be gone through again"
        )
    if next(iter(batches), None) is None:
        raise TrainingError(f"{name} holds no batches; give at least one")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """``batch`` with the tensors in it, in tuples, lists and mappings too, on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def rows_of(batch: Batch) -> int:
    """The length of the first tensor in ``batch``: what its loss is weighed by. 1 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((rows_of(part) for part in parts if isinstance(part, Tensor | Mapping | tuple | list)), 1)


def _mode(model: nn.Module, *, dropout: bool) -> None:
    """Train or eval mode for all but batch norms, whose statistics stay as they are."""
    model.train(dropout)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        elif isinstance(module, nn.RNNBase) and not module.dropout:
            module.train()  # cuDNN has no gradients in eval mode


def _optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Adam, with a learning rate of their own for learned scales; its sparse form for tables of sparse gradients."""
    sparse = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse}
    scales, dense, tables = [], [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            scale = name.rpartition(".")[2] in ("weight_scale", "x_scale")
            (tables if id(p) in sparse else scales if scale else dense).append(p)
    if not (scales or dense or tables):
        raise TrainingError("no parameter of the model requires a gradient; set requires_grad on what is to be trained")
    groups = [{"params": dense}, {"params": scales, "lr": settings.scale_lr}]
    found = [torch.optim.Adam(groups, lr=settings.lr)] if dense or scales else []
    return found + ([torch.optim.SparseAdam(tables, lr=settings.lr)] if tables else [])


def _loss(loss: Loss, model: nn.Module, teacher: nn.Module, batch: Batch, where: str) -> Tensor:
    try:
        value = loss(model, teacher, batch)
    except KernelInputError as error:
        raise TrainingError(f"the model fails {where}: {error}; {_REMEDY}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
        raise TrainingError(f"loss gives {given} {where}; give a scalar tensor, the mean over the batch")
    if not torch.isfinite(value):
        raise TrainingError(f"the loss is {value.item()} {where}; {_REMEDY}")
    return value


_REMEDY = "the model given is as it was: lower lr, and look for NaN in the batches and for labels outside 0 to 1"


def _step(value: Tensor, optimizers: list, schedulers: list, where: str) -> None:
    if not value.requires_grad:
        raise TrainingError(
            f"the loss does not depend on the model's parameters {where}; use the model that it is given"
        )
    for optimizer in optimizers:
        optimizer.zero_grad()
    value.backward()
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        optimizer.step()
        scheduler.step()


def _validate(
    model: nn.Module, teacher: nn.Module, loss: Loss, valid: Iterable[Batch], device: torch.device, when: str
) -> float:
    model.eval()
    total = rows = 0.0
    with torch.no_grad():
        for batch in valid:
            value = _loss(loss, model, teacher, to_device(batch, device), f"on a batch of valid {when}")
            total, rows = total + float(value) * rows_of(batch), rows + rows_of(batch)
    if not rows:
        raise TrainingError(f"valid gives no batches {when}; give what can be gone through again")
    return total / rows
