"""How well logits tell the rows of label 1 from those of label 0: AUC and logloss."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.functional.classification import binary_auroc

from recpress.data.movielens import Rows
from recpress.errors import DataError


def quality(
    model: nn.Module | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: Rows,
    *,
    batch_size: int = 4096,
) -> dict[str, float]:
    """``auc`` and ``logloss`` (nats a row, in float64) of a model's logits on ``rows``.

    The model is called with (dense float32 [B, D], sparse int64 [B, T]), B at most ``batch_size``, and gives
    logits [B]. A module is called in eval mode, with rows on the device of its parameters, and is then put
    back in the mode in which it was.

    Raises:
        DataError: the rows lack one of the two labels, or a logit is not finite or not one a row.
    """
    logits, label = score(model, rows, batch_size=batch_size), rows.label
    if not 0 < int(label.sum()) < len(label):
        raise DataError(f"AUC needs rows of both labels, and all of the {len(label)} rows have one; give other rows")
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).sum())
        raise DataError(f"{bad} of {len(logits)} logits are not finite, so that AUC and logloss are not defined")
    # torchmetrics squashes scores outside 0..1 by a float32 sigmoid, which ties the largest; ranks stay apart.
    ranks = torch.unique(logits, return_inverse=True)[1] / len(logits)
    return {
        "auc": float(binary_auroc(ranks, label.long(), thresholds=None)),
        "logloss": float(binary_cross_entropy_with_logits(logits.double(), label.double())),
    }


def score(
    model: nn.Module | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: Rows,
    *,
    batch_size: int = 4096,
) -> torch.Tensor:
    """Logits [N] on the CPU, called as :func:`quality` says; DataError where they are not one a row."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    device = next((p.device for module in modules for p in module.parameters()), torch.device("cpu"))
    parts = []
    try:
        for module in modules:
            module.training = False  # an exported module refuses eval()
        with torch.inference_mode():
            for dense, sparse in zip(rows.dense.split(batch_size), rows.sparse.split(batch_size), strict=True):
                logits = torch.as_tensor(model(dense.to(device), sparse.to(device))).cpu()
                if logits.shape != dense.shape[:1]:
                    raise DataError(f"the model gave {tuple(logits.shape)} for {len(dense)} rows, not ({len(dense)},)")
                parts.append(logits)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return torch.cat(parts)
