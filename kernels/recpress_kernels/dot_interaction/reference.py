"""Dot products of all pairs of a row's vectors, in plain torch: the truth for every device.

For vectors x_0, ..., x_(V-1) of D numbers and F numbers ``front`` of the same row (float16 and bfloat16 are widened
first)::

    y = [front, x_1 . x_0, x_2 . x_0, x_2 . x_1, x_3 . x_0, ...]         float32, then to the dtype of x

the lower triangle of the V x V products row by row, with ``self_interaction`` also x_i . x_i at the end of each row:
the interaction of DLRM (M. Naumov et al., 2019, arXiv 1906.00091). With ``out_scale`` and ``out_zero_point`` the result
is uint8 for the next layer, as in int8_linear/reference.py.

Sums run in another order on each device and may be fused: against float64 truth they lie within
``D * 2^-24 * sum_d |x_i[d] x_j[d]|`` before they are rounded to the dtype of x. NaN and infinity do what they do in
float.
"""

import torch
from torch import Tensor

from recpress_kernels.int8_linear.reference import quantize_output


def dot_interaction(
    vectors: Tensor,
    front: Tensor | None = None,
    self_interaction: bool = False,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    """The op on ``vectors`` ``[B, V, D]`` and ``front`` ``[B, F]``, by the formula on top of this file."""
    count = vectors.shape[1]
    wide = vectors.float()
    i, j = torch.tril_indices(count, count, 0 if self_interaction else -1, device=vectors.device)
    y = torch.bmm(wide, wide.transpose(1, 2))[:, i, j]
    if front is not None:
        y = torch.cat([front.float(), y], dim=1)
    if out_scale is not None:
        return quantize_output(y, out_scale, out_zero_point, op="dot_interaction")
    return y.to(vectors.dtype)
