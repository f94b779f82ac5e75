"""What int8_linear's kernels share on the device: rounding, quantisation of a block, and the epilogue.

Imports triton alone. The formulas stand in reference.py.
"""

import triton
import triton.language as tl

ACTIVATIONS = ("none", "relu", "gelu_tanh", "gelu_erf", "sigmoid", "silu")


@triton.jit
def clamp_round(x, low, high):
    """``rne(clamp(x, low, high))`` as int32, where low and high are whole numbers in [-127, 127].

    Clamping first is the same for whole bounds, keeps the sum below exact, and takes NaN to ``low``. Adding
    1.5 * 2^23 rounds half to even and leaves the number in the low bits, which saves a conversion.
    """
    x = tl.minimum(tl.maximum(x, low), high)
    return (x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def quantize(x, scale, zero):
    """``clamp(rne(x / scale) + zero, 0, 127) - zero`` as int8: float32 x, scale and zero of one shape."""
    return clamp_round(tl.div_rn(x, scale), -zero, 127.0 - zero).to(tl.int8)


@triton.jit
def requantize(y, scale_ptr, zero_ptr):
    """``clamp(rne(y / scale) + zero, 0, 127)`` of float32 y, still as float32; a NaN becomes 0."""
    zero = tl.load(zero_ptr).to(tl.float32)
    scaled = tl.div_rn(y, tl.full(y.shape, 1.0, tl.float32) * tl.load(scale_ptr))
    return clamp_round(scaled, -zero, 127.0 - zero).to(tl.float32) + zero


@triton.jit
def dynamic_scale(low, high, poison):
    """Scale and zero point of rows with extremes ``low`` <= 0 <= ``high``, and whether a row is finite.

    ``poison`` is 0, or NaN where a row holds NaN or infinity; a row that is not finite has scale 1, zero point 0.
    """
    span = high - low
    finite = (poison + (span - span)) == 0.0
    scale = tl.div_rn(span, tl.full(span.shape, 127.0, tl.float32))
    scale = tl.where(finite & (scale != 0.0), scale, 1.0)
    low = tl.where(finite, low, 0.0)
    zero = clamp_round(tl.div_rn(-low, scale), 0.0, 127.0).to(tl.float32)
    return scale, zero, finite


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """The activation in float32. gelu_tanh by ``(1 + tanh u) / 2 = sigmoid(2 u)``: triton has no tanh of its own."""
    if ACTIVATION == "relu":
        y = tl.where(y < 0.0, 0.0, y)  # a comparison, since the maximum of NaN and 0 is 0
    elif ACTIVATION == "gelu_tanh":
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif ACTIVATION == "gelu_erf":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(y)
    elif ACTIVATION == "silu":
        y = y * tl.sigmoid(y)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return y


@triton.jit
def finish(
    acc,  # [BM, BN] int32
    row_scale,  # [BM] float32, NaN for rows that are not finite
    rm,  # [BM] rows of the block
    rn,  # [BN] columns of the block
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32, or None
    out_scale_ptr,  # float32 scalar, or None: y stays float
    out_zero_ptr,  # int32 scalar, or None
    y_ptr,  # [M, N] contiguous
    M,
    N,
    ACTIVATION: tl.constexpr,
    cross=None,  # x0_ptr and xl_ptr, [M, N] as y: y becomes x0 * y + xl, as in int8_cross/reference.py
):
    """Scale, add, activate, combine and quantise again if asked, and store one block of y."""
    n_in = rn < N
    w_scale = tl.load(w_scale_ptr + rn, mask=n_in, other=0.0)
    y = acc.to(tl.float32) * row_scale[:, None] * w_scale[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + rn, mask=n_in, other=0.0)[None, :]
    y = activate(y, ACTIVATION)
    if out_scale_ptr is not None:
        y = requantize(y, out_scale_ptr, out_zero_ptr)
    at = rm.to(tl.int64)[:, None] * N + rn[None, :]
    inside = (rm < M)[:, None] & n_in[None, :]
    y = y.to(y_ptr.dtype.element_ty)
    if cross is not None:
        x0_ptr, xl_ptr = cross
        x0 = tl.load(x0_ptr + at, mask=inside, other=0.0).to(tl.float32)
        xl = tl.load(xl_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = (x0 * y.to(tl.float32) + xl).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=inside)


@triton.jit
def keep_partial(acc, rm, rn, split, partial_ptr, M, N):
    """Store an int32 block of one part of K in ``partial`` ``[splits, M, N]``."""
    at = partial_ptr + (split.to(tl.int64) * M + rm)[:, None] * N + rn[None, :]
    tl.store(at, acc, mask=(rm < M)[:, None] & (rn < N)[None, :])
