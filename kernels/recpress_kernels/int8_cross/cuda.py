"""int8_cross on a GPU: the kernels of int8_linear, whose epilogue combines. All on the stream; nothing waits."""

from torch import Tensor

from recpress_kernels.int8_linear import cuda
from recpress_kernels.int8_linear.launch import Config


def int8_cross(
    x0: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    low_scale: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """The op on checked operands: x0 and x ``[M, K]``, the last dimensions of x and of the weights contiguous.

    ``config`` stands instead of what launch.py would choose, for both layers of a low rank.
    """
    y = x if low is None else cuda.int8_linear(x, low, low_scale, config=config)
    cross = (x0.contiguous(), x.contiguous())
    return cuda.int8_linear(y, weight, weight_scale, bias, cross=cross, config=config)
