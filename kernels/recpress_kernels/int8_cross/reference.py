"""The cross layer of DCN-v2 on int8 weights, in plain torch: the truth for every device.

With ``linear`` as in int8_linear/reference.py, activations quantised a row at a time::

    y   = linear(x, weight) + bias                     full rank: weight [K, K]
    y   = linear(linear(x, low), weight) + bias        low rank: low [R, K], weight [K, R]
    out = (x0 * y) + x                                 float32, each operation rounded by itself, then to the dtype of x

y is in the dtype of x. R. Wang et al., "DCN V2", WWW 2021, arXiv 2008.13535.
"""

from torch import Tensor

from recpress_kernels.int8_linear import reference


def int8_cross(
    x0: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    low_scale: Tensor | None = None,
) -> Tensor:
    """The op on ``x0`` and ``x`` ``[M, K]``, by the formula on top of this file."""
    y = x if low is None else reference.int8_linear(x, low, low_scale)
    return combine(x0, x, reference.int8_linear(y, weight, weight_scale, bias))


def combine(x0: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``(x0 * y) + x`` in float32, two operations, so that nothing is fused; in the dtype of x."""
    return (x0.float() * y.float()).add_(x).to(x.dtype)
