"""int8_linear as one Triton-language kernel: quantise the activations, multiply on int8, scale and add.

Imports triton alone. The formula and its rounding stand in reference.py.
"""

import triton
import triton.language as tl


@triton.jit
def _rne(x):
    # Round half to even for |x| < 2^22: adding 1.5 * 2^23 leaves no fraction bits.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def int8_linear_kernel(
    x_ptr,  # [M, K] float32, float16 or bfloat16, rows stride_xm apart
    w_ptr,  # [N, K] int8, contiguous
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32; not read without HAS_BIAS
    y_ptr,  # [M, N] as x, contiguous
    M,
    N,
    K,
    stride_xm,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rm = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rn = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rk = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + rm.to(tl.int64)[:, None] * stride_xm  # [BM, 1]
    w_cols = w_ptr + rn.to(tl.int64)[None, :] * K  # [1, BN]
    m_in, n_in = rm < M, rn < N

    lo = tl.zeros([BLOCK_M], tl.float32)
    hi = tl.zeros([BLOCK_M], tl.float32)
    poison = tl.zeros([BLOCK_M], tl.float32)  # NaN where the row is not finite
    for k in range(0, K, BLOCK_K):
        x_in = m_in[:, None] & (k + rk < K)[None, :]
        x = tl.load(x_rows + (k + rk)[None, :], mask=x_in, other=0.0).to(tl.float32)
        lo = tl.minimum(lo, tl.min(x, axis=1))
        hi = tl.maximum(hi, tl.max(x, axis=1))
        poison += tl.sum(x - x, axis=1)
    span = hi - lo
    poison += span - span
    scale = tl.div_rn(span, tl.full([BLOCK_M], 127.0, tl.float32))
    scale = tl.where((scale == 0.0) | (poison != 0.0), 1.0, scale)
    finite = poison == 0.0
    zero = tl.where(finite, _rne(tl.div_rn(-lo, scale)), 0.0)
    zero = tl.minimum(tl.maximum(zero, 0.0), 127.0)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    scales = tl.broadcast_to(scale[:, None], [BLOCK_M, BLOCK_K])
    for k in range(0, K, BLOCK_K):
        k_in = k + rk < K
        x = tl.load(x_rows + (k + rk)[None, :], mask=m_in[:, None] & k_in[None, :], other=0.0).to(tl.float32)
        x = tl.where(finite[:, None], x, 0.0)
        q = _rne(tl.div_rn(x, scales)) + zero[:, None]
        q = tl.minimum(tl.maximum(q, 0.0), 127.0) - zero[:, None]
        w = tl.load(w_cols + (k + rk)[:, None], mask=k_in[:, None] & n_in[None, :], other=0)
        acc = tl.dot(q.to(tl.int8), w, acc=acc, out_dtype=tl.int32)

    w_scale = tl.load(w_scale_ptr + rn, mask=n_in, other=0.0)
    y = acc.to(tl.float32) * (scale + poison)[:, None] * w_scale[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + rn, mask=n_in, other=0.0)[None, :]
    y_at = y_ptr + rm.to(tl.int64)[:, None] * N + rn[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=m_in[:, None] & n_in[None, :])
