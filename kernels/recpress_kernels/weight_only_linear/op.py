"""``torch.ops.recpress.weight_only_linear``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.int8 import weight_problem
from recpress_kernels.int8_linear.op import FLOATS, activation_problem, cpu_path, device_problem, rows_of
from recpress_kernels.library import LIBRARY, direct
from recpress_kernels.support import Support
from recpress_kernels.weight_only_linear import cpu

MAX_INPUTS = 2**31 - 1
"""GPU kernels count a row's weights in 32 bits."""

LIBRARY.define(
    "weight_only_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, str activation='none') "
    "-> Tensor"
)


def weight_only_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``activation(x @ (weight_scale * weight).T + bias)`` on int8 weights; x is not quantised (W8A16).

    It saves a weight's bytes, not arithmetic: for layers whose activations do not bear 7 bits, and for batches so
    small that reading the weights is what takes the time.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``.
        weight: int8 ``[N, K]``, K >= 1.
        weight_scale: float32 ``[N]``.
        bias: float32 ``[N]``, or None.
        activation: ``none``, ``relu``, ``gelu_tanh``, ``gelu_erf``, ``sigmoid`` or ``silu``.

    Returns:
        ``[..., N]`` in the dtype of x. The formula and its error bound stand in reference.py.

    Raises:
        KernelInputError: an operand has another dtype, shape or device.
    """
    if direct(x):
        return _cpu(x, weight, weight_scale, bias, activation)
    return torch.ops.recpress.weight_only_linear(x, weight, weight_scale, bias, activation)


def supports(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Support:
    """Whether the op takes these operands, and the path that runs them."""
    problem = (
        ("" if x.dtype in FLOATS else f"x is {x.dtype}; give float32, float16 or bfloat16")
        or weight_problem(weight, weight_scale, bias, most_inputs=MAX_INPUTS)
        or (
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; the last dimensions must agree"
            if x.dim() == 0 or x.shape[-1] != weight.shape[1]
            else ""
        )
        or activation_problem(activation)
        or device_problem(x, weight, weight_scale, bias)
    )
    if problem:
        return Support(False, problem)
    return Support(True, cpu_path() if x.is_cpu else "Triton-language kernel, weights widened in registers")


def _checked(*operands) -> None:
    if not (support := supports(*operands)):
        raise KernelInputError(f"weight_only_linear: {support.reason}")


@torch.library.impl(LIBRARY, "weight_only_linear", "CPU")
def _cpu(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    _checked(x, weight, weight_scale, bias, activation)
    y = cpu.weight_only_linear(rows_of(x), weight, weight_scale, bias, activation)
    return y.view(*x.shape[:-1], weight.shape[0])


@torch.library.impl(LIBRARY, "weight_only_linear", "CUDA")
def _cuda(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    from recpress_kernels.weight_only_linear import cuda  # on first use: triton exists on Linux alone

    _checked(x, weight, weight_scale, bias, activation)
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device(x.device):
        y = cuda.weight_only_linear(rows_of(x), rows_of(weight), weight_scale.contiguous(), bias, activation)
    return y.view(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("recpress::weight_only_linear", lib=LIBRARY)
def _fake(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    _checked(x, weight, weight_scale, bias, activation)
    return x.new_empty(*x.shape[:-1], weight.shape[0])
