"""2:4 weights in the order in which NVIDIA's sparse tensor cores read them: a load step, never stored in an artifact.

Canonical: ``values [out, in / 2]`` (int8, float16, bfloat16) and ``indices`` uint8 ``[out, ceil(in / 8)]``, a nibble
``i0 | i1 << 2`` with ``i0 < i1`` a group of four inputs, even groups in the low nibble. Packed, ``out`` is padded with
zeros to tiles of 16 rows and ``in`` to steps of 64::

    values    int32 [in / k, out / 16, 32, 4]   four registers a lane of one mma.sp of k = 64 (int8) or 32 (16 bits)
    metadata  int32 [in / 64, out / 16, 32]     one register a lane: for int8 one mma.sp, for 16 bits two of them
    sums      int32 [out], int8 alone           sum_k w[o, k], which takes a zero point of the activations out

With g = lane // 4 and t = lane % 4, register ``2 q + h`` of a lane holds row ``g + 8 h`` and, of the values kept there,
the q-th half's t-th word. Metadata of int8: row ``g + 8 (t % 2)``, half ``t // 2`` of k. Of 16 bits: lanes 0 and 1 of
each four hold the quarters of the first mma.sp, 2 and 3 of the second (its selector is 1), row g in the low half and
g + 8 in the high one. It is CUTLASS's order, as torch's ``sparse_semi_structured_from_dense_cutlass`` writes it.

int8 alone: the 16 groups of a step are transposed as a 4 x 4 square. The hardware reads inputs ``4 t + 16 r + j`` for
register r of a lane; so placed, a lane's four registers of x are 16 bytes that lie together, and x stays as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError

LAYOUT = "mma.sp ordered 16x64 v1"
"""Names the device order and its version; a buffer that carries another name is refused."""
ROWS, STEP = 16, 64
VALUE_DTYPES = (torch.int8, torch.float16, torch.bfloat16)
_FIRST_TWO = 0 | 1 << 2  # the nibble of padding: any two places in rising order


@dataclass(frozen=True)
class FragmentWeight:
    """A packed 2:4 weight, on any device; ``dtype`` is that of its values."""

    values: Tensor
    metadata: Tensor
    sums: Tensor | None
    out_features: int
    in_features: int
    dtype: torch.dtype
    layout: str = LAYOUT

    def to(self, device: torch.device | str) -> "FragmentWeight":
        """The same weight on ``device``."""
        sums = None if self.sums is None else self.sums.to(device)
        shape = (self.out_features, self.in_features, self.dtype, self.layout)
        return FragmentWeight(self.values.to(device), self.metadata.to(device), sums, *shape)

    def operands(self) -> tuple:
        """What the ops on fragments take after x: values, metadata, sums of int8, and how many outputs.

        16-bit values are viewed as what they are, so that an op can tell float16 from bfloat16.
        """
        if self.dtype == torch.int8:
            return self.values, self.metadata, self.sums, self.out_features
        return self.values.view(self.dtype), self.metadata, self.out_features


def mma_k(dtype: torch.dtype) -> int:
    """How many inputs one mma.sp takes on values of ``dtype``."""
    return 64 if dtype == torch.int8 else 32


def pack(values: Tensor, indices: Tensor) -> FragmentWeight:
    """The canonical form in fragment order; :func:`unpack` is its exact inverse.

    Raises:
        KernelInputError: operands are not the canonical form, or a nibble does not name two places in rising order.
    """
    nibbles = checked_nibbles(values, indices)
    (n, kept), k = values.shape, 2 * values.shape[1]
    tiles, steps = -(-n // ROWS), -(-k // STEP)
    padded = torch.zeros(tiles * ROWS, steps * STEP // 2, dtype=values.dtype, device=values.device)
    padded[:n, :kept] = values
    places = padded.new_full((tiles * ROWS, steps * STEP // 4), _FIRST_TWO, dtype=torch.uint8)
    places[:n, : k // 4] = nibbles
    groups = padded.view(tiles * ROWS, steps * STEP // 4, 2)
    if values.dtype == torch.int8:
        groups, places = _transpose_groups(groups), _transpose_groups(places)
    return FragmentWeight(
        values=value_words(groups.reshape(tiles * ROWS, -1)),
        metadata=metadata_words(places, values.dtype),
        sums=values.sum(dim=1, dtype=torch.int32) if values.dtype == torch.int8 else None,
        out_features=n,
        in_features=k,
        dtype=values.dtype,
    )


def unpack(weight: FragmentWeight) -> tuple[Tensor, Tensor]:
    """The canonical ``values`` and ``indices`` again.

    Raises:
        KernelInputError: the buffer is of another order or version, or its shapes contradict it.
    """
    check(weight)
    rows = weight.values.shape[1] * ROWS
    words = weight.values.contiguous().view(weight.dtype)  # [steps, tiles, 32, 4 * j]
    steps, tiles, _, each = words.shape
    kept = words.view(steps, tiles, 8, 4, 2, 2, each // 4).permute(1, 5, 2, 0, 4, 3, 6)  # tiles, h, g, steps, q, t, j
    groups = kept.reshape(rows, -1, 2)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=weight.metadata.device)
    places = (weight.metadata[..., None] >> shifts & 15).to(torch.uint8)  # [steps64, tiles, 32, 8]
    if weight.dtype == torch.int8:
        places = places.view(-1, tiles, 8, 2, 2, 8).permute(1, 4, 2, 0, 3, 5)  # tiles, h, g, steps, half, group
        groups, places = _transpose_groups(groups), _transpose_groups(places.reshape(rows, -1))
    else:
        places = places.view(-1, tiles, 8, 2, 2, 2, 4).permute(1, 5, 2, 0, 3, 4, 6)
    n, k = weight.out_features, weight.in_features
    places = places.reshape(rows, -1)[:n, : k // 4]
    even = torch.nn.functional.pad(places, (0, k // 4 % 2))
    return groups.reshape(rows, -1)[:n, : k // 2].contiguous(), even[:, 0::2] | even[:, 1::2] << 4


def value_words(kept: Tensor) -> Tensor:
    """Kept values ``[rows, k / 2]``, whole tiles and steps, as int32 ``[steps, tiles, 32, 4]``."""
    rows = kept.shape[0]
    each = 4 // kept.element_size()  # values a register
    fragments = kept.reshape(rows // ROWS, 2, 8, -1, 2, 4, each)  # tiles, h, g, steps, q, t, j
    order = fragments.permute(3, 0, 2, 5, 4, 1, 6).contiguous()
    return order.view(torch.int32).view(order.shape[0], order.shape[1], 32, 4)


def metadata_words(nibbles: Tensor, dtype: torch.dtype) -> Tensor:
    """Nibbles uint8 ``[rows, k / 4]``, whole tiles and steps, as int32 ``[k / 64, tiles, 32]``."""
    tiles = nibbles.shape[0] // ROWS
    if dtype == torch.int8:
        halves = nibbles.reshape(tiles, 2, 8, -1, 2, 8)  # tiles, h, g, steps, half, group
        words = halves.permute(3, 0, 2, 4, 1, 5)
    else:
        quarters = nibbles.reshape(tiles, 2, 8, -1, 2, 2, 4)  # tiles, h, g, steps, mma, half, group
        words = quarters.permute(3, 0, 2, 4, 5, 1, 6)
    words = words.reshape(-1, tiles, 32, 8).to(torch.int32)
    two = words[..., 0::2] | words[..., 1::2] << 4  # bytes, so that no shift reaches the sign
    return two.to(torch.uint8).contiguous().view(torch.int32).squeeze(-1)


def check(weight: FragmentWeight) -> None:
    """Raises KernelInputError where a buffer is of another order or version, or contradicts itself."""
    if found := problem(weight):
        raise KernelInputError(found)


def problem(weight: FragmentWeight) -> str:
    """What keeps a buffer from being of this order and version; empty where nothing does."""
    if weight.layout != LAYOUT:
        return (
            f"packed 2:4 weight has layout {weight.layout!r}; this build reads {LAYOUT!r}: "
            "pack the canonical weight again"
        )
    if weight.dtype not in VALUE_DTYPES:
        return f"packed 2:4 weight is of {weight.dtype}; allowed are int8, float16 and bfloat16"
    tiles, steps = -(-weight.out_features // ROWS), -(-weight.in_features // STEP)
    wanted = {
        "values": (steps * STEP // mma_k(weight.dtype), tiles, 32, 4),
        "metadata": (steps, tiles, 32),
        "sums": (weight.out_features,) if weight.dtype == torch.int8 else None,
    }
    for name, shape in wanted.items():
        given = getattr(weight, name)
        if given is None and shape is None:
            continue
        if given is None or shape is None:
            found = "None" if given is None else "given"
        elif given.dtype != torch.int32 or tuple(given.shape) != shape or not given.is_contiguous():
            order = "" if given.is_contiguous() else " and not contiguous"
            found = f"{given.dtype} of shape {tuple(given.shape)}{order}"
        else:
            continue
        allowed = "None" if shape is None else f"contiguous int32 {shape}"
        return (
            f"packed 2:4 weight [{weight.out_features}, {weight.in_features}] of {weight.dtype}: {name} is "
            f"{found}; allowed is {allowed}: pack the canonical weight again"
        )
    return ""


def _transpose_groups(groups: Tensor) -> Tensor:
    """Dimension 1 in squares of 4 x 4 groups, each transposed; its own inverse."""
    squares = groups.reshape(groups.shape[0], -1, 4, 4, *groups.shape[2:])
    return squares.transpose(2, 3).reshape(groups.shape)


def checked_nibbles(values: Tensor, indices: Tensor) -> Tensor:
    """Nibbles uint8 ``[out, in / 4]`` of canonical operands.

    Raises:
        KernelInputError: operands are not the canonical form, or a nibble does not name two places in rising order.
    """
    if values.dtype not in VALUE_DTYPES or values.dim() != 2 or values.shape[1] % 2 or not values.numel():
        raise KernelInputError(
            f"values is {values.dtype} of shape {tuple(values.shape)}; give int8, float16 or bfloat16 [out, in / 2] "
            "with in a multiple of 4: pad the weight's inputs with zeros"
        )
    n, groups = values.shape[0], values.shape[1] // 2
    wanted = (n, -(-groups // 2))
    if indices.dtype != torch.uint8 or tuple(indices.shape) != wanted:
        raise KernelInputError(
            f"indices is {indices.dtype} of shape {tuple(indices.shape)}; give uint8 {list(wanted)}, "
            "a nibble a group of four"
        )
    nibbles = torch.stack([indices & 15, indices >> 4], dim=2).reshape(n, -1)[:, :groups]
    wrong = (nibbles & 3) >= (nibbles >> 2)
    if wrong.any():
        row, group = (int(i) for i in wrong.nonzero()[0])
        first, second = int(nibbles[row, group]) & 3, int(nibbles[row, group]) >> 2
        raise KernelInputError(
            f"indices name the places {first} and {second} in group {group} of output {row}; allowed are two different "
            "places in rising order: prune the weight to 2:4 again"
        )
    return nibbles
