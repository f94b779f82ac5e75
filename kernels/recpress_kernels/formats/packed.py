"""A stack of int8 layers as one buffer that the native CPU kernels read: a load step, never stored in an artifact.

The buffer is uint8, little-endian, and starts with a header of 64 bytes and one of 128 bytes a layer
(``native/abi.h`` holds the same structures)::

    magic "RPINT8\\0\\0", version u32, layout u32, layers i32, -, bytes i64, 32 reserved
    n i32, k i32, k_padded i32, activation i32, flags i32, depth i32,
    offsets of weights, sums, scales, bias, wide i64, x_scale f32, x_zero_point i32, 56 reserved

Each section begins at a multiple of 64 bytes. Columns and k are padded to multiples of 16, with zeros::

    weights  int8    [columns / 16, k_padded / 4, 16, 4]     16 columns of 4 consecutive k lie together
    sums     int32   [columns]                               sum_k w[n, k], which takes the zero point out
    scales   float32 [columns]
    bias     float32 [columns]

Activations are 0..127, so a ``vpmaddubsw`` product (two weights) fits in 16 bits, and ``depth`` of them, 2 or 4, may be
added there before they are widened, for depth + 1 multiplications in place of 2 * depth, wherever the 2 * depth
weights that meet allow it: in a block of 4 * depth k those of k = 4 g + {2 i, 2 i + 1} for all of its groups g, whose
positive ones must add up to at most 258, and the negative ones too. Weights of 7 bits, ``|q| <= 63``, always allow
depth 2 and nearly always 4; weights of 8 bits nearly always allow 2, since few are near the largest of their channel.
Packing looks at every such sum, and lists the blocks whose products must be widened one by one::

    wide     int32   [columns / 16 + 1] where each panel's list begins, the lists of blocks after them

It takes the depth that should run fastest; with depth 1 there is no list.

A layer may be 2:4 (flag 2): its weights then lie as packed_sparse24.py tells, its depth is 1 or 2, and its blocks are
of 8 * depth k. A layer may keep its inputs as floats (flag 4, ``weight_only_linear``): its depth is 1, and its weights
lie column by column, ``[columns / 16, k_padded, 16]``, so that they are widened to float32 as they are loaded. All
three kinds may stand in one stack.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats import packed_sparse24, sparse24
from recpress_kernels.formats.affine import pair_problem, pair_value_problem
from recpress_kernels.formats.int8 import layer_problem, sum_problem, weight_problem
from recpress_kernels.formats.sparse24 import Sparse24

ACTIVATIONS = ("none", "relu", "gelu_tanh", "gelu_erf", "sigmoid", "silu")
"""The position of a name is its code in the buffer."""
MAGIC = b"RPINT8\0\0"
VERSION = 3
PANEL, GROUP, STEP = 16, 4, 16
LAYOUT = PANEL << 16 | GROUP << 8 | STEP
MAX_LAYERS = 64
_HEADER = struct.Struct("<8sIIiiq32x")
_LAYER = struct.Struct("<6i5qfi56x")
_ALIGN = 64
_HAS_BIAS, _SPARSE24, _KEEPS_FLOATS = 1, 2, 4
_LIMIT = (2**15 - 1) // 127
# Cycles for 16 columns of 4 k of one row, measured on AVX2 (Zen 3; 2:4 on Zen 4), and what a listed block adds by
# breaking the loop.
_CYCLES = {1: 2.1, 2: 1.73, 4: 1.5}
_SPARSE24_CYCLES = {1: 1.48, 2: 1.31}
_BREAK_CYCLES = 4.0


Pair = tuple[Tensor, Tensor]
"""A scale, float32 of one element, and a zero point, int32 of one element."""


@dataclass(frozen=True)
class PackedLayer:
    """One layer of a packed buffer, canonical again: int8 ``[N, K]`` or 2:4, float32 ``[N]``, float32 ``[N]`` or None.

    ``depth`` products are added in 16 bits in all blocks but the share ``wide``. ``x_pair`` is the calibrated scale and
    zero point of its inputs, None where each row is quantised by its own range.
    """

    weight: Tensor | Sparse24
    weight_scale: Tensor
    bias: Tensor | None
    activation: str
    depth: int
    wide: float
    keeps_floats: bool
    x_pair: Pair | None

    @property
    def dense_weight(self) -> Tensor:
        """int8 ``[N, K]``, decompressed where it is 2:4."""
        return sparse24.decompress(self.weight) if isinstance(self.weight, Sparse24) else self.weight

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return _shape(self.weight)


def pack(
    weight: Tensor | Sparse24,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    keeps_floats: bool = False,
    x_pair: Pair | None = None,
) -> Tensor:
    """One layer as a packed buffer, uint8 of one dimension; see :func:`pack_stack`."""
    return pack_stack([weight], [weight_scale], [bias], [activation], keeps_floats=[keeps_floats], x_pairs=[x_pair])


def pack_stack(
    weights: list[Tensor | Sparse24],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    *,
    keeps_floats: list[bool] | None = None,
    x_pairs: list[Pair | None] | None = None,
) -> Tensor:
    """A stack of layers as one packed buffer, uint8 of one dimension, on the CPU.

    Args:
        weights: int8 ``[N_i, K_i]`` or 2:4 in canonical form, with ``K_i = N_(i-1)``, 1 to 64 of them.
        weight_scales: float32 ``[N_i]``, finite.
        biases: float32 ``[N_i]`` or None, one a layer.
        activations: names of :data:`ACTIVATIONS`, one a layer.
        keeps_floats: which layers compute as ``weight_only_linear``, their inputs not quantised; None for none.
        x_pairs: calibrated scales, positive and finite, and zero points, 0 to 127, of the layers' inputs; None where
            each row is quantised by its own range.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value.
    """
    keeps_floats, x_pairs = keeps_floats or [False] * len(weights), x_pairs or [None] * len(weights)
    _check_stack(weights, weight_scales, biases, activations, keeps_floats, x_pairs)
    at = _aligned(_HEADER.size + _LAYER.size * len(weights))
    headers, sections = [], []
    stack = zip(weights, weight_scales, biases, activations, keeps_floats, x_pairs, strict=True)
    for weight, scale, bias, activation, floats, x_pair in stack:
        n, k = _shape(weight)
        columns = -(-n // PANEL) * PANEL
        sparse = isinstance(weight, Sparse24)
        panels, sums, depth, wide = _sections(weight, floats)
        offsets = []
        for section in (panels, *(_padded(vector, columns) for vector in (sums, scale, bias)), wide):
            offsets.append(at)
            sections.append((at, section))
            at = _aligned(at + section.numel() * section.element_size())
        flags = _HAS_BIAS * (bias is not None) | _SPARSE24 * sparse | _KEEPS_FLOATS * floats
        pair = (0.0, 0) if x_pair is None else (part.item() for part in x_pair)
        headers.append(_LAYER.pack(n, k, _k_padded(k), ACTIVATIONS.index(activation), flags, depth, *offsets, *pair))
    front = _HEADER.pack(MAGIC, VERSION, LAYOUT, len(weights), 0, at) + b"".join(headers)
    packed = torch.zeros(at, dtype=torch.uint8)
    packed[: len(front)] = torch.frombuffer(bytearray(front), dtype=torch.uint8)
    for begin, section in sections:
        data = section.reshape(-1).view(torch.uint8)
        packed[begin : begin + data.numel()] = data
    return packed


def unpack(packed: Tensor) -> list[PackedLayer]:
    """The canonical layers of ``packed``: the exact inverse of :func:`pack_stack`.

    Raises:
        KernelInputError: not a buffer of this format and version, or a corrupt one.
    """
    layers = [_unpack_layer(packed, *header) for header in _read_headers(packed)]
    for before, layer in pairwise(layers):
        _intact(layer.shape[1] == before.shape[0])
    return layers


def widths(packed: Tensor) -> list[int]:
    """K of the first layer and N of each, of an intact buffer."""
    headers = _read_headers(packed)
    return [headers[0][1], *(header[0] for header in headers)]


def _unpack_layer(
    packed: Tensor, n: int, k: int, k_padded: int, activation: int, flags: int, depth: int, *rest: float
) -> PackedLayer:
    *offsets, x_scale, x_zero_point = rest
    _intact(n >= 1 and k >= 1 and k_padded == _k_padded(k) and 0 <= activation < len(ACTIVATIONS))
    sparse, floats = bool(flags & _SPARSE24), bool(flags & _KEEPS_FLOATS)
    _intact(not flags & ~(_HAS_BIAS | _SPARSE24 | _KEEPS_FLOATS) and not (sparse and floats))
    _intact(depth in ((1,) if floats else _SPARSE24_CYCLES if sparse else _CYCLES))
    _intact(0 <= x_scale < float("inf") and 0 <= x_zero_point <= 127 and not (floats and x_scale))
    columns = -(-n // PANEL) * PANEL
    count = columns // PANEL
    weights = count * (k_padded // packed_sparse24.UNIT) * packed_sparse24.UNIT_BYTES if sparse else columns * k_padded
    sizes = (weights, columns * 4, columns * 4, columns * 4, (count + 1) * 4 if depth > 1 else 0)
    for begin, size in zip(offsets, sizes, strict=True):
        _intact(begin >= _HEADER.size + _LAYER.size and begin % _ALIGN == 0 and begin + size <= packed.numel())
    panels, _sums, scale, bias, starts = (
        packed[begin : begin + size].clone() for begin, size in zip(offsets, sizes, strict=True)
    )
    if sparse:
        weight = packed_sparse24.unpack(panels.view(count, -1, packed_sparse24.UNIT_BYTES), n, k)
        _intact(weight is not None)
    else:
        panels = panels.view(torch.int8)
        if floats:
            columns_of = panels.view(count, k_padded, PANEL).permute(0, 2, 1)
        else:
            columns_of = panels.view(count, k_padded // GROUP, PANEL, GROUP).permute(0, 2, 1, 3)
        weight = columns_of.reshape(columns, k_padded)[:n, :k].contiguous()
    block = depth * (8 if sparse else GROUP)
    return PackedLayer(
        weight=weight,
        weight_scale=scale.view(torch.float32)[:n],
        bias=bias.view(torch.float32)[:n] if flags & _HAS_BIAS else None,
        activation=ACTIVATIONS[activation],
        depth=depth,
        wide=int(starts.view(torch.int32)[-1]) / (count * k_padded // block) if depth > 1 else 1.0,
        keeps_floats=floats,
        x_pair=(torch.tensor([x_scale]), torch.tensor([x_zero_point], dtype=torch.int32)) if x_scale else None,
    )


def _sections(weight: Tensor | Sparse24, floats: bool) -> tuple[Tensor, Tensor, int, Tensor]:
    """The weights as they lie in the buffer, their sums int32 ``[N]``, the depth and the section ``wide``."""
    if isinstance(weight, Sparse24):
        panels = packed_sparse24.pack(weight)
        depth, wide = _chains({2: packed_sparse24.wide_units(panels, _LIMIT)}, _SPARSE24_CYCLES, 2)
        return panels, weight.values.sum(dim=1, dtype=torch.int32), depth, wide
    panels, sums = _panels(weight), weight.sum(dim=1, dtype=torch.int32)
    if floats:
        return panels.transpose(2, 3).contiguous(), sums, 1, torch.empty(0, dtype=torch.int32)
    return panels, sums, *_chains(_wide_blocks(panels), _CYCLES, 1)


def _shape(weight: Tensor | Sparse24) -> tuple[int, int]:
    if isinstance(weight, Sparse24):
        return weight.values.shape[0], weight.in_features
    return tuple(weight.shape)


def _weight_problem(weight: Tensor | Sparse24, scale: Tensor, bias: Tensor | None) -> str:
    if not isinstance(weight, Sparse24):
        return weight_problem(weight, scale, bias) or sum_problem(weight)
    if weight.values.dtype != torch.int8:
        return f"2:4 values are {weight.values.dtype}; give int8"
    return sparse24.problem(weight.values, weight.indices, weight.in_features) or layer_problem(
        *_shape(weight), scale, bias
    )


def _check_stack(
    weights: list[Tensor | Sparse24],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    keeps_floats: list[bool],
    x_pairs: list[Pair | None],
) -> None:
    columns = (weights, weight_scales, biases, activations, keeps_floats, x_pairs)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or not 1 <= lengths[0] <= MAX_LAYERS:
        raise KernelInputError(
            f"weights, weight_scales, biases, activations, keeps_floats and x_pairs have {lengths} entries; give 1 to "
            f"{MAX_LAYERS}, as many of each"
        )
    for i, weight in enumerate(weights):
        if problem := _weight_problem(weight, weight_scales[i], biases[i]):
            raise KernelInputError(f"layer {i}: {problem}")
        if keeps_floats[i] and isinstance(weight, Sparse24):
            raise KernelInputError(f"layer {i}: a 2:4 layer that keeps its inputs as floats has no packed form")
        if x_pairs[i] is not None and keeps_floats[i]:
            raise KernelInputError(
                f"layer {i}: it keeps its inputs as floats and has a calibrated pair; give one of the two"
            )
        x_pair = x_pairs[i] or (None, None)
        if problem := pair_problem("x", *x_pair) or pair_value_problem("x", *x_pair):
            raise KernelInputError(f"layer {i}: {problem}")
        if activations[i] not in ACTIVATIONS:
            raise KernelInputError(f"layer {i}: activation is {activations[i]!r}; allowed are {', '.join(ACTIVATIONS)}")
        n, k = _shape(weight)
        if n == 0:
            raise KernelInputError(f"layer {i}: weight has shape {(n, k)}; a packed layer has N >= 1")
        parts = (weight.values, weight.indices) if isinstance(weight, Sparse24) else (weight,)
        elsewhere = {str(t.device) for t in (*parts, weight_scales[i], biases[i]) if t is not None and not t.is_cpu}
        if elsewhere:
            raise KernelInputError(
                f"layer {i}: operands lie on {', '.join(sorted(elsewhere))}; packed buffers are for the CPU"
            )
        if not torch.isfinite(weight_scales[i]).all():
            raise KernelInputError(f"layer {i}: weight_scale holds NaN or infinity; quantise the weights again")
        if i and k != _shape(weights[i - 1])[0]:
            raise KernelInputError(
                f"layer {i}: weight takes {k} features and layer {i - 1} gives {_shape(weights[i - 1])[0]}"
            )


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


def _k_padded(k: int) -> int:
    return -(-k // STEP) * STEP


def _panels(weight: Tensor) -> Tensor:
    """int8 ``[N, K]`` as int8 ``[columns / 16, k_padded / 4, 16, 4]``."""
    n, k = weight.shape
    columns, k_padded = -(-n // PANEL) * PANEL, _k_padded(k)
    padded = torch.zeros(columns, k_padded, dtype=torch.int8)
    padded[:n, :k] = weight
    return padded.view(columns // PANEL, PANEL, k_padded // GROUP, GROUP).permute(0, 2, 1, 3).contiguous()


def _chains(wide_by_depth: dict[int, Tensor], cycles_of: dict[int, float], units: int) -> tuple[int, Tensor]:
    """The depth that should run fastest and its section ``wide``; depth 1 and an empty section.

    Args:
        wide_by_depth: by depth, which blocks must be widened: bool ``[panels, blocks]``.
        cycles_of: by depth, cycles for 16 columns of 4 k of one row.
        units: how many times 4 k a block of depth 1 has.
    """
    best = (cycles_of[1], 1, torch.empty(0, dtype=torch.int32))
    for depth, wide in wide_by_depth.items():
        share = int(wide.sum()) / wide.numel()
        cycles = (1 - share) * cycles_of[depth] + share * (cycles_of[1] + _BREAK_CYCLES / (depth * units))
        if cycles < best[0]:
            starts = torch.zeros(wide.shape[0] + 1, dtype=torch.int32)
            starts[1:] = wide.sum(dim=1).cumsum(0)
            best = (cycles, depth, torch.cat([starts, wide.nonzero()[:, 1].to(torch.int32)]))
    return best[1:]


def _wide_blocks(panels: Tensor) -> dict[int, Tensor]:
    """By depth, which blocks of ``4 * depth`` k must be widened product by product: bool ``[P, blocks]``."""
    wide = {}
    for sign in (1, -1):
        part = (panels.to(torch.int16) * sign).clamp_(min=0)
        sums = part[..., 0::2] + part[..., 1::2]  # [P, groups, 16, 2], those of one product
        for depth in (2, 4):
            sums = sums[:, 0::2] + sums[:, 1::2]
            over = sums.flatten(2).amax(dim=2) > _LIMIT
            wide[depth] = wide[depth] | over if depth in wide else over
    return wide


def _padded(vector: Tensor | None, columns: int) -> Tensor:
    padded = torch.zeros(columns, dtype=torch.float32 if vector is None else vector.dtype)
    if vector is not None:
        padded[: vector.numel()] = vector
    return padded


def _bytes(packed: Tensor, begin: int, size: int) -> bytes:
    return bytes(packed[begin : begin + size].tolist())


def _intact(good: bool) -> None:
    if not good:
        raise KernelInputError(
            "packed is corrupt: its headers contradict its length or each other; pack the canonical weights again"
        )


def _read_headers(packed: Tensor) -> list[tuple[int, ...]]:
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not packed.is_cpu:
        given = f"{packed.dtype} of shape {tuple(packed.shape)} on {packed.device}"
        raise KernelInputError(f"packed is {given}; give the uint8 buffer that pack() made, on the CPU")
    if packed.numel() < _HEADER.size or _bytes(packed, 0, len(MAGIC)) != MAGIC:
        raise KernelInputError("packed does not begin with a packed buffer's header; give what pack() made")
    _, version, layout, layers, _, size = _HEADER.unpack(_bytes(packed, 0, _HEADER.size))
    if (version, layout) != (VERSION, LAYOUT):
        raise KernelInputError(
            f"packed has format version {version}, layout {layout:#x}; this build reads version {VERSION}, layout "
            f"{LAYOUT:#x}: pack the canonical weights again"
        )
    _intact(size == packed.numel() and 1 <= layers <= MAX_LAYERS and size >= _HEADER.size + layers * _LAYER.size)
    return [_LAYER.unpack(_bytes(packed, _HEADER.size + i * _LAYER.size, _LAYER.size)) for i in range(layers)]
