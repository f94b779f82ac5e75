"""``torch.ops.recpress.int8_mlp`` and ``int8_mlp_packed``: a whole stack of layers in one call.

Recommenders are stacks of small layers: at batch 1 a stack costs its calls, not its arithmetic.
"""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.packed import MAX_LAYERS
from recpress_kernels.int8_linear.op import FLOATS, int8_linear, supports
from recpress_kernels.int8_linear.packed import check_packed, dynamic
from recpress_kernels.library import LIBRARY, direct

LIBRARY.define(
    "int8_mlp(Tensor x, Tensor[] weights, Tensor[] weight_scales, Tensor?[] biases, str[] activations) -> Tensor"
)
LIBRARY.define("int8_mlp_packed(Tensor x, Tensor packed, int out_features) -> Tensor")


def int8_mlp(
    x: Tensor,
    weights: list[Tensor],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
) -> Tensor:
    """A stack of :func:`int8_linear` layers: the same bits as one call a layer.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``.
        weights, weight_scales, biases, activations: the operands of int8_linear, one of each a layer, at least one
            layer; layer i takes as many features as layer i - 1 gives.

    Raises:
        KernelInputError: an operand has another dtype, shape or device; the layer is named.
    """
    return torch.ops.recpress.int8_mlp(x, weights, weight_scales, biases, activations)


def int8_mlp_packed(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """:func:`int8_mlp` on one buffer of :func:`recpress_kernels.formats.packed.pack_stack`: the same bits, faster.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``, on the CPU.
        packed: uint8 of one dimension, of this format version.
        out_features: N of the last layer.

    Raises:
        KernelInputError: an operand has another dtype or shape, or packed is of another format.
    """
    if direct(x):
        return _packed(x, packed, out_features)
    return torch.ops.recpress.int8_mlp_packed(x, packed, out_features)


def _check(x: Tensor, weights: list, weight_scales: list, biases: list, activations: list) -> None:
    lengths = [len(weights), len(weight_scales), len(biases), len(activations)]
    if len(set(lengths)) != 1 or not weights:
        raise KernelInputError(
            f"int8_mlp: weights, weight_scales, biases and activations have {lengths} entries; give as many of each, "
            "at least 1"
        )
    if x.dtype not in FLOATS:
        raise KernelInputError(f"int8_mlp: x is {x.dtype}; give float32, float16 or bfloat16")
    for i, layer in enumerate(zip(weights, weight_scales, biases, activations, strict=True)):
        support = supports(x, *layer)
        if not support:
            raise KernelInputError(f"int8_mlp: layer {i}: {support.reason}")
        # What the next layer is checked against: shape, dtype and device, no memory.
        x = x.new_empty(1).expand(*x.shape[:-1], layer[0].shape[0])


@torch.library.impl(LIBRARY, "int8_mlp", "CPU")
@torch.library.impl(LIBRARY, "int8_mlp", "CUDA")
def _layers(
    x: Tensor,
    weights: list[Tensor],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
) -> Tensor:
    _check(x, weights, weight_scales, biases, activations)
    for layer in zip(weights, weight_scales, biases, activations, strict=True):
        x = int8_linear(x, *layer)
    return x


@torch.library.register_fake("recpress::int8_mlp", lib=LIBRARY)
def _fake(
    x: Tensor,
    weights: list[Tensor],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
) -> Tensor:
    _check(x, weights, weight_scales, biases, activations)
    return x.new_empty(*x.shape[:-1], weights[-1].shape[0])


@torch.library.impl(LIBRARY, "int8_mlp_packed", "CPU")
def _packed(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    return dynamic("int8_mlp_packed", x, packed, out_features, MAX_LAYERS)


@torch.library.register_fake("recpress::int8_mlp_packed", lib=LIBRARY)
def _packed_fake(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    check_packed("int8_mlp_packed", x, packed, out_features)
    return x.new_empty(*x.shape[:-1], out_features)
