"""SASRec, which ranks what comes next, for the benchmark of quality: trained, scored and compared."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from recpress.bench.promises import Compared
from recpress.data import sequences
from recpress.data.sequences import Ranking, Sequences
from recpress.report.paired import paired_mean
from recpress.zoo.cache import trained
from recpress.zoo.sasrec import SASRec
from recpress.zoo.sasrec_train import Ranked, by_length, ranked, train, trimmed

NEGATIVES_SEED = 2018
CALIBRATION_USERS = 512
CALIBRATION_BATCH = 32
BATCH, CANDIDATES = 128, 21


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

    def train(self, model: str, seed: int, folder: Path) -> tuple[nn.Module, bool]:
        """SASRec trained from ``seed``, and whether its weights were kept in ``folder``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = SASRec(num_items=self.data.num_items, length=self.length)
        events = [torch.from_numpy(items) for items in self.data.events]
        options = {"epochs": self.epochs, "seed": seed}
        kept = trained(
            module,
            lambda: train(module, self.data, self.valid, **options),
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

    def batches(self, part: str) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
        """Users with a few candidates, labelled 1 where the item came next: the event before those that are left out
        ("train"), or that which is left to validate on ("valid").
        """
        users = self.valid if part == "valid" else self._known
        order = by_length(users.histories).split(BATCH)
        order = [order[i] for i in torch.randperm(len(order), generator=torch.Generator().manual_seed(1))]
        label = torch.zeros(1, CANDIDATES)
        label[:, 0] = 1.0
        return [
            ((trimmed(users.histories[batch]), users.candidates[batch, :CANDIDATES]), label.expand(len(batch), -1))
            for batch in order
        ]

    @cached_property
    def _known(self) -> Ranking:
        """What the model was trained on: each user without the two events that are left out."""
        known = Sequences(tuple(items[:-2] for items in self.data.events if len(items) > 4), self.data.num_items)
        return sequences.leave_out(known, length=self.length, last=1, seed=NEGATIVES_SEED)

    def score(self, model: nn.Module) -> Ranked:
        """HR@10 and NDCG@10 of each user to test on."""
        return ranked(model, self.test)

    def compare(self, before: Ranked, after: Ranked) -> Compared:
        """Both with their intervals over users."""
        pairs = {"HR@10": (before.hit, after.hit), "NDCG@10": (before.ndcg, after.ndcg)}
        return Compared({name: paired_mean(*values) for name, values in pairs.items()}, {})
