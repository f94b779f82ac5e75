"""What a model's quality is, and whether another's is as good on the same rows."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recpress.errors import SearchError
from recpress.finetuning import logits_of, split
from recpress.report.paired import Paired, paired_auc, paired_mean
from recpress.training import Batch, to_device

Evaluate = Callable[[nn.Module], Mapping[str, object]]
"""Metrics of a model by name: numbers, or values ``[N]`` of a row or a user each, whose mean is the metric."""


@dataclass(frozen=True)
class Target:
    """The least ``metric`` that is asked for: ``at_least`` it, or that ``share`` of the original's.

    Raises:
        SearchError: not one of them is given, or it is out of its range.
    """

    metric: str
    at_least: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.share is None):
            raise SearchError("say how good the compressed model must be: give one of at_least and share")
        if self.at_least is not None and not math.isfinite(self.at_least):
            raise SearchError(f"at_least is {self.at_least}; give a finite number")
        if self.share is not None and not 0 < self.share <= 1:
            raise SearchError(f"share is {self.share}; give the share of the original's metric, over 0 and at most 1")

    def least(self, original: float) -> float:
        """What a model must reach, ``original`` being the original's metric.

        Raises:
            SearchError: a share is asked for of a metric that is not positive.
        """
        if self.share is None:
            return self.at_least
        if original <= 0:
            raise SearchError(
                f"{self.metric} of the original is {original}, of which no share can be kept; give at_least"
            )
        return self.share * original


class Judge(Protocol):
    """How models are judged: by the same rows, so that two can be compared in pairs."""

    def figures(self, model: nn.Module) -> np.ndarray:
        """What ``model`` does on the rows, float64: a figure a row or a user ``[N]``, or one number ``[]``."""

    def compare(self, before: np.ndarray, after: np.ndarray) -> Paired:
        """The metric of two models' figures; the interval of their difference is NaN where it cannot be told."""


class OfRows:
    """AUC of logits of rows with labels 0 or 1, with DeLong's paired interval.

    Args:
        rows: batches as recpress.finetune takes them.
    """

    def __init__(self, rows: Iterable[Batch]) -> None:
        self._batches = list(rows)
        labels = [split(batch)[1] for batch in self._batches]
        if not labels or not all(isinstance(label, Tensor) for label in labels):
            raise SearchError("rows hold no batches, or ones without labels; give (inputs, labels), or evaluate")
        self._label = torch.cat([label.reshape(-1) for label in labels]).double().cpu().numpy()

    @torch.no_grad()
    def figures(self, model: nn.Module) -> np.ndarray:
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        parts = [logits_of(model, split(to_device(batch, device))[0]).reshape(-1) for batch in self._batches]
        return torch.cat(parts).double().cpu().numpy()

    def compare(self, before: np.ndarray, after: np.ndarray) -> Paired:
        return paired_auc(before, after, self._label)


class OfMetric:
    """One metric of ``evaluate``; where it is of a row or a user each, with the bootstrap's paired interval."""

    def __init__(self, evaluate: Evaluate, metric: str) -> None:
        self._evaluate, self._metric = evaluate, metric

    @torch.no_grad()
    def figures(self, model: nn.Module) -> np.ndarray:
        found = self._evaluate(model)
        if self._metric not in found:
            raise SearchError(f"evaluate gives no {self._metric!r}; it gives: {', '.join(found) or 'nothing'}")
        value = found[self._metric]
        value = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value, np.float64)
        if value.ndim > 1 or not value.size:
            raise SearchError(f"{self._metric} is of shape {list(value.shape)}; give a number, or one a row or a user")
        return value

    def compare(self, before: np.ndarray, after: np.ndarray) -> Paired:
        if before.ndim == 0:
            return Paired(float(before), float(after), math.nan, math.nan)
        return paired_mean(before, after)


def compared(judge: Judge, before: np.ndarray, after: np.ndarray) -> Paired:
    """As ``judge`` compares.

    Raises:
        SearchError: figures are not finite, or do not fit each other.
    """
    if before.shape != after.shape or not np.isfinite(before).all() or not np.isfinite(after).all():
        raise SearchError(
            f"the model gives figures of shape {list(after.shape)}, for {list(before.shape)} of the original, or ones "
            "that are not finite; look for NaN"
        )
    try:
        return judge.compare(before, after)
    except ValueError as error:
        raise SearchError(f"the rows cannot be judged: {error}") from None
