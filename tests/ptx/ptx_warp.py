"""PTX instructions that a warp executes together: ldmatrix, stmatrix, shfl, mma.sync and mma.sp.

Registers come as ``[warps, 32]`` words. Fragment layouts are those of the PTX ISA, with g = lane // 4, t = lane % 4.
"""

import numpy as np
from ptx_scalar import bf16_to_f32

_LANE = np.arange(32)
_G, _T = _LANE // 4, _LANE % 4


def ldmatrix(rows: np.ndarray, transposed: bool) -> list[np.ndarray]:
    """``rows`` uint8 ``[warps, 32, 16]``, what each lane's address points to: one word a lane for each matrix."""
    results = []
    for i in range(rows.shape[1] // 8):
        matrix = np.ascontiguousarray(rows[:, 8 * i : 8 * i + 8]).view(np.uint16)  # [warps, 8, 8]
        if transposed:
            matrix = matrix.transpose(0, 2, 1)
        low, high = matrix[:, _G, 2 * _T], matrix[:, _G, 2 * _T + 1]
        results.append(low.astype(np.uint32) | high.astype(np.uint32) << 16)
    return results


def stmatrix(words: list[np.ndarray], transposed: bool) -> np.ndarray:
    """One word a lane for each matrix to ``rows`` uint8 ``[warps, 8 * matrices, 16]``: ldmatrix the other way."""
    rows = []
    for word in words:
        matrix = np.zeros((len(word), 8, 8), np.uint16)
        matrix[:, _G, 2 * _T], matrix[:, _G, 2 * _T + 1] = word & 0xFFFF, word >> 16
        rows.append(matrix.transpose(0, 2, 1) if transposed else matrix)
    return np.ascontiguousarray(np.concatenate(rows, axis=1)).view(np.uint8)


def shuffle(mode: str, value: np.ndarray, by: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """shfl.sync on ``[warps, 32]``: the value received, and whether its source lane was inside the segment."""
    lane = _LANE[None, :]
    by, clamp = by.astype(np.int64), clamp.astype(np.int64)
    last, mask = clamp & 31, clamp >> 8 & 31
    low = lane & mask
    high = low | (last & ~mask)
    if mode == "up":
        source = lane - by
        inside = source >= high
    else:
        source = {"bfly": lane ^ by, "down": lane + by, "idx": low | (by & ~mask)}[mode]
        inside = source <= high
    source = np.where(inside, source, lane)
    return np.take_along_axis(value, source, axis=1), inside


def members(values: np.ndarray, masks: np.ndarray, operation: str) -> np.ndarray:
    """redux.sync on ``[warps, 32]``: for each lane the largest or smallest of the lanes that its mask names."""
    if operation not in ("max", "min"):
        raise NotImplementedError(f"redux.sync.{operation}")
    chosen = (masks[:, :, None] >> _LANE.astype(masks.dtype) & 1).astype(bool)  # [warps, lanes, members]
    limits = np.iinfo(values.dtype)
    others = np.where(chosen, values[:, None, :], limits.min if operation == "max" else limits.max)
    return (others.max if operation == "max" else others.min)(axis=2).astype(values.dtype)


def _bytes(words: list[np.ndarray], signed: bool) -> list[np.ndarray]:
    kind = np.int8 if signed else np.uint8
    return [np.ascontiguousarray(word).view(kind).reshape(*word.shape, 4).astype(np.int64) for word in words]


def _halves(words: list[np.ndarray], kind: str) -> list[np.ndarray]:
    bits = [np.ascontiguousarray(word).view(np.uint16).reshape(*word.shape, 2) for word in words]
    return [
        bf16_to_f32(b).astype(np.float64) if kind == "bf16" else b.view(np.float16).astype(np.float64) for b in bits
    ]


def _fragment_a(values: list[np.ndarray]) -> np.ndarray:
    """Four registers of A to ``[warps, 16, 8 * values a word]``: rows g and g + 8, then the second half of k."""
    each = values[0].shape[-1]
    a = np.zeros((len(values[0]), 16, 8 * each))
    for register, value in enumerate(values):
        row = _G + 8 * (register % 2)
        column = (_T * each + 4 * each * (register // 2))[:, None] + np.arange(each)
        a[:, row[:, None], column] = value
    return a


def _fragment_b(values: list[np.ndarray]) -> np.ndarray:
    """Registers of B to ``[warps, k, 8]``: register r holds ``4 t + 16 r + j`` of k (bytes) of column g."""
    each = values[0].shape[-1]
    b = np.zeros((len(values[0]), 4 * each * len(values), 8))
    for register, value in enumerate(values):
        row = (_T * each + 4 * each * register)[:, None] + np.arange(each)
        b[:, row, _G[:, None]] = value
    return b


def _accumulators(product: np.ndarray) -> list[np.ndarray]:
    """``[warps, 16, 8]`` to the four registers of C."""
    return [product[:, _G + 8 * (i // 2), 2 * _T + i % 2] for i in range(4)]


def _expand(kept: np.ndarray, nibbles: np.ndarray) -> np.ndarray:
    """2:4 values ``[warps, 16, k / 2]`` and one nibble a group of four ``[warps, 16, k / 4]`` to dense."""
    warps, rows, groups = nibbles.shape
    dense = np.zeros((warps, rows, groups, 4))
    first, second = nibbles & 3, nibbles >> 2 & 3
    if np.any(first >= second):
        raise AssertionError("ordered metadata must name two places of a group in rising order")
    pairs = kept.reshape(warps, rows, groups, 2)
    np.put_along_axis(dense, first[..., None].astype(np.int64), pairs[..., :1], axis=3)
    np.put_along_axis(dense, second[..., None].astype(np.int64), pairs[..., 1:], axis=3)
    return dense.reshape(warps, rows, -1)


def _nibbles(metadata: np.ndarray, eight_bit: bool, selector: int) -> np.ndarray:
    """Metadata words ``[warps, 32]`` to nibbles ``[warps, 16, groups of 4 along k]``."""
    result = np.zeros((len(metadata), 16, 16 if eight_bit else 8), np.uint32)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        words = metadata[:, lane, None] >> (4 * np.arange(8, dtype=np.uint32)) & np.uint32(15)
        if eight_bit:
            half = t >> 1 & 1
            result[:, g + 8 * (t & 1), 8 * half : 8 * half + 8] = words
        elif t // 2 == selector:
            part = 4 * (t % 2)
            result[:, g, part : part + 4] = words[:, :4]
            result[:, g + 8, part : part + 4] = words[:, 4:]
    return result


def mma(modifiers: tuple[str, ...], a, b, c, metadata=None, selector: int = 0) -> list[np.ndarray]:
    """D = A B + C for ``mma.sync`` m16n8k32 (bytes), m16n8k16 (16 bits), and twice the k for ``mma.sp``.

    Integers are exact: with ``satfinite`` clamped, else wrapped. Floats are summed in float64 and rounded once;
    tensor cores round otherwise.
    """
    shape = next(m for m in modifiers if m.startswith("m16n8k"))
    d_type, a_type, b_type, _c_type = modifiers[-4:]
    eight_bit = a_type in ("s8", "u8")
    wanted = (
        ("m16n8k64" if eight_bit else "m16n8k32") if metadata is not None else "m16n8k32" if eight_bit else "m16n8k16"
    )
    if shape != wanted or d_type not in ("s32", "f32"):
        raise NotImplementedError(f"mma {'.'.join(modifiers)}")
    if eight_bit:
        dense = _fragment_a(_bytes(a, a_type == "s8"))
        right = _fragment_b(_bytes(b, b_type == "s8"))
    else:
        dense = _fragment_a(_halves(a, a_type))
        right = _fragment_b(_halves(b, b_type))
    if metadata is not None:
        dense = _expand(dense, _nibbles(metadata, eight_bit, selector))
    products = _accumulators(dense @ right)
    if d_type == "f32":
        return [
            (p + before.view(np.float32)).astype(np.float32).view(np.uint32)
            for p, before in zip(products, c, strict=True)
        ]
    sums = [p.astype(np.int64) + before.view(np.int32) for p, before in zip(products, c, strict=True)]
    if "satfinite" in modifiers:
        sums = [s.clip(-(2**31), 2**31 - 1) for s in sums]
    return [s.astype(np.int32).view(np.uint32) for s in sums]
