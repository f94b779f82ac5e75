"""A stack of int8 layers as one buffer that the native CPU kernels read: a load step, never stored in an artifact.

The buffer is uint8, little-endian, and starts with a header of 64 bytes and one of 64 bytes a layer
(``native/abi.h`` holds the same structures)::

    magic "RPINT8\\0\\0", version u32, layout u32, layers i32, -, bytes i64, 32 reserved
    n i32, k i32, k_padded i32, activation i32, flags i32, depth i32,
    offsets of weights, sums, scales, bias, wide i64

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

It takes the depth that should run fastest; with depth 1 there is no list. A layer whose inputs stay float
(``weight_only_linear``; bit 1 of its flags, bit 0 tells of a bias) has depth 1 and its weights column by column,
``[columns / 16, k_padded, 16]``, so that they are widened to float32 as they are loaded.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.int8 import sum_problem, weight_problem

ACTIVATIONS = ("none", "relu", "gelu_tanh", "gelu_erf", "sigmoid", "silu")
"""The position of a name is its code in the buffer."""
MAGIC = b"RPINT8\0\0"
VERSION = 2
PANEL, GROUP, STEP = 16, 4, 16
LAYOUT = PANEL << 16 | GROUP << 8 | STEP
MAX_LAYERS = 64
_HEADER = struct.Struct("<8sIIiiq32x")
_LAYER = struct.Struct("<6i5q")
_ALIGN = 64
_HAS_BIAS, _KEEPS_FLOATS = 1, 2
_LIMIT = (2**15 - 1) // 127
# Cycles for 16 columns of 4 k of one row, measured on AVX2 (Zen 3), and what a listed block adds by breaking the loop.
_CYCLES = {1: 2.1, 2: 1.73, 4: 1.5}
_BREAK_CYCLES = 4.0


@dataclass(frozen=True)
class PackedLayer:
    """One layer of a packed buffer, canonical again: int8 ``[N, K]``, float32 ``[N]``, float32 ``[N]`` or None.

    ``depth`` products are added in 16 bits in all blocks but the share ``wide``.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    activation: str
    depth: int
    wide: float
    keeps_floats: bool


def pack(
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    keeps_floats: bool = False,
) -> Tensor:
    """One layer as a packed buffer, uint8 of one dimension; see :func:`pack_stack`."""
    return pack_stack([weight], [weight_scale], [bias], [activation], keeps_floats=[keeps_floats])


def pack_stack(
    weights: list[Tensor],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    *,
    keeps_floats: list[bool] | None = None,
) -> Tensor:
    """A stack of layers as one packed buffer, uint8 of one dimension, on the CPU.

    Args:
        weights: int8 ``[N_i, K_i]`` with ``K_i = N_(i-1)``, 1 to 64 of them.
        weight_scales: float32 ``[N_i]``, finite.
        biases: float32 ``[N_i]`` or None, one a layer.
        activations: names of :data:`ACTIVATIONS`, one a layer.
        keeps_floats: which layers compute as ``weight_only_linear``, their inputs not quantised; None for none.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value.
    """
    keeps_floats = keeps_floats or [False] * len(weights)
    _check_stack(weights, weight_scales, biases, activations, keeps_floats)
    at = _aligned(_HEADER.size + _LAYER.size * len(weights))
    headers, sections = [], []
    stack = zip(weights, weight_scales, biases, activations, keeps_floats, strict=True)
    for weight, scale, bias, activation, floats in stack:
        panels, sums = _panels(weight)
        columns = sums.numel()
        if floats:
            panels = panels.transpose(2, 3).contiguous()
        depth, wide = (1, torch.empty(0, dtype=torch.int32)) if floats else _chains(panels)
        offsets = []
        for section in (panels, sums, _padded(scale, columns), _padded(bias, columns), wide):
            offsets.append(at)
            sections.append((at, section))
            at = _aligned(at + section.numel() * section.element_size())
        k_padded = panels.shape[1] * GROUP
        flags = _HAS_BIAS * (bias is not None) | _KEEPS_FLOATS * floats
        headers.append(_LAYER.pack(*weight.shape, k_padded, ACTIVATIONS.index(activation), flags, depth, *offsets))
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
        _intact(layer.weight.shape[1] == before.weight.shape[0])
    return layers


def widths(packed: Tensor) -> list[int]:
    """K of the first layer and N of each, of an intact buffer."""
    headers = _read_headers(packed)
    return [headers[0][1], *(header[0] for header in headers)]


def _unpack_layer(
    packed: Tensor, n: int, k: int, k_padded: int, activation: int, flags: int, depth: int, *offsets: int
) -> PackedLayer:
    _intact(n >= 1 and k >= 1 and k_padded == -(-k // STEP) * STEP and 0 <= activation < len(ACTIVATIONS))
    _intact(depth in _CYCLES and flags & ~(_HAS_BIAS | _KEEPS_FLOATS) == 0)
    columns = -(-n // PANEL) * PANEL
    count = columns // PANEL
    sizes = (columns * k_padded, columns * 4, columns * 4, columns * 4, (count + 1) * 4 if depth > 1 else 0)
    for begin, size in zip(offsets, sizes, strict=True):
        _intact(begin >= _HEADER.size + _LAYER.size and begin % _ALIGN == 0 and begin + size <= packed.numel())
    panels, _sums, scale, bias, starts = (
        packed[begin : begin + size].clone() for begin, size in zip(offsets, sizes, strict=True)
    )
    floats = bool(flags & _KEEPS_FLOATS)
    panels = panels.view(torch.int8)
    if floats:
        panels = panels.view(columns // PANEL, k_padded, PANEL).permute(0, 2, 1)
    else:
        panels = panels.view(columns // PANEL, k_padded // GROUP, PANEL, GROUP).permute(0, 2, 1, 3)
    return PackedLayer(
        weight=panels.reshape(columns, k_padded)[:n, :k].contiguous(),
        weight_scale=scale.view(torch.float32)[:n],
        bias=bias.view(torch.float32)[:n] if flags & _HAS_BIAS else None,
        activation=ACTIVATIONS[activation],
        depth=depth,
        wide=int(starts.view(torch.int32)[-1]) / (count * k_padded // (GROUP * depth)) if depth > 1 else 1.0,
        keeps_floats=floats,
    )


def _check_stack(
    weights: list[Tensor],
    weight_scales: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    keeps_floats: list[bool],
) -> None:
    lengths = [len(column) for column in (weights, weight_scales, biases, activations, keeps_floats)]
    if len(set(lengths)) != 1 or not 1 <= lengths[0] <= MAX_LAYERS:
        raise KernelInputError(
            f"weights, weight_scales, biases, activations and keeps_floats have {lengths} entries; give 1 to "
            f"{MAX_LAYERS}, as many of each"
        )
    for i, weight in enumerate(weights):
        problem = weight_problem(weight, weight_scales[i], biases[i]) or sum_problem(weight)
        if problem:
            raise KernelInputError(f"layer {i}: {problem}")
        if activations[i] not in ACTIVATIONS:
            raise KernelInputError(f"layer {i}: activation is {activations[i]!r}; allowed are {', '.join(ACTIVATIONS)}")
        if weight.shape[0] == 0:
            raise KernelInputError(f"layer {i}: weight has shape {tuple(weight.shape)}; a packed layer has N >= 1")
        if any(t is not None and not t.is_cpu for t in (weight, weight_scales[i], biases[i])):
            raise KernelInputError(f"layer {i}: operands lie on {weight.device}; packed buffers are for the CPU")
        if not torch.isfinite(weight_scales[i]).all():
            raise KernelInputError(f"layer {i}: weight_scale holds NaN or infinity; quantise the weights again")
        if i and weight.shape[1] != weights[i - 1].shape[0]:
            raise KernelInputError(
                f"layer {i}: weight takes {weight.shape[1]} features and layer {i - 1} gives {weights[i - 1].shape[0]}"
            )


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


def _panels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 ``[N, K]`` as ``(int8 [columns / 16, k_padded / 4, 16, 4], sums int32 [columns])``."""
    n, k = weight.shape
    columns, k_padded = -(-n // PANEL) * PANEL, -(-k // STEP) * STEP
    padded = torch.zeros(columns, k_padded, dtype=torch.int8)
    padded[:n, :k] = weight
    panels = padded.view(columns // PANEL, PANEL, k_padded // GROUP, GROUP).permute(0, 2, 1, 3).contiguous()
    return panels, padded.sum(dim=1, dtype=torch.int32)


def _chains(panels: Tensor) -> tuple[int, Tensor]:
    """The depth and the section ``wide`` of panels int8 ``[P, k_padded / 4, 16, 4]``; depth 1 and an empty section."""
    best = (_CYCLES[1], 1, torch.empty(0, dtype=torch.int32))
    for depth, wide in _wide_blocks(panels).items():
        share = int(wide.sum()) / wide.numel()
        cycles = (1 - share) * _CYCLES[depth] + share * (_CYCLES[1] + _BREAK_CYCLES / depth)
        if cycles < best[0]:
            starts = torch.zeros(panels.shape[0] + 1, dtype=torch.int32)
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
    padded = torch.zeros(columns)
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
