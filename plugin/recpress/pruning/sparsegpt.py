"""SparseGPT: weights are taken one input after another, and those not yet visited make up for it.

With X ``[rows, in]`` the layer's calibration inputs, the squared error of its outputs has the Hessian H = 2 X'X, damped
by a hundredth of its mean diagonal. With U upper triangular, inverse(H) = U'U, and weight ``[out, in]`` w, for each
input j in turn::

    error of taking w[:, j] out:  w[:, j]^2 / U[j, j]^2          what is least is taken out
    e = (w[:, j] - q[:, j]) / U[j, j],   q = 0 where taken out, else w
    w[:, j:] -= e * U[j, j:]

E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023, arXiv
2301.00774. What is taken out is decided a group of inputs at a time: the m of n:m, else blocks of 128, of which the
share ``sparsity`` goes in each. The work is in float64: a few hundred inputs, and correlated ones.
"""

import torch
from torch import Tensor

from recpress.errors import PruningError
from recpress.pruning.patterns import keep_n_m, keep_share

BLOCK = 128
DAMPING = 0.01


def sparsegpt(
    weight: Tensor, inputs: Tensor, *, n_m: tuple[int, int] | None = None, sparsity: float | None = None
) -> tuple[Tensor, Tensor]:
    """The updated weight and what stays of it, both ``[out, in]``: the weight is zero where that is False.

    Args:
        weight: ``[out, in]``, float; left as it is.
        inputs: ``[rows, in]``.
        n_m: n of each m inputs stay; else ``sparsity`` is the share that goes.

    Raises:
        PruningError: all inputs are zero.
    """
    w = weight.detach().double().clone()
    upper = _upper_inverse(inputs.double())
    keep = torch.ones_like(w, dtype=torch.bool)
    columns, group = w.shape[1], n_m[1] if n_m else BLOCK
    for first in range(0, columns, group):
        last = min(first + group, columns)
        errors = (w[:, first:last] / upper.diagonal()[first:last]).square()
        if n_m:
            keep[:, first:last] = keep_n_m(errors, w[:, first:last].abs(), *n_m)
        else:
            keep[:, first:last] = keep_share({"": errors}, {"": w[:, first:last].abs()}, sparsity, "layer")[""]
        for j in range(first, last):
            taken = torch.where(keep[:, j], 0.0, w[:, j]) / upper[j, j]
            w[:, j:] -= taken[:, None] * upper[j, j:]
    return torch.where(keep, w, 0.0).to(weight.dtype), keep


def _upper_inverse(x: Tensor) -> Tensor:
    """U, upper triangular, with ``U'U`` the inverse of the damped Hessian."""
    h = 2 * x.T @ x
    mean = h.diagonal().mean()
    if not mean > 0:
        raise PruningError(
            "all calibration inputs of the layer are zero, so that no weight is worth more than another; give "
            "inputs like those that the model scores, or leave the layer dense by keep"
        )
    h.diagonal().add_(DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)
