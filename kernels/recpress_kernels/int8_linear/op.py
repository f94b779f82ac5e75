"""``torch.ops.recpress.int8_linear``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.affine import pair_problem, pair_value_problem
from recpress_kernels.formats.int8 import sum_problem, weight_problem
from recpress_kernels.formats.packed import ACTIVATIONS
from recpress_kernels.int8_linear import cpu
from recpress_kernels.library import LIBRARY
from recpress_kernels.support import Support

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

LIBRARY.define(
    "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, str activation='none', "
    "Tensor? x_scale=None, Tensor? x_zero_point=None, Tensor? out_scale=None, Tensor? out_zero_point=None) -> Tensor"
)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    """``activation(x @ (weight_scale * weight).T + bias)`` on int8, x quantised to 7 bits.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``; or uint8 of 0 to 127, quantised already, with ``x_scale``.
        weight: int8 ``[N, K]``, K from 1 to 133,144 (beyond, an int32 could not hold the sums).
        weight_scale: float32 ``[N]``.
        bias: float32 ``[N]``, or None.
        activation: ``none``, ``relu``, ``gelu_tanh``, ``gelu_erf``, ``sigmoid`` or ``silu``.
        x_scale, x_zero_point: a calibrated pair for x, float32 and int32 of one element, the zero point 0 to 127.
            None: each row of x is quantised by its own range.
        out_scale, out_zero_point: such a pair for the output.

    Returns:
        ``[..., N]`` in the dtype of x, float32 where x is uint8, uint8 of 0 to 127 with ``out_scale``. The formula
        and every rounding stand in reference.py. A row of x that is not finite gives a row of NaN.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value; on the CPU also where NaN would have
            to be written as uint8. A GPU, which is not waited for, writes 0 there, and takes the values of the pairs
            as they are.
    """
    return torch.ops.recpress.int8_linear(
        x, weight, weight_scale, bias, activation, x_scale, x_zero_point, out_scale, out_zero_point
    )


def supports(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Support:
    """Whether the op takes these operands, and the path that runs them."""
    problem = (
        x_problem(x, x_scale)
        or weight_problem(weight, weight_scale, bias)
        or (
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; the last dimensions must agree"
            if x.dim() == 0 or x.shape[-1] != weight.shape[1]
            else ""
        )
        or activation_problem(activation)
        or pair_problem("x", x_scale, x_zero_point)
        or pair_problem("out", out_scale, out_zero_point)
        or device_problem(x, weight, weight_scale, bias, x_scale, x_zero_point, out_scale, out_zero_point)
    )
    if problem:
        return Support(False, problem)
    if x.device.type != "cpu":
        return Support(True, "Triton-language kernels")
    return Support(True, cpu_path())


def cpu_path() -> str:
    """Which of the CPU's paths runs, and why not the other."""
    status = native.status()
    return status.reason if status.ok else f"exact integers through torch's float32 matmul, slower: {status.reason}"


def x_problem(x: Tensor, x_scale: Tensor | None) -> str:
    """What keeps x from being the activations of a layer, by dtype."""
    if x.dtype in FLOATS or (x.dtype == torch.uint8 and x_scale is not None):
        return ""
    return f"x is {x.dtype}; give float32, float16 or bfloat16, or uint8 together with x_scale and x_zero_point"


def activation_problem(activation: str) -> str:
    """Empty for a known name."""
    known = activation in ACTIVATIONS
    return "" if known else f"activation is {activation!r}; allowed are {', '.join(ACTIVATIONS)}"


def device_problem(*tensors: Tensor | None) -> str:
    """Empty where all lie on one device."""
    devices = {t.device for t in tensors if t is not None}
    if len(devices) <= 1:
        return ""
    return f"operands lie on {', '.join(sorted(str(d) for d in devices))}; move them to one device"


def check_pair_values(op: str, name: str, scale: Tensor | None, zero_point: Tensor | None) -> None:
    """Check the values of a pair: only where reading them does not wait for a device.

    Raises:
        KernelInputError: a scale that is not positive and finite, or a zero point outside 0 to 127.
    """
    if problem := pair_value_problem(name, scale, zero_point):
        raise KernelInputError(f"{op}: {problem}")


def rows_of(x: Tensor) -> Tensor:
    """x ``[..., K]`` as ``[M, K]`` whose last dimension is contiguous; a view where it can be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _checked(*operands) -> None:
    support = supports(*operands)
    if not support:
        raise KernelInputError(f"int8_linear: {support.reason}")


@torch.library.impl(LIBRARY, "int8_linear", "CPU")
def _cpu(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    _checked(x, weight, weight_scale, bias, activation, *pairs)
    if problem := sum_problem(weight):
        raise KernelInputError(f"int8_linear: {problem}")
    check_pair_values("int8_linear", "x", x_scale, x_zero_point)
    check_pair_values("int8_linear", "out", out_scale, out_zero_point)
    y = cpu.int8_linear(rows_of(x), weight, weight_scale, bias, activation, *pairs)
    return y.view(*x.shape[:-1], weight.shape[0])


@torch.library.impl(LIBRARY, "int8_linear", "CUDA")
def _cuda(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    from recpress_kernels.int8_linear import cuda  # on first use: triton exists on Linux alone

    pairs = (x_scale, x_zero_point, out_scale, out_zero_point)
    _checked(x, weight, weight_scale, bias, activation, *pairs)
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device(x.device):
        # rows_of keeps the padding that cuda.pad_rows gives to the weight's rows.
        y = cuda.int8_linear(rows_of(x), rows_of(weight), weight_scale.contiguous(), bias, activation, *pairs)
    return y.view(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("recpress::int8_linear", lib=LIBRARY)
def _fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    _checked(x, weight, weight_scale, bias, activation, x_scale, x_zero_point, out_scale, out_zero_point)
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=out_dtype(x, out_scale))


def out_dtype(x: Tensor, out_scale: Tensor | None) -> torch.dtype:
    """The dtype of the output."""
    if out_scale is not None:
        return torch.uint8
    return torch.float32 if x.dtype == torch.uint8 else x.dtype
