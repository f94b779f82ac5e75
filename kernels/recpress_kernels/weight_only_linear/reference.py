"""Linear layer on int8 weights with float activations (W8A16), in plain torch: the truth for every device.

For a row x of K values and int8 weights w ``[N, K]``::

    acc[n] = sum_k x[k] * w[n, k]                           float32
    y[n]   = activation(acc[n] * weight_scale[n] + bias[n]) float32, then to the dtype of x

int8 values are exact in float32, float16 and bfloat16, so that a product of x with a weight is rounded once or not at
all. Sums run in another order on each device and may be fused: against float64 truth they lie within
``K * 2^-24 * sum_k |x[k] w[n, k]|`` before they are rounded to the dtype of x.
NaN and infinity do what they do in float.
"""

from torch import Tensor

from recpress_kernels.int8_linear.reference import FUNCTIONS


def weight_only_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """The op on ``x`` ``[..., K]``, by the formula on top of this file: ``[..., N]``."""
    y = (x.float() @ weight.float().T) * weight_scale
    return FUNCTIONS[activation](y if bias is None else y + bias).to(x.dtype)
