"""``torch.ops.recpress.sparse24_linear``: checks, registration and dispatch, on canonical operands.

No path of it is fast, since the weight is unpacked at each call. It is what an artifact's graph holds; fragments.py has
the op for a weight that is packed when the graph is loaded.
"""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.sparse24_gpu import checked_nibbles
from recpress_kernels.int8_linear.op import activation_problem, device_problem
from recpress_kernels.int8_linear.reference import FUNCTIONS
from recpress_kernels.library import LIBRARY
from recpress_kernels.sparse24_linear import reference
from recpress_kernels.support import Support

HALVES = (torch.float16, torch.bfloat16)

LIBRARY.define(
    "sparse24_linear(Tensor x, Tensor values, Tensor indices, Tensor? bias=None, str activation='none') -> Tensor"
)


def sparse24_linear(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``activation(x @ W.T + bias)`` on a 2:4 weight in float16 or bfloat16.

    Args:
        x: float16 or bfloat16 ``[..., K]``, K at least 1.
        values: what W keeps, of the dtype of x, ``[N, 2 G]`` with G = ceil(K / 4): W is padded with zeros to fours.
        indices: uint8 ``[N, ceil(G / 2)]``, a nibble ``i0 | i1 << 2`` with i0 < i1 a group of four, even groups in the
            low one.
        bias: float32 or of the dtype of x, ``[N]``, or None.
        activation: ``none``, ``relu``, ``gelu_tanh``, ``gelu_erf``, ``sigmoid`` or ``silu``.

    Returns:
        ``[..., N]`` in the dtype of x, by the formula and within the bounds of reference.py. A GPU rounds the products'
        sum to the dtype of x before it adds the bias, in this form of the op.

    Raises:
        KernelInputError: an operand has another dtype, shape or device; on the CPU also where a nibble does not name
            two places in rising order, which a GPU, that is not waited for, does not look at.
    """
    return torch.ops.recpress.sparse24_linear(x, values, indices, bias, activation)


def supports(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Support:
    """Whether the op takes these operands, and the path that runs them."""
    problem = (
        x_problem(x)
        or _weight_problem(x, values, indices)
        or bias_problem(x, bias, values.shape[0])
        or activation_problem(activation)
        or device_problem(x, values, indices, bias)
    )
    if problem:
        return Support(False, problem)
    how = "float32" if x.device.type == "cpu" else str(x.dtype).removeprefix("torch.")
    return Support(True, f"unpacked at each call, then dense through torch's {how} matmul, slowly")


def x_problem(x: Tensor) -> str:
    """What keeps x from being ``[..., K]`` in 16 bits; empty where nothing does."""
    if x.dtype in HALVES and x.dim() and x.shape[-1]:
        return ""
    return f"x is {x.dtype} of shape {tuple(x.shape)}; give float16 or bfloat16 [..., K], K >= 1"


def bias_problem(x: Tensor, bias: Tensor | None, n: int) -> str:
    """What keeps a bias from being one value an output; empty where nothing does."""
    if bias is None or (bias.dtype in (torch.float32, x.dtype) and bias.shape == (n,)):
        return ""
    return f"bias is {bias.dtype} of shape {tuple(bias.shape)}; give float32 or {x.dtype} [{n}], one value an output"


def _weight_problem(x: Tensor, values: Tensor, indices: Tensor) -> str:
    groups = -(-x.shape[-1] // 4)
    if values.dtype != x.dtype or values.dim() != 2 or values.shape[1] != 2 * groups:
        return (
            f"values is {values.dtype} of shape {tuple(values.shape)}; give {x.dtype} [N, {2 * groups}] for x with "
            f"K = {x.shape[-1]}, two of every four inputs"
        )
    wanted = (values.shape[0], -(-groups // 2))
    if indices.dtype == torch.uint8 and tuple(indices.shape) == wanted:
        return ""
    return f"indices is {indices.dtype} of shape {tuple(indices.shape)}; give uint8 {list(wanted)}, a nibble a group"


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``x [..., K]`` on a dense weight; on a GPU its sums are rounded to the dtype of x, which doubles the rate."""
    if x.device.type == "cpu":
        return reference.linear(x, weight, bias, activation)
    y = torch.nn.functional.linear(x, weight).float()
    return FUNCTIONS[activation](y if bias is None else y + bias.float()).to(x.dtype)


def _checked(*operands) -> None:
    support = supports(*operands)
    if not support:
        raise KernelInputError(f"sparse24_linear: {support.reason}")


@torch.library.impl(LIBRARY, "sparse24_linear", "CPU")
def _cpu(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    _checked(x, values, indices, bias, activation)
    if values.shape[0]:
        checked_nibbles(values, indices)
    return reference.sparse24_linear(x, values, indices, bias, activation)


@torch.library.impl(LIBRARY, "sparse24_linear", "CUDA")
def _cuda(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    _checked(x, values, indices, bias, activation)
    return dense_linear(x, reference.decompress(values, indices)[:, : x.shape[-1]], bias, activation)


@torch.library.register_fake("recpress::sparse24_linear", lib=LIBRARY)
def _fake(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    _checked(x, values, indices, bias, activation)
    return x.new_empty(*x.shape[:-1], values.shape[0])
