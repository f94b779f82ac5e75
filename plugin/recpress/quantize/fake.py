"""Layers that compute in training what their compressed forms will compute: fake quantisation.

Each is a subclass of the torch layer that it stands for, with the same parameters, and rounds as the ops of
recpress_kernels do: integers first, held as floats, then their scales in the order of the op's epilogue. Up to 1,040
inputs the sums of integers are exact in float32, so that the forward is that of the op but for a fused multiplication
in its last step; beyond, a partial sum over 2^24 may be rounded.

Rounding has no useful gradient. It is taken as the identity within the range that is represented and as zero beyond
(the straight-through estimator: Y. Bengio et al. 2013, arXiv 1308.3432; clipped, B. Jacob et al. 2018, arXiv
1712.05877). Where the range is found anew from the very values, nothing lies beyond. With v a value, s its scale and
lo, hi the ends of the integers::

    c = clamp(v / s, lo, hi)         v' = s * rne(c)         dv'/dv = 1 where lo <= v / s <= hi, else 0

Learned scales take the gradient that this gives s too (LSQ: S. K. Esser et al. 2020, arXiv 1902.08153), times
``1 / sqrt(N * hi)`` with N the values that share the scale, hi the largest integer::

    dv'/ds = rne(c) - v / s          where lo <= v / s <= hi, else lo or hi
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from recpress.errors import UnsupportedLayerError
from recpress.quantize import cluster
from recpress_kernels.formats.affine import ACTIVATION_LEVELS, affine
from recpress_kernels.formats.int8 import QMAX, quantize_per_channel
from recpress_kernels.formats.rows import dequantize_rows

RowQuantizer = Callable[[Tensor], Tensor]
"""``quantize_rows_int8`` or ``quantize_rows_int4`` of ``recpress_kernels.formats.rows``, with its options bound."""
LINEAR_SCHEMES = ("int8", "int8-24", "int8-weights")
SMALLEST = torch.finfo(torch.float32).tiny
"""What a learned scale is kept from falling below: quantisation has no meaning for scales that are not positive."""


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, _x: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(_ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient goes to ``x`` of the same shape as it is."""
    return _StraightThrough.apply(x, value)


def clipped_integers(x: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """``rne(clamp(x / scale, low, high))`` as floats, with the gradients on top of this file for x and scale.

    Times ``scale`` it is fake-quantised x.
    """
    clamped = torch.clamp(x / scale, low, high)
    return straight_through(clamped, torch.round(clamped.detach()))


def learned(scale: Tensor, values: int, largest: int) -> Tensor:
    """A learned ``scale``, kept positive, with LSQ's factor on its gradient; ``values`` share each of its elements."""
    return _ScaledGradient.apply(scale, 1 / math.sqrt(values * largest)).clamp(min=SMALLEST)


def row_integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """``q - zero`` and the scale ``[..., 1]``, float32: each row of ``x`` ``[..., K]`` by its own range to 7 bits."""
    with torch.no_grad():
        scale, zero = affine(x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True), ACTIVATION_LEVELS)
    steps = x / scale
    with torch.no_grad():
        q = torch.round(steps).add_(zero).clamp_(0, ACTIVATION_LEVELS - 1).sub_(zero)
    return straight_through(steps, q), scale


def _check_folded(layer: nn.Module, input: Tensor) -> None:
    if layer.folded and input.dim() != 2:
        raise UnsupportedLayerError(
            f"a linear layer into which the BatchNorm1d after it was folded is given inputs {tuple(input.shape)}; "
            "that is the same for two dimensions alone: keep this layer by an override"
        )


class FakeLinear(nn.Linear):
    """``nn.Linear`` as it will be once compressed to one of :data:`LINEAR_SCHEMES`.

    Parameters: ``weight`` and ``bias``, those of the layer that it is made of; with learned scales ``weight_scale``
    float32 ``[out]`` and, where the inputs have a calibrated range, ``x_scale`` float32 ``[1]``. Buffers: of the
    calibrated inputs ``multiplier``, ``x_scale`` (unless learned) and ``x_zero_point``, as
    ``recpress.layers.Int8Linear`` has them. Weights of ``"int8-24"`` that are zero stay so.
    """

    def __init__(
        self, linear: nn.Linear, scheme: str, *, inputs: dict[str, Tensor | None], learn_scales: bool, folded: bool
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scheme, self.folded = scheme, folded
        mask = (linear.weight != 0).to(linear.weight.dtype) if scheme == "int8-24" else None
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("multiplier", inputs.get("multiplier"))
        x_scale = inputs.get("x_scale")
        if learn_scales and x_scale is not None:
            self.x_scale = nn.Parameter(x_scale.clone())
        else:
            self.register_buffer("x_scale", x_scale)
        self.register_buffer("x_zero_point", inputs.get("x_zero_point"))
        scale = quantize_per_channel(self._dense())[1] if learn_scales else None
        self.register_parameter("weight_scale", None if scale is None else nn.Parameter(scale))

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of the input.

        Raises:
            UnsupportedLayerError: a batch norm was folded into the layer, and the input has not two dimensions.
        """
        _check_folded(self, input)
        with torch.autocast(input.device.type, enabled=False):
            weight, weight_scale = self.integer_weight()
            inputs, scale = self._integer_inputs(input)
            y = functional.linear(inputs, weight)
            y = (y if scale is None else y * scale) * weight_scale
            return (y if self.bias is None else y + self.bias.float()).to(input.dtype)

    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Whole numbers ``[out, in]`` and their scale ``[out]``, float32."""
        dense = self._dense()
        if self.weight_scale is None:
            q, scale = quantize_per_channel(dense)
            return straight_through(dense.float() / scale[:, None], q.float()), scale
        scale = learned(self.weight_scale, self.in_features, QMAX)
        return clipped_integers(dense.float(), scale[:, None], -QMAX, QMAX), scale

    def input_pair(self) -> tuple[Tensor, Tensor] | None:
        """The calibrated scale and zero point of the inputs; None where each row has its own."""
        if self.x_scale is None:
            return None
        return self.x_scale.clamp(min=SMALLEST), self.x_zero_point

    def _dense(self) -> Tensor:
        weight = self.weight if self.mask is None else self.weight * self.mask
        return weight if self.multiplier is None else weight / self.multiplier

    def _integer_inputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = x if self.multiplier is None else x * self.multiplier
        if self.scheme == "int8-weights":
            return x.float(), None
        if self.x_scale is None:
            return row_integers(x.float())
        largest, zero = ACTIVATION_LEVELS - 1, self.x_zero_point
        scale = self.x_scale
        if isinstance(scale, nn.Parameter):
            scale = learned(scale, x.shape[-1], largest)
        return clipped_integers(x.float(), scale, -zero, largest - zero), scale


class FakeClusteredLinear(nn.Linear):
    """``nn.Linear`` whose weights share centroids, which are trained: each takes the sum of its weights' gradients.

    Parameters: ``centroids`` float32 ``[16 or 256]``, ``bias``. Buffers: ``codes`` int32 ``[out, in]``, which stay, and
    ``moves`` float32, 0 for a centroid that is zero: weights that were pruned stay so.
    """

    def __init__(self, linear: nn.Linear, levels: int, *, folded: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        codes, centroids = cluster.cluster(linear.weight, levels)
        self.weight, self.bias, self.folded = None, linear.bias, folded
        self.centroids = nn.Parameter(centroids)
        self.register_buffer("codes", codes.int())
        self.register_buffer("moves", (centroids != 0).float())

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of the input.

        Raises:
            UnsupportedLayerError: as :class:`FakeLinear`.
        """
        _check_folded(self, input)
        weight = self.values()[self.codes].to(input.dtype)
        return functional.linear(input, weight, None if self.bias is None else self.bias.to(input.dtype))

    def values(self) -> Tensor:
        """What the weights share, float32."""
        return self.centroids * self.moves


class FakeEmbedding(nn.Embedding):
    """``nn.Embedding`` whose rows are quantised by ``quantize`` as they are looked up; it holds no other rows."""

    def __init__(self, embedding: nn.Embedding, quantize: RowQuantizer) -> None:
        super().__init__(
            embedding.num_embeddings,
            embedding.embedding_dim,
            embedding.padding_idx,
            embedding.max_norm,
            embedding.norm_type,
            embedding.scale_grad_by_freq,
            embedding.sparse,
            _weight=embedding.weight,
        )
        self.weight, self.quantize = embedding.weight, quantize

    def forward(self, input: Tensor) -> Tensor:
        """Whole numbers of any shape to ``[*shape, dim]``."""
        return fake_rows(super().forward(input), self.weight, input, self.quantize)


class FakeEmbeddingBag(nn.EmbeddingBag):
    """``nn.EmbeddingBag`` ("sum" or "mean") whose rows are quantised by ``quantize`` as they are looked up."""

    def __init__(self, bag: nn.EmbeddingBag, quantize: RowQuantizer) -> None:
        super().__init__(
            bag.num_embeddings,
            bag.embedding_dim,
            bag.max_norm,
            bag.norm_type,
            bag.scale_grad_by_freq,
            bag.mode,
            bag.sparse,
            bag.weight,
            bag.include_last_offset,
            bag.padding_idx,
        )
        self.weight, self.quantize = bag.weight, quantize

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """``[B, L]`` indices, or ``[N]`` with offsets, to ``[B, dim]``, as ``nn.EmbeddingBag`` takes them."""
        flat = input.reshape(-1)
        looked_up = functional.embedding(
            flat, self.weight, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
        )
        rows = fake_rows(looked_up, self.weight, flat, self.quantize)
        return functional.embedding_bag(
            torch.arange(len(rows), device=rows.device, dtype=input.dtype).view(input.shape),
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
        )


def fake_rows(looked_up: Tensor, table: Tensor, indices: Tensor, quantize: RowQuantizer) -> Tensor:
    """``looked_up``, the rows ``indices`` of ``table``, as the quantised table gives them back, in their dtype.

    Each row that occurs is quantised once, and no other: a large table costs nothing, and the greedy search, some
    3 us a row, does not go over a batch's repetitions.
    """
    with torch.no_grad():
        used, places = torch.unique(indices, return_inverse=True)
        values = dequantize_rows(quantize(table[used]), table.shape[1])[places]
    return straight_through(looked_up, values.to(looked_up.dtype))
