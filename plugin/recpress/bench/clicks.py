"""Models that predict whether a film is liked, for the benchmark of quality: trained, scored and compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recpress.bench.promises import Compared
from recpress.data.movielens import MovieLens
from recpress.recombined import Recombined
from recpress.report.paired import paired_auc
from recpress.zoo.cache import Kept, trained
from recpress.zoo.dcn import DCNv2
from recpress.zoo.deepfm import DeepFM
from recpress.zoo.dlrm import DLRM
from recpress.zoo.train import train
from recpress.zoo.two_tower import TwoTower

MODELS = {"deepfm": DeepFM, "dlrm": DLRM, "dcn-v2": DCNv2, "two-tower": TwoTower}
OF_THE_USER = ("age", "log_user_count", "user_like_share")
CALIBRATION_ROWS = 4096
BATCH = 512
TUNING_PASSES = 4
"""After which validation decides, of what is trained for a number of steps."""
TUNING_LR = 2e-3
"""Twice that of the original's training: in so few steps a tenth of it brings half of the way."""
Batch = tuple[tuple[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Clicks:
    """A set of ratings, and how its models are made: ``dim`` numbers a row of a table, at most ``epochs`` passes."""

    name: str
    data: MovieLens
    dim: int = 16
    epochs: int = 20
    models = tuple(MODELS)

    def train(self, model: str, seed: int, folder: Path) -> tuple[nn.Module, Kept]:
        """The model trained from ``seed``, and how its weights came, which are kept in ``folder``."""
        data = self.data
        sizes = {"num_dense": len(data.dense_names), "table_rows": data.table_rows, "dim": self.dim}
        if model == "two-tower":
            sizes["item_dense"] = [i for i, name in enumerate(data.dense_names) if name not in OF_THE_USER]
            sizes["item_tables"] = [data.sparse_names.index("film")]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = MODELS[model](**sizes)
        rows = [column for part in (data.train, data.valid) for column in (part.dense, part.sparse, part.label)]
        options = {"epochs": self.epochs, "seed": seed}
        fitted = lambda: train(module, data.train, data.valid, **options).steps  # noqa: E731
        return module, trained(module, fitted, rows=rows, options=options, folder=folder)

    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs of the first train rows."""
        return [(self.data.train.dense[:CALIBRATION_ROWS], self.data.train.sparse[:CALIBRATION_ROWS])]

    def tuning(self, steps: int | None) -> dict[str, object]:
        """The rows to train and to validate on, for what finetune does by itself, or for that in ``steps`` at most."""
        train, valid = self._batches("train"), self._batches("valid")
        if steps is None:
            return {"train": train, "valid": valid}
        passes = min(TUNING_PASSES, steps)
        rows = Recombined(_Drawn(train, steps // passes))
        settings = {"epochs": passes, "patience": passes, "lr": TUNING_LR, "warmup": 0.0}
        return {"train": rows, "valid": valid} | settings

    def _batches(self, part: str) -> list[Batch]:
        """The "train" or the "valid" rows with their labels, shuffled once."""
        rows = getattr(self.data, part)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(BATCH)
        return [((rows.dense[batch], rows.sparse[batch]), rows.label[batch]) for batch in order]

    def score(self, model: nn.Module) -> np.ndarray:
        """Logits of the test rows, float64 ``[N]``."""
        from recpress.zoo.quality import score  # needs torchmetrics, which training has found to be there

        return score(model, self.data.test).double().numpy()

    def compare(self, before: np.ndarray, after: np.ndarray) -> Compared:
        """AUC with DeLong's interval, and logloss and calibration, of logits of the test rows."""
        label = self.data.test.label.double().numpy()
        levels = {
            "logloss": tuple(_logloss(logits, label) for logits in (before, after)),
            "calibration": tuple(_calibration(logits, label) for logits in (before, after)),
        }
        return Compared({"AUC": paired_auc(before, after, label)}, levels)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """``count`` of ``batches``, none twice before all came once, drawn anew each time from torch's global generator."""

    batches: Sequence[Batch]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.count, len(self.batches)):
            for place in torch.randperm(len(self.batches))[: self.count - first].tolist():
                yield self.batches[place]


def _logloss(logits: np.ndarray, label: np.ndarray) -> float:
    """Nats a row."""
    return float((np.logaddexp(0.0, logits) - label * logits).mean())


def _calibration(logits: np.ndarray, label: np.ndarray) -> float:
    """The mean prediction over the mean label."""
    return float(np.exp(-np.logaddexp(0.0, -logits)).mean() / label.mean())
