"""Plain training of a recommender on one device: Adam, binary cross-entropy, early stopping.

The defaults are for :class:`recpress.zoo.dlrm.DLRM` on MovieLens-100K.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from recpress.data.movielens import Rows
from recpress.errors import MissingDependencyError


@dataclass(frozen=True)
class Epoch:
    """One pass: its number from 1, mean train loss, AUC and logloss on the validation rows, seconds."""

    number: int
    loss: float
    auc: float
    logloss: float
    seconds: float


@dataclass(frozen=True)
class History:
    """The passes made, which of them the model was left at, and the optimiser's ``steps`` in all."""

    epochs: tuple[Epoch, ...]
    best: Epoch
    steps: int
    seconds: float


def train(
    model: nn.Module,
    train: Rows,
    valid: Rows,
    *,
    epochs: int = 12,
    batch_size: int = 512,
    lr: float = 1e-3,
    weight_decay: float = 1e-5,
    embedding_weight_decay: float = 1e-3,
    seed: int = 0,
    patience: int = 3,
    on_epoch: Callable[[int, int, str], object] | None = None,
) -> History:
    """Train ``model`` in place, and leave it in eval mode at the pass of the best validation AUC.

    The loss is the binary cross-entropy of ``model(dense, sparse)``, logits [B]; both decays are L2 terms of
    Adam's gradient, ``embedding_weight_decay`` that of each ``nn.Embedding``. ``seed`` decides the order of
    the rows and what dropout zeroes, and leaves the global generators as they were.

    Args:
        patience: passes without a better AUC after which training ends.
        on_epoch: called after each pass with its number from 1, ``epochs``, and a note of its AUC.

    Raises:
        ValueError: ``epochs``, ``batch_size`` or ``patience`` is under 1, or ``train`` has no rows.
        DataError: AUC is not defined on ``valid``, as :func:`recpress.zoo.quality.quality` says.
        MissingDependencyError: torchmetrics is not installed.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not len(train):
        raise ValueError("train has no rows")
    quality = _quality()
    optimizer = torch.optim.Adam(_groups(model, weight_decay, embedding_weight_decay), lr=lr)
    shuffle = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    done: list[Epoch] = []
    best, best_state = None, {}
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        while len(done) < epochs and (best is None or len(done) - best.number < patience):
            pass_started = time.perf_counter()
            batches = torch.randperm(len(train), generator=shuffle).split(batch_size)
            loss = _one_pass(model, train, optimizer, batches)
            found = quality(model, valid)
            seconds = time.perf_counter() - pass_started
            done.append(Epoch(len(done) + 1, loss, found["auc"], found["logloss"], seconds))
            if best is None or done[-1].auc > best.auc:
                best, best_state = done[-1], copy.deepcopy(model.state_dict())
            if on_epoch:
                on_epoch(len(done), epochs, f"validation AUC {found['auc']:.4f}")
    model.load_state_dict(best_state)
    model.eval()
    return History(tuple(done), best, len(done) * len(batches), time.perf_counter() - started)


def _one_pass(model: nn.Module, rows: Rows, optimizer: torch.optim.Optimizer, batches: Sequence[torch.Tensor]) -> float:
    """The mean loss over ``batches`` of row numbers, each followed by a step of the optimiser."""
    model.train()
    total = torch.zeros((), dtype=torch.float64)
    device = next(model.parameters()).device
    for batch in batches:
        dense, sparse, label = (column[batch].to(device) for column in (rows.dense, rows.sparse, rows.label))
        loss = binary_cross_entropy_with_logits(model(dense, sparse), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach().cpu() * len(batch)
    return float(total) / len(rows)


def _groups(model: nn.Module, weight_decay: float, embedding_weight_decay: float) -> list[dict]:
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    others = [p for p in model.parameters() if p not in tables]
    ordered = [p for p in model.parameters() if p in tables]
    return [
        {"params": ordered, "weight_decay": embedding_weight_decay},
        {"params": others, "weight_decay": weight_decay},
    ]


def _quality() -> Callable[..., dict[str, float]]:
    try:
        from recpress.zoo.quality import quality
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"training judges each pass by its AUC, and {error.name} is not installed; "
            "install it with: pip install 'recpress[demo]'"
        ) from error
    return quality
