"""``torch.ops.recpress.sparse24_linear_fragments``: the op on a weight packed for a GPU's sparse tensor cores."""

from collections.abc import Callable

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import sparse24_gpu as order
from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.formats.sparse24_gpu import FragmentWeight
from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_linear.op import activation_problem, device_problem, rows_of
from recpress_kernels.int8_sparse24_linear.launch import gluon
from recpress_kernels.library import LIBRARY
from recpress_kernels.sparse24_linear.op import bias_problem, dense_linear, x_problem
from recpress_kernels.support import Support

_OP = "sparse24_linear_fragments"

LIBRARY.define(
    "sparse24_linear_fragments(Tensor x, Tensor values, Tensor metadata, int out_features, Tensor? bias=None, "
    "str activation='none') -> Tensor"
)


def sparse24_linear_fragments(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """:func:`sparse24_linear` on ``formats.sparse24_gpu.pack(values, indices).operands()``, sums in float32.

    Args:
        x: float16 or bfloat16 ``[..., K]``, K at least 1.
        values: of the dtype of x, ``[2 S, T, 32, 8]`` with S = ceil(K / 64) and T = ceil(N / 16), contiguous.
        metadata: int32 ``[S, T, 32]``, contiguous.
        out_features: N, which padding hides.
        bias: float32 or of the dtype of x, ``[N]``, or None.
        activation: as for sparse24_linear.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or order in memory.
    """
    return torch.ops.recpress.sparse24_linear_fragments(x, values, metadata, out_features, bias, activation)


def supports(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Support:
    """Whether the op takes these operands, and the form that runs them: sparse, or unpacked and dense, and why."""
    found = _problem(x, values, metadata, out_features, bias, activation)
    return Support(False, found) if found else described(x.device)


def form(device: torch.device, asked: Callable[[Device], Support] = gluon) -> Support:
    """Whether a kernel runs fragments on ``device``, which, or why not; ``asked``: what launch.py says of GPUs."""
    if device.type != "cuda":
        return Support(False, f"fragments are for GPUs and x lies on {device}")
    from recpress_kernels.int8_linear.cuda import device_facts  # on first use: triton exists on Linux alone

    return asked(device_facts(device))


def described(device: torch.device, asked: Callable[[Device], Support] = gluon) -> Support:
    """What runs on ``device``, as the ops' ``supports`` say it of operands that they take."""
    sparse = form(device, asked)
    return sparse if sparse else Support(True, f"unpacked at each call, then dense, slowly: {sparse.reason}")


def fragments_problem(x: Tensor, weight: FragmentWeight) -> str:
    """What keeps ``weight`` from being in fragment order and of x's K; empty where nothing does."""
    if weight.out_features < 1:
        return f"out_features is {weight.out_features}; give the N of the packed weight"
    steps = -(-x.shape[-1] // order.STEP)
    if weight.metadata.dim() == 3 and weight.metadata.shape[0] != steps:
        given = f"x has K = {x.shape[-1]} and the packed weight {weight.metadata.shape[0]} steps of {order.STEP} inputs"
        return f"{given}; give the x or the weight of the other's K"
    return order.problem(weight)


def padded_k(x: Tensor) -> int:
    """K of x with the zeros that end the weight's last group of four."""
    return -(-x.shape[-1] // 4) * 4


def _problem(
    x: Tensor, values: Tensor, metadata: Tensor, out_features: int, bias: Tensor | None, activation: str
) -> str:
    if found := x_problem(x):
        return found
    if values.dtype != x.dtype or values.dim() != 4 or not values.is_contiguous():
        given = f"values is {values.dtype} of shape {tuple(values.shape)}"
        return f"{given}; give what pack() made of {x.dtype} values, as its operands() return it, contiguous"
    return (
        fragments_problem(x, _weight(x, values, metadata, out_features))
        or bias_problem(x, bias, out_features)
        or activation_problem(activation)
        or device_problem(x, values, metadata, bias)
    )


def _weight(x: Tensor, values: Tensor, metadata: Tensor, out_features: int) -> FragmentWeight:
    return FragmentWeight(values.view(torch.int32), metadata, None, out_features, padded_k(x), x.dtype)


def _checked(x: Tensor, values: Tensor, metadata: Tensor, out_features: int, *rest) -> FragmentWeight:
    if found := _problem(x, values, metadata, out_features, *rest):
        raise KernelInputError(f"{_OP}: {found}")
    return _weight(x, values, metadata, out_features)


@torch.library.impl(LIBRARY, "sparse24_linear_fragments", "CPU")
def _unpacked(
    x: Tensor, values: Tensor, metadata: Tensor, out_features: int, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    weight = _checked(x, values, metadata, out_features, bias, activation)
    return dense_linear(x, decompress(Sparse24(*order.unpack(weight), x.shape[-1])), bias, activation)


@torch.library.impl(LIBRARY, "sparse24_linear_fragments", "CUDA")
def _cuda(
    x: Tensor, values: Tensor, metadata: Tensor, out_features: int, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    if not form(x.device):
        return _unpacked(x, values, metadata, out_features, bias, activation)
    from recpress_kernels.sparse24_linear import cuda  # on first use: triton exists on Linux alone

    weight = _checked(x, values, metadata, out_features, bias, activation)
    with torch.cuda.device_of(x):
        y = cuda.sparse24_linear(rows_of(x), weight, None if bias is None else bias.contiguous(), activation)
    return y.view(*x.shape[:-1], out_features)


@torch.library.register_fake("recpress::sparse24_linear_fragments", lib=LIBRARY)
def _fake(
    x: Tensor, values: Tensor, metadata: Tensor, out_features: int, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    _checked(x, values, metadata, out_features, bias, activation)
    return x.new_empty(*x.shape[:-1], out_features)
