"""Linear layer on 2:4 weights in float16 or bfloat16, in plain torch: the truth for every device.

For a row x of K values and weights w ``[N, K]`` of which two of every four in a row are stored::

    y[n] = activation(sum_k x[k] * w[n, k] + bias[n])         float32, then to the dtype of x

Products of two float16 or two bfloat16 values are exact in float32; in which order the sum adds them up is the
device's own. Against the sum without rounding y differs by at most ``K * 2^-23 * sum_k |x[k] w[n, k]|`` before the
activation, and by the rounding to the dtype of x behind it.
"""

import torch
from torch import Tensor

from recpress_kernels.int8_linear.reference import FUNCTIONS


def decompress(values: Tensor, indices: Tensor) -> Tensor:
    """The dense weight ``[N, K]`` of canonical ``values [N, K / 2]`` and ``indices`` uint8 ``[N, ceil(K / 8)]``."""
    n, groups = values.shape[0], values.shape[1] // 2
    nibbles = torch.stack([indices & 15, indices >> 4], dim=2).view(n, 2 * indices.shape[1])[:, :groups].long()
    places = torch.stack([nibbles & 3, nibbles >> 2], dim=2)
    return values.new_zeros(n, groups, 4).scatter_(2, places, values.view(n, groups, 2)).view(n, 4 * groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """The op on ``x`` ``[..., K]`` and the dense weight ``[N, K]``."""
    y = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return FUNCTIONS[activation](y).to(x.dtype)


def sparse24_linear(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """The op on ``x`` ``[..., K]``, K at most what the weight has: ``[..., N]``."""
    return linear(x, decompress(values, indices)[:, : x.shape[-1]], bias, activation)
