"""The second order of a factorisation machine, in plain torch: the truth for every device.

For vectors x_0, ..., x_(V-1) of D numbers (float16 and bfloat16 are widened first)::

    y = 1/2 * sum_d ((sum_i x_i[d])^2 - sum_i x_i[d]^2)         float32, then to the dtype of x

which is the sum of x_i . x_j over all i < j in V * D operations (S. Rendle, "Factorization Machines", ICDM 2010).

Sums run in another order on each device and may be fused: against float64 truth y lies within
``(V + D + 3) * 2^-24 * sum_d ((sum_i |x_i[d]|)^2 + sum_i x_i[d]^2) / 2`` before it is rounded to the dtype of x. NaN
and infinity do what they do in float.
"""

from torch import Tensor


def fm_interaction(vectors: Tensor) -> Tensor:
    """The op on ``vectors`` ``[B, V, D]``, by the formula on top of this file: ``[B, 1]``."""
    wide = vectors.float()
    squares = wide.sum(dim=1).square() - wide.square().sum(dim=1)
    return (0.5 * squares.sum(dim=1, keepdim=True)).to(vectors.dtype)
