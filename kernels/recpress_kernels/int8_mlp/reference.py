"""A stack of int8 linear layers, in plain torch: the truth for every device.

``y = layer_L(... layer_1(x))`` where each layer is int8_linear with dynamic quantisation: its rows are quantised anew
by their own range, and what goes from one layer to the next is rounded to the dtype of x, exactly as if the op were
called once a layer.
"""

from torch import Tensor

from recpress_kernels.int8_linear import reference


def int8_mlp(
    x: Tensor,
    weights: list[Tensor],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
) -> Tensor:
    """The op on ``x`` ``[M, K]``: ``[M, N of the last layer]`` in the dtype of x."""
    for layer in zip(weights, weight_scales, biases, activations, strict=True):
        x = reference.int8_linear(x, *layer)
    return x
