"""weight_only_linear on a CPU: the native kernel, which widens weights as it loads them, or else torch."""

from torch import Tensor

from recpress_kernels import native
from recpress_kernels.int8_linear import cpu as int8_cpu
from recpress_kernels.weight_only_linear import reference


def weight_only_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The op on checked operands, x ``[M, K]`` with its last dimension contiguous: ``[M, N]``."""
    if native.linear is None:
        return reference.weight_only_linear(x, weight, weight_scale, bias, activation)
    return int8_cpu.canonical(
        "weight_only_linear", x, weight, weight_scale, bias, activation, None, None, None, None, keeps_floats=True
    )
