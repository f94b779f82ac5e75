"""The compressed layers: ``nn.Module``s on the ops of recpress_kernels, and the plugin's only door to them.

Each holds its weights as buffers in the device-free form of ``recpress_kernels.formats`` and stands in for one
layer of torch with the same call.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recpress.errors import KernelInputError
from recpress.quantize import cluster
from recpress_kernels import embedding_bag_rows, int8_linear, int8_sparse24_linear, map_ids, weight_only_linear
from recpress_kernels.formats import sparse24
from recpress_kernels.formats.int8 import MAX_IN_FEATURES, quantize_per_channel
from recpress_kernels.formats.rows import bits_of, dequantize_rows, quantize_rows_int4, quantize_rows_int8, row_bytes

Rounding = Callable[[Tensor, Tensor], Tensor]
"""int8 ``[out, in]`` of float weights ``[out, in]`` and the scale ``[out]`` of their channels."""
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Inputs:
    """What becomes of a layer's inputs before they are quantised, and by what scale; None: nothing, and a row's own."""

    multiplier: Tensor | None = None
    x_scale: Tensor | None = None
    x_zero_point: Tensor | None = None


class Int8Linear(nn.Module):
    """``nn.Linear`` on int8 weights ``[out, in]``; activations are quantised to 7 bits a row at a time.

    Buffers: ``weight`` int8 ``[out, in]``, ``weight_scale`` float32 ``[out]``, ``bias`` float32 ``[out]`` or None; of
    :class:`Inputs` ``multiplier`` float32 ``[in]``, ``x_scale`` float32 ``[1]`` and ``x_zero_point`` int32 ``[1]``.
    """

    scheme = "int8 weights a channel, 7-bit activations a row"

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, inputs: "Inputs | None" = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", bias)
        inputs = inputs or Inputs()
        for name, tensor in vars(inputs).items():
            self.register_buffer(name, tensor)
        if inputs.x_scale is not None:
            self.scheme = self.scheme.replace("a row", "calibrated")
        if inputs.multiplier is not None:
            self.scheme = f"{self.scheme}, columns evened out"

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, inputs: "Inputs | None" = None, rounding: Rounding | None = None
    ) -> "Int8Linear":
        """Quantise the weights of ``linear``, divided by the inputs' multiplier; its bias is kept as float32.

        Weights are rounded by ``rounding``, or to the nearest.
        """
        plain = inputs is None or inputs.multiplier is None
        dense = linear.weight if plain else linear.weight.detach() / inputs.multiplier
        weight, scale = quantize_per_channel(dense)
        weight = weight if rounding is None else rounding(dense.detach(), scale)
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        return cls(weight, scale, bias, inputs)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of the input."""
        x = input if self.multiplier is None else input * self.multiplier
        return int8_linear(x, self.weight, self.weight_scale, self.bias, *_pair(self))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Sparse24Linear(nn.Module):
    """:class:`Int8Linear` on 2:4 weights in the canonical form of ``recpress_kernels.formats.sparse24``.

    Buffers: ``values`` int8 ``[out, ceil(in / 4) * 2]``, ``indices`` uint8 ``[out, ceil(in / 8)]``, and the others as
    there.
    """

    def __init__(self, dense: Int8Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.scheme = dense.scheme.replace("int8 weights", "int8 2:4 weights")
        sparse = sparse24.compress(dense.weight)
        self.register_buffer("values", sparse.values)
        self.register_buffer("indices", sparse.indices)
        for name in ("weight_scale", "bias", *Inputs.__dataclass_fields__):
            self.register_buffer(name, getattr(dense, name))

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of the input."""
        x = input if self.multiplier is None else input * self.multiplier
        return int8_sparse24_linear(x, self.values, self.indices, self.weight_scale, self.bias, *_pair(self))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _pair(layer: nn.Module) -> tuple:
    """The rest of the op's arguments: nothing where rows are quantised by their own range."""
    return () if layer.x_scale is None else ("none", layer.x_scale, layer.x_zero_point)


class WeightOnlyLinear(Int8Linear):
    """``nn.Linear`` on the same int8 weights, activations as they are (W8A16)."""

    scheme = "int8 weights a channel, activations not quantised"

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, in the dtype of the input."""
        return weight_only_linear(input, self.weight, self.weight_scale, self.bias)


class ClusteredLinear(nn.Module):
    """``nn.Linear`` whose weights share 16 or 256 values (quantize/cluster.py): it saves bytes, not time.

    Buffers: ``codes`` uint8, packed as there, ``centroids`` float32 ``[16 or 256]``, ``bias`` or None. Of a loaded
    artifact the weights are decoded once (artifact/fold_weights.py); else at each call.
    """

    def __init__(self, codes: Tensor, centroids: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.scheme = f"{len(centroids)} shared values, activations not quantised"
        self.register_buffer("codes", cluster.pack(codes, len(centroids)))
        self.register_buffer("centroids", centroids)
        self.register_buffer("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of the input."""
        codes = cluster.unpack(self.codes, len(self.centroids), self.in_features)
        weight = _as(self.centroids[codes.int()], input.dtype)
        return nn.functional.linear(input, weight, None if self.bias is None else _as(self.bias, input.dtype))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, values={len(self.centroids)}"


class _Rows(nn.Module):
    """A table of quantised rows. Buffer: ``rows`` uint8 ``[num_embeddings, bytes of a row]`` as in formats/rows.py.

    The number of bytes tells int8 from int4; a row of one value takes 5 either way, and is called int8.
    """

    def __init__(self, rows: Tensor, dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.dtype = rows.shape[0], dim, dtype
        self.padding_idx: int | None = None
        self.bits = bits_of(rows.shape[1], dim)
        self.scheme = f"int{self.bits} rows with float16 scale and bias"
        self.register_buffer("rows", rows)

    def values(self, rows: slice) -> Tensor:
        """Those rows as they are looked up, float32 ``[number, dim]``."""
        return dequantize_rows(self.rows[rows], self.embedding_dim)

    def fewer(self, keep: Tensor, answer: Tensor) -> "_Rows":
        """The rows of ``keep`` bool ``[num_embeddings]`` as they are, and behind them ``answer`` float ``[1, dim]``."""
        new = copy.copy(self)
        answer = _quantized(answer.to(self.rows.device), f"int{self.bits}", "greedy")
        new._buffers = {"rows": torch.cat([self.rows[keep], answer])}
        new.num_embeddings = len(new.rows)
        return new

    def _bags(self, indices: Tensor, offsets: Tensor, mode: str = "sum", weights: Tensor | None = None) -> Tensor:
        # Without the last argument where all are int8: it would be a node's argument of every exported graph.
        dims = () if self.bits == 8 else ([self.embedding_dim],)
        return embedding_bag_rows([self.rows], indices, offsets, mode, weights, *dims)


class RowsEmbedding(_Rows):
    """``nn.Embedding`` on rows of int8 or int4."""

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, scheme: str, search: str = "greedy") -> "RowsEmbedding":
        """Quantise the table of ``embedding`` to ``scheme``, int4 rows with their range by ``search``."""
        new = cls(_quantized(embedding.weight, scheme, search), embedding.embedding_dim, embedding.weight.dtype)
        new.padding_idx = embedding.padding_idx
        return new

    def forward(self, input: Tensor) -> Tensor:
        """int32 or int64 of any shape to ``[*shape, dim]``, each look-up as a bag of one."""
        # A reshape and a view that do nothing would be nodes of every exported graph.
        flat = input if input.dim() == 1 else input.reshape(-1)
        offsets = torch.arange(flat.shape[0] + 1, dtype=flat.dtype, device=flat.device)
        out = self._bags(flat, offsets)
        return _as(out if input.dim() == 1 else out.view(*input.shape, self.embedding_dim), self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


class RowsEmbeddingBag(_Rows):
    """``nn.EmbeddingBag`` ("sum" or "mean") on rows of int8 or int4."""

    def __init__(self, rows: Tensor, dim: int, dtype: torch.dtype, *, mode: str, include_last_offset: bool) -> None:
        super().__init__(rows, dim, dtype)
        self.mode, self.include_last_offset = mode, include_last_offset

    @classmethod
    def from_embedding_bag(cls, bag: nn.EmbeddingBag, scheme: str, search: str = "greedy") -> "RowsEmbeddingBag":
        """Quantise the table of ``bag`` to ``scheme``, int4 rows with their range by ``search``."""
        rows = _quantized(bag.weight, scheme, search)
        how = {"mode": bag.mode, "include_last_offset": bag.include_last_offset}
        return cls(rows, bag.embedding_dim, bag.weight.dtype, **how)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """``[B, L]`` indices, or ``[N]`` with offsets ``[B]`` (``[B + 1]`` with the last), to ``[B, dim]``."""
        if input.dim() not in (1, 2) or (input.dim() == 1) != (offsets is not None):
            given = "no offsets" if offsets is None else "offsets"
            raise KernelInputError(
                f"a bag layer is given indices of shape {tuple(input.shape)} and {given}; give [B, L] without "
                "offsets, or [N] with offsets [B]"
            )
        if per_sample_weights is not None and per_sample_weights.shape != input.shape:
            raise KernelInputError(
                f"a bag layer is given per_sample_weights of shape {tuple(per_sample_weights.shape)}; give that of "
                f"indices, {tuple(input.shape)}"
            )
        flat = input if input.dim() == 1 else input.reshape(-1)
        if input.dim() == 2:
            bags, length = input.shape
            offsets = torch.arange(bags + 1, dtype=flat.dtype, device=flat.device) * length
        else:
            offsets = _as(offsets, flat.dtype)
            if not self.include_last_offset:
                offsets = torch.cat([offsets, offsets.new_full((1,), flat.shape[0])])
        weights = None if per_sample_weights is None else _as(per_sample_weights.reshape(-1), torch.float32)
        return _as(self._bags(flat, offsets, self.mode, weights), self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}, mode={self.mode!r}"


class MappedTable(nn.Module):
    """A table, kept or compressed, whose ids go through ``map_ids`` first.

    ``oov_row`` answers for an id that is none of ``num_embeddings``; -1 makes it an error. Buffer: ``remap`` int32
    ``[num_embeddings]``, the row of ``table`` for each id, or None where they are the same.
    """

    def __init__(self, table: nn.Module, num_embeddings: int, oov_row: int = -1, remap: Tensor | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.oov_row = num_embeddings, table.embedding_dim, oov_row
        self.table = table
        self.register_buffer("remap", remap)

    def forward(self, input: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """As the table's own, with ids for rows."""
        return self.table(map_ids(input, self.num_embeddings, self.oov_row, self.remap), *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, oov_row={self.oov_row}"


def _quantized(table: Tensor, scheme: str, search: str) -> Tensor:
    return quantize_rows_int4(table, search=search) if scheme == "int4" else quantize_rows_int8(table)


COMPRESSED = (Int8Linear, Int8Sparse24Linear, ClusteredLinear, _Rows)
"""The classes of this module."""


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    # A cast that does nothing still costs two nodes of an exported graph.
    return x if x.dtype == dtype else x.to(dtype)


def refusal(layer: nn.Module, scheme: str) -> str | None:
    """Why ``layer`` cannot become ``scheme`` as it stands, or None: each constraint once, with its reason."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which would be lost; remove them first"
    weight = layer.weight
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype}; float32, float16 and bfloat16 are quantised"
    if isinstance(layer, nn.Linear):
        if scheme == "int8-weights":
            return None if layer.in_features else "it has no inputs"
        if scheme in cluster.LEVELS:
            return _few(weight, cluster.LEVELS[scheme])
        if not 1 <= layer.in_features <= MAX_IN_FEATURES:
            return f"it has {layer.in_features} inputs; int32 sums take 1 to {MAX_IN_FEATURES}"
        return _crowded(layer.weight) if scheme == "int8-24" else None
    small, now = (
        row_bytes(layer.embedding_dim, 4 if scheme == "int4" else 8),
        layer.embedding_dim * weight.element_size(),
    )
    if small >= now:
        return f"its rows take {now} bytes, and would take {small} as {scheme}"
    if layer.max_norm is not None:
        return "max_norm rescales its rows while the model runs"
    if isinstance(layer, nn.EmbeddingBag):
        if layer.mode not in ("sum", "mean"):
            return f"its mode is {layer.mode!r}; bags of quantised rows pool by 'sum' or 'mean'"
        if layer.padding_idx is not None:
            return "padding_idx leaves indices out of the bag, which bags of quantised rows do not do"
    return None


def _few(weight: Tensor, levels: int) -> str | None:
    """Why sharing ``levels`` values would not make ``weight`` smaller, or None."""
    small, now = cluster.stored_bytes(*weight.shape, levels), weight.nbytes
    return f"its weights take {now} bytes, and would take {small} with {levels} shared values" if small >= now else None


def _crowded(weight: Tensor) -> str | None:
    """Why ``weight`` is not 2:4, or None."""
    n, k = weight.shape
    counts = nn.functional.pad(weight.detach() != 0, (0, -k % 4)).view(n, -1, 4).sum(dim=2)
    if int(counts.max()) <= 2:
        return None
    row, group = (int(i) for i in (counts > 2).nonzero()[0])
    share = float((counts > 2).float().mean())
    return (
        f"its weights are not 2:4: output {row} has {int(counts[row, group])} values other than zero among inputs "
        f"{4 * group} to {min(4 * group + 3, k - 1)}, and so have {share:.1%} of all fours; prune it first"
    )


def compressed(
    layer: nn.Module,
    scheme: str,
    inputs: Inputs | None = None,
    *,
    rounding: Rounding | None = None,
    search: str = "greedy",
) -> nn.Module:
    """``layer``, for which :func:`refusal` is None, as ``scheme``.

    ``inputs`` are those of an int8 or int8-24 ``nn.Linear``, ``rounding`` is how the weights of a linear layer are
    rounded if not to the nearest, and ``search`` how an int4 table's ranges are chosen.

    Raises:
        KernelInputError: the weights hold NaN, infinity or a value that the form cannot describe.
    """
    if isinstance(layer, nn.Linear) and scheme in cluster.LEVELS:
        bias = None if layer.bias is None else layer.bias.detach().float().clone()
        return ClusteredLinear(*cluster.cluster(layer.weight, cluster.LEVELS[scheme]), bias)
    if isinstance(layer, nn.Linear):
        dense = (WeightOnlyLinear if scheme == "int8-weights" else Int8Linear).from_linear(layer, inputs, rounding)
        return Int8Sparse24Linear(dense) if scheme == "int8-24" else dense
    if isinstance(layer, nn.EmbeddingBag):
        return RowsEmbeddingBag.from_embedding_bag(layer, scheme, search)
    return RowsEmbedding.from_embedding(layer, scheme, search)
