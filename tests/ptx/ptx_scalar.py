"""What one thread's arithmetic instructions of PTX compute, on arrays over threads. Registers hold plain bits."""

import numpy as np

TYPES = {
    "pred": np.bool_,
    **{f"{kind}{width}": np.dtype(f"u{width // 8}") for kind in "bu" for width in (8, 16, 32, 64)},
    **{f"s{width}": np.dtype(f"i{width // 8}") for width in (8, 16, 32, 64)},
    **{f"f{width}": np.dtype(f"f{width // 8}") for width in (16, 32, 64)},
    "f16x2": np.dtype("u4"),
    "bf16x2": np.dtype("u4"),
    "bf16": np.dtype("u2"),
}


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round half to even, as cvt.rn does."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def _halves(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    word = np.ascontiguousarray(word, np.uint32)
    return word.astype(np.uint16), (word >> 16).astype(np.uint16)


def _join(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


def packed(function, kind: str):
    """A function of floats, applied to both halves of words of ``f16x2`` or ``bf16x2``."""

    def narrow(x):
        if kind == "bf16x2":
            return f32_to_bf16(x)
        return x.astype(np.float16).view(np.uint16)

    def widen(bits):
        return bf16_to_f32(bits) if kind == "bf16x2" else bits.view(np.float16).astype(np.float32)

    def apply(*words):
        halves = [_halves(word) for word in words]
        return _join(*(narrow(function(*(widen(half[i]) for half in halves))) for i in (0, 1)))

    return apply


def pack_floats(low: np.ndarray, high: np.ndarray, kind: str) -> np.ndarray:
    """cvt.rn of two float32 to one word of ``f16x2`` or ``bf16x2``."""
    if kind == "bf16x2":
        return _join(f32_to_bf16(low), f32_to_bf16(high))
    return _join(low.astype(np.float16).view(np.uint16), high.astype(np.float16).view(np.uint16))


def fma32(a, b, c):
    """Fused in float64, whose product is exact; the sum is rounded twice, which differs about once in 2^29."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def high_product(a, b):
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    return ((a.astype(wide) * b.astype(wide)) >> np.array(32, wide)).astype(a.dtype)


def truncating_division(a, b):
    """PTX rounds to zero, numpy to minus infinity; by zero, all bits are set."""
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    safe = np.where(wide_b == 0, 1, wide_b)
    quotient = np.abs(wide_a) // np.abs(safe) * np.sign(wide_a) * np.sign(safe)
    return np.where(wide_b == 0, -1, quotient).astype(a.dtype), (wide_a - quotient * safe).astype(a.dtype)


def shift_left(a, count):
    count = count.astype(np.uint64)
    width = a.dtype.itemsize * 8
    return np.where(count >= width, 0, a << np.minimum(count, width - 1).astype(a.dtype)).astype(a.dtype)


def shift_right(a, count):
    """Arithmetic for signed types; counts beyond the width clamp."""
    count = count.astype(np.uint64)
    width = a.dtype.itemsize * 8
    shifted = a >> np.minimum(count, width - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= width, 0, shifted).astype(a.dtype)


def bfe(a, position, length):
    """Bits ``[position, position + length)``, the last of them repeated above in signed types."""
    width = a.dtype.itemsize * 8
    position, length = position.astype(np.int64) & 0xFF, length.astype(np.int64) & 0xFF
    if np.any(position + length > width):
        raise NotImplementedError("bfe beyond the register's width")
    up = (width - position - length).astype(a.dtype)
    down = (width - length).astype(a.dtype)
    return np.where(length == 0, 0, (a << up) >> np.minimum(down, width - 1).astype(a.dtype)).astype(a.dtype)


def prmt(a, b, selector):
    """Four bytes picked out of the eight of a and b; bit 3 of a pick repeats the byte's sign instead."""
    pool = np.stack([word >> np.uint32(8 * i) & np.uint32(255) for word in (a, b) for i in range(4)])
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    lanes = np.arange(result.size)
    pool = np.broadcast_to(pool.reshape(8, -1), (8, result.size))
    for i in range(4):
        pick = np.broadcast_to(selector >> np.uint32(4 * i), result.shape) & np.uint32(15)
        byte = pool[pick & 7, lanes]
        byte = np.where(pick & 8, np.where(byte & 128, 255, 0), byte).astype(np.uint32)
        result |= byte << np.uint32(8 * i)
    return result


def lop3(a, b, c, table: int):
    result = np.zeros_like(a | b | c)
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


def dp4a(a, b, c, a_type: str, b_type: str):
    total = c.astype(np.int64)
    for i in range(4):
        bytes_a = (a >> np.uint32(8 * i)).astype(np.uint8)
        bytes_b = (b >> np.uint32(8 * i)).astype(np.uint8)
        wide_a = bytes_a.view(np.int8) if a_type == "s32" else bytes_a
        wide_b = bytes_b.view(np.int8) if b_type == "s32" else bytes_b
        total = total + wide_a.astype(np.int64) * wide_b.astype(np.int64)
    return total.astype(np.uint32 if c.dtype.kind == "u" else np.int32)


COMPARE = {
    "eq": np.equal,
    "ne": lambda a, b: np.not_equal(a, b) & (a == a) & (b == b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
COMPARE |= {
    f"{name}u": (lambda f: lambda a, b: f(a, b) | (a != a) | (b != b))(COMPARE[name])
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
COMPARE |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}


def convert(value: np.ndarray, to: str, modifiers: tuple[str, ...]) -> np.ndarray:
    """cvt of an already typed value; integers wrap, floats to integers clamp."""
    target = TYPES[to]
    if to == "bf16":
        return f32_to_bf16(value)
    if value.dtype.kind == "f" and target.kind in "iu":
        whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
        rounded = next(f for name, f in whole.items() if name in modifiers)(value.astype(np.float64))
        limits = np.iinfo(target)
        # The upper limit of 64 bits is no float64; the nearest below is.
        clamped = np.clip(rounded, limits.min, np.nextafter(limits.max, 0) if target.itemsize == 8 else limits.max)
        return np.where(np.isnan(value), 0, clamped).astype(target)
    if "sat" in modifiers:
        value = np.clip(value, np.iinfo(target).min, np.iinfo(target).max) if target.kind in "iu" else value.clip(0, 1)
    if value.dtype.kind == "f" and target.kind == "f" and "rni" in modifiers:
        value = np.rint(value)
    return value.astype(target)
