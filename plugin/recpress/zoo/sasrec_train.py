"""Training of SASRec, and how well it ranks: HR@10 and NDCG@10 of the item that came next among sampled ones."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from recpress.data.sequences import Ranking, Sequences, histories
from recpress.errors import DataError
from recpress.zoo.sasrec import SASRec

TOP = 10


@dataclass(frozen=True, eq=False)
class Ranked:
    """A value for each user, float64 ``[U]``: ``hit`` 1 where the item is among the best 10, its ``ndcg``."""

    hit: np.ndarray
    ndcg: np.ndarray


@dataclass(frozen=True)
class Epoch:
    """A pass after which the model was judged: its number from 1, the optimiser's steps up to its end, mean loss,
    HR@10 and NDCG@10."""

    number: int
    steps: int
    loss: float
    hit: float
    ndcg: float


def ranked(model: nn.Module, users: Ranking, *, batch_size: int = 512) -> Ranked:
    """Rank the candidates of ``users``; a rival with the same score stands before the item that came next.

    Any module that is called like :class:`SASRec` will do. Batches are of histories of about the same length, without
    the zeros that all of a batch start with.

    Raises:
        DataError: a score is not finite.
    """
    hit, ndcg = np.zeros(len(users)), np.zeros(len(users))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in by_length(users.histories).split(batch_size):
                scores = model(trimmed(users.histories[batch]), users.candidates[batch])
                if not torch.isfinite(scores).all():
                    raise DataError("a score is not finite, so that there is no ranking")
                place = (scores[:, 1:] >= scores[:, :1]).sum(dim=1).numpy()
                found = place < TOP
                hit[batch.numpy()] = found
                ndcg[batch.numpy()] = found / np.log2(place + 2)
    finally:
        model.train(training)
    return Ranked(hit, ndcg)


def by_length(histories: Tensor) -> Tensor:
    """The rows of ``histories`` ``[B, L]`` from the shortest to the longest, int64 ``[B]``."""
    return (histories != 0).sum(dim=1).argsort(stable=True)


def trimmed(histories: Tensor) -> Tensor:
    """``histories`` ``[B, L]`` without the columns before all of their first items; one column at least stays."""
    longest = int((histories != 0).sum(dim=1).max())
    return histories[:, -max(longest, 1) :]


def train(
    model: SASRec,
    data: Sequences,
    valid: Ranking,
    *,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    judge_every: int = 5,
    on_epoch: Callable[[Epoch], object] | None = None,
) -> list[Epoch]:
    """Train ``model`` in place, and leave it in eval mode as it was when NDCG@10 on ``valid`` was best.

    Each place of a user's events but the last two learns to score its next item above one drawn at random, by the
    binary cross-entropy of the two (Adam, betas 0.9 and 0.98), as the paper does. Batches are of sequences of about
    the same length: shuffled among those of the same length, sorted, cut, and taken in an order drawn anew.

    Raises:
        ValueError: ``epochs``, ``batch_size`` or ``judge_every`` is under 1.
        DataError: no user has two events to learn from, or the loss is not finite.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("judge_every", judge_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    known = [items[:-2] for items in data.events if len(items) > 3]
    if not known:
        raise DataError("no user has four events, two to learn from and two that are left out")
    inputs = histories([items[:-1] for items in known], model.length)
    targets = histories([items[1:] for items in known], model.length)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    done: list[Epoch] = []
    best, best_state = None, {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in range(1, epochs + 1):
            loss = _one_pass(model, inputs, targets, optimizer, batch_size, data.num_items, generator)
            if number % judge_every and number != epochs:
                continue
            found = ranked(model, valid)
            steps = number * -(-len(inputs) // batch_size)
            done.append(Epoch(number, steps, loss, float(found.hit.mean()), float(found.ndcg.mean())))
            if best is None or done[-1].ndcg > best.ndcg:
                best, best_state = done[-1], copy.deepcopy(model.state_dict())
            if on_epoch:
                on_epoch(done[-1])
    model.load_state_dict(best_state)
    model.eval()
    return done


def _one_pass(
    model: SASRec,
    inputs: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    num_items: int,
    generator: torch.Generator,
) -> float:
    """The mean loss of a place over batches, each followed by a step of the optimiser."""
    model.train()
    lengths = (targets != 0).sum(dim=1) + torch.rand(len(targets), generator=generator)
    batches = lengths.argsort().split(batch_size)
    total, places = 0.0, 0
    for place in torch.randperm(len(batches), generator=generator).tolist():
        history, target = trimmed(inputs[batches[place]]), trimmed(targets[batches[place]])
        there = target != 0
        negative = torch.randint(1, num_items + 1, target.shape, generator=generator)
        states = model.states(history)
        right, wrong = ((states * model.items(items)).sum(dim=2)[there] for items in (target, negative))
        loss = (softplus(-right) + softplus(wrong)).mean()
        if not torch.isfinite(loss):
            raise DataError("the loss is not finite; try a smaller lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * int(there.sum())
        places += int(there.sum())
    return total / places
