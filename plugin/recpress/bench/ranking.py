"""SASRec, which ranks what comes next, for the benchmark of quality: trained, scored and compared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from recpress.bench.promises import Compared
from recpress.data import sequences
from recpress.data.sequences import Ranking, Sequences
from recpress.report.paired import paired_mean
from recpress.zoo.cache import Kept, trained
from recpress.zoo.sasrec import SASRec
from recpress.zoo.sasrec_train import Ranked, by_length, ranked, train, trimmed

NEGATIVES_SEED = 2018
CALIBRATION_USERS = 512
CALIBRATION_BATCH = 32
BATCH, RIVALS = 128, 200
TUNING_LR, TUNING_EPOCHS = 1e-3, 10


@dataclass(frozen=True, eq=False)
class Ranks:
    """Sequences with the users to validate and to test on, and how SASRec is made of them."""

    name: str
    data: Sequences
    valid: Ranking
    test: Ranking
    length: int
    epochs: int = 50
    models = ("sasrec",)

    @classmethod
    def of(cls, name: str, data: Sequences, *, length: int = 50, epochs: int = 50) -> "Ranks":
        """Histories of ``length`` items; candidates drawn by a seed of their own, so that all models rank the same."""
        valid, test = (
            sequences.leave_out(data, length=length, last=last, seed=NEGATIVES_SEED + last) for last in (2, 1)
        )
        return cls(name, data, valid, test, length, epochs)

    def train(self, model: str, seed: int, folder: Path) -> tuple[nn.Module, Kept]:
        """SASRec trained from ``seed``, and how its weights came, which are kept in ``folder``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = SASRec(num_items=self.data.num_items, length=self.length)
        events = [torch.from_numpy(items) for items in self.data.events]
        options = {"epochs": self.epochs, "seed": seed}
        kept = trained(
            module,
            lambda: train(module, self.data, self.valid, **options)[-1].steps,
            rows=(torch.cat(events), torch.tensor([len(items) for items in events]), self.valid.candidates),
            options=options,
            folder=folder,
        )
        return module, kept

    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs of users to validate on, in batches of histories of about the same length, without their zeros."""
        users = torch.randperm(len(self.valid), generator=torch.Generator().manual_seed(0))[:CALIBRATION_USERS]
        batches = users[by_length(self.valid.histories[users])].split(CALIBRATION_BATCH)
        # The rows that are kept of a layer are the first: of every length some.
        batches = [batches[i] for i in torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))]
        return [(trimmed(self.valid.histories[batch]), self.valid.candidates[batch]) for batch in batches]

    def tuning(self, steps: int | None) -> dict[str, object]:
        """The scores of what came next and of rivals, after each place of a history, are to be distributed as the
        original's, in ``steps`` at most. A rate of 5e-4 keeps less, 5e-5 nothing to speak of, and so does one place a
        user.
        """
        known = [items[:-2] for items in self.data.events if len(items) > 3]
        places = _Places(
            sequences.histories([items[:-1] for items in known], self.length),
            sequences.histories([items[1:] for items in known], self.length),
            self.data.num_items,
        )
        epochs = min(TUNING_EPOCHS, steps or TUNING_EPOCHS)
        settings = {"lr": TUNING_LR, "epochs": epochs, "patience": epochs}
        if steps is not None:
            places = replace(places, count=min(steps // epochs, len(places)))
        order = by_length(self.valid.histories).split(BATCH)[::4]
        valid = [(trimmed(self.valid.histories[batch]), self.valid.candidates[batch]) for batch in order]
        return {"train": places, "valid": valid, "loss": _divergence} | settings

    def score(self, model: nn.Module) -> Ranked:
        """HR@10 and NDCG@10 of each user to test on."""
        return ranked(model, self.test)

    def compare(self, before: Ranked, after: Ranked) -> Compared:
        """Both with their intervals over users."""
        pairs = {"HR@10": (before.hit, after.hit), "NDCG@10": (before.ndcg, after.ndcg)}
        return Compared({name: paired_mean(*values) for name, values in pairs.items()}, {})


@dataclass(frozen=True, eq=False)
class _Places:
    """Batches of histories, what came next at each place of them, and rivals that all places share.

    Of histories of about the same length, in an order, and with rivals, that are drawn anew each time from torch's
    global generator: all batches, or ``count`` of them.
    """

    histories: Tensor
    nexts: Tensor
    num_items: int
    count: int | None = None

    def __len__(self) -> int:
        return self.count or -(-len(self.histories) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        lengths = (self.nexts != 0).sum(dim=1) + torch.rand(len(self.nexts))
        batches = lengths.argsort().split(BATCH)
        for i in torch.randperm(len(batches))[: len(self)].tolist():
            rivals = torch.randint(1, self.num_items + 1, (RIVALS,))
            yield trimmed(self.histories[batches[i]]), trimmed(self.nexts[batches[i]]), rivals


def _divergence(model: nn.Module, teacher: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Of the model's distribution over candidates from the teacher's (Kullback-Leibler, nats a ranking)."""
    with torch.no_grad():
        truth = log_softmax(_scores(teacher, *batch), dim=1)
    given = log_softmax(_scores(model, *batch), dim=1)
    return kl_div(given, truth, reduction="batchmean", log_target=True)


def _scores(model: nn.Module, history: Tensor, nexts: Tensor, rivals: Tensor | None = None) -> Tensor:
    """Scores of what came next and of ``rivals`` ``[R]`` after each place, ``[places, 1 + R]``.

    Without rivals ``nexts`` are the candidates of whole histories.
    """
    if rivals is None:
        return model(history, nexts)
    there = nexts != 0
    states = model.states(history)[there]
    right = (states * model.items(nexts[there])).sum(dim=1, keepdim=True)
    return torch.cat([right, states @ model.items(rivals).T], dim=1)
