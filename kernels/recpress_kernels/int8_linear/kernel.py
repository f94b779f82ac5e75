"""int8_linear on a GPU: quantise the activations, multiply on int8, scale, add, activate, quantise again.

Two routes, chosen in launch.py. A batch of a few rows takes ``fused_kernel``, which quantises its rows itself,
in every program again: rows are few and a launch costs more. A larger one takes ``quantize_rows_kernel`` and a
product on int8 operands, ``gemm_kernel`` on pointers or ``gemm_tma_kernel`` on tensor descriptors. Where the grid
would leave most of the GPU idle, K is split and ``reduce_kernel`` adds the parts: sums of int32, so that no order
changes a bit.

Imports triton alone. The formula and its rounding stand in reference.py.
"""

import triton
import triton.language as tl

from recpress_kernels.int8_linear.blocks import dynamic_scale, finish, keep_partial, quantize


@triton.jit
def _row_range(x_rows, m_in, K, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Smallest and largest value of each row and of 0, and NaN where a row is not finite."""
    rk = tl.arange(0, BLOCK_K)
    low = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    high = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    poison = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for k in range(0, K, BLOCK_K):
        x = tl.load(x_rows + (k + rk)[None, :], mask=m_in[:, None] & (k + rk < K)[None, :], other=0.0)
        x = x.to(tl.float32)
        low = tl.minimum(low, x)
        high = tl.maximum(high, x)
        poison += x - x
    return tl.min(low, axis=1), tl.max(high, axis=1), tl.sum(poison, axis=1)


@triton.jit
def fused_kernel(
    x_ptr,  # [M, K] float32, float16 or bfloat16, rows stride_xm apart
    w_ptr,  # [N, K] int8, rows stride_wn apart
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32, or None
    x_scale_ptr,  # float32 scalar, or None: a scale a row, as it comes
    x_zero_ptr,  # int32 scalar, or None
    out_scale_ptr,  # float32 scalar, or None: y as x
    out_zero_ptr,  # int32 scalar, or None
    x0_ptr,  # [M, N] as y, or None: y becomes x0 * y + xl
    xl_ptr,  # as x0_ptr
    y_ptr,  # [M, N] as x, or uint8 with out_scale; not written where K is split
    partial_ptr,  # [splits, M, N] int32, or None: K is not split
    row_scale_ptr,  # [M] float32, or None: written where K is split
    M,
    N,
    K,
    K_READABLE,  # columns of w that may be read: K, or a multiple of 16 beyond where rows of w are padded
    K_SPLIT,  # how much of K one program takes, a multiple of BLOCK_K
    stride_xm,
    stride_wn,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rm = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rn = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rk = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + rm.to(tl.int64)[:, None] * stride_xm  # [BM, 1]
    w_cols = w_ptr + tl.minimum(rn, N - 1).to(tl.int64)[None, :] * stride_wn  # [1, BN]
    m_in = rm < M

    poison = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    if x_scale_ptr is None:
        low, high, nan = _row_range(x_rows, m_in, K, BLOCK_M, BLOCK_K)
        scale, zero, finite = dynamic_scale(low, high, nan)
        row_scale = tl.where(finite, scale, float("nan"))
        clean = finite[:, None]
    else:
        scale = tl.full([BLOCK_M], 1.0, tl.float32) * tl.load(x_scale_ptr)
        zero = tl.zeros([BLOCK_M], tl.float32) + tl.load(x_zero_ptr).to(tl.float32)
        row_scale = scale
        clean = m_in[:, None]
    scales = tl.broadcast_to(scale[:, None], [BLOCK_M, BLOCK_K])
    zeros = tl.broadcast_to(zero[:, None], [BLOCK_M, BLOCK_K])

    split = tl.program_id(2)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for k in range(split * K_SPLIT, tl.minimum(K, (split + 1) * K_SPLIT), BLOCK_K):
        x = tl.load(x_rows + (k + rk)[None, :], mask=m_in[:, None] & (k + rk < K)[None, :], other=0.0)
        x = x.to(tl.float32)
        if x_scale_ptr is not None:
            poison += x - x
        # Past K, q is 0 and w may be anything; its mask then keeps the 16-byte loads that an odd K would break up.
        w = tl.load(w_cols + (k + rk)[:, None], mask=(k + rk < K_READABLE)[:, None], other=0)
        acc = tl.dot(quantize(tl.where(clean, x, 0.0), scales, zeros), w, acc=acc, out_dtype=tl.int32)

    if partial_ptr is None:
        cross = None if x0_ptr is None else (x0_ptr, xl_ptr)
        if x_scale_ptr is not None:
            row_scale += tl.sum(poison, axis=1)
        finish(
            acc, row_scale, rm, rn, w_scale_ptr, bias_ptr, out_scale_ptr, out_zero_ptr, y_ptr, M, N, ACTIVATION, cross
        )
    else:
        keep_partial(acc, rm, rn, split, partial_ptr, M, N)
        if (tl.program_id(1) == 0) & (split == 0):
            if x_scale_ptr is not None:
                _low, _high, nan = _row_range(x_rows, m_in, K, BLOCK_M, BLOCK_K)
                row_scale += nan
            tl.store(row_scale_ptr + rm, row_scale, mask=m_in)


@triton.jit
def reduce_kernel(
    partial_ptr,  # [SPLITS, M, N] int32
    row_scale_ptr,  # [M] float32, or a scalar where SCALAR_SCALE
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32, or None
    out_scale_ptr,  # float32 scalar, or None
    out_zero_ptr,  # int32 scalar, or None
    x0_ptr,  # [M, N] as y, or None: y becomes x0 * y + xl
    xl_ptr,  # as x0_ptr
    y_ptr,  # [M, N]
    M,
    N,
    SPLITS: tl.constexpr,
    SCALAR_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rm = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rn = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rm < M)[:, None] & (rn < N)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for split in tl.static_range(SPLITS):
        at = partial_ptr + (rm.to(tl.int64) + split * M)[:, None] * N + rn[None, :]
        acc += tl.load(at, mask=inside, other=0)
    row_scale = _row_scale(row_scale_ptr, rm, M, SCALAR_SCALE)
    cross = None if x0_ptr is None else (x0_ptr, xl_ptr)
    finish(acc, row_scale, rm, rn, w_scale_ptr, bias_ptr, out_scale_ptr, out_zero_ptr, y_ptr, M, N, ACTIVATION, cross)


@triton.jit
def quantize_rows_kernel(
    x_ptr,  # [M, K] float32, float16 or bfloat16, rows stride_xm apart
    x_scale_ptr,  # float32 scalar, or None: a scale a row, as it comes
    x_zero_ptr,  # int32 scalar, or None
    q_ptr,  # [M, K_PADDED] int8: q - zero, then zeros
    row_scale_ptr,  # [M] float32, NaN for rows that are not finite
    M,
    K,
    K_PADDED,  # a multiple of 16, so that the product reads q in whole vectors however odd K is
    stride_xm,
    ONE_BLOCK: tl.constexpr,  # K_PADDED <= BLOCK_K: x is read once
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rm = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rk = tl.arange(0, BLOCK_K)
    m_in = rm < M
    x_rows = x_ptr + rm.to(tl.int64)[:, None] * stride_xm
    q_rows = q_ptr + rm.to(tl.int64)[:, None] * K_PADDED
    if ONE_BLOCK:
        x = tl.load(x_rows + rk[None, :], mask=m_in[:, None] & (rk < K)[None, :], other=0.0).to(tl.float32)
        low, high, nan = tl.min(x, axis=1), tl.max(x, axis=1), tl.sum(x - x, axis=1)
        low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
    else:
        low, high, nan = _row_range(x_rows, m_in, K, BLOCK_M, BLOCK_K)
    if x_scale_ptr is None:
        scale, zero, finite = dynamic_scale(low, high, nan)
    else:
        finite = nan == 0.0
        scale = tl.full([BLOCK_M], 1.0, tl.float32) * tl.load(x_scale_ptr)
        zero = tl.zeros([BLOCK_M], tl.float32) + tl.load(x_zero_ptr).to(tl.float32)
    tl.store(row_scale_ptr + rm, tl.where(finite, scale, float("nan")), mask=m_in)
    scales = tl.broadcast_to(scale[:, None], [BLOCK_M, BLOCK_K])
    zeros = tl.broadcast_to(zero[:, None], [BLOCK_M, BLOCK_K])
    if ONE_BLOCK:
        q = quantize(tl.where(finite[:, None], x, 0.0), scales, zeros)
        tl.store(q_rows + rk[None, :], q, mask=m_in[:, None] & (rk < K_PADDED)[None, :])
    else:
        for k in range(0, K_PADDED, BLOCK_K):
            cols = k + rk
            x = tl.load(x_rows + cols[None, :], mask=m_in[:, None] & (cols < K)[None, :], other=0.0).to(tl.float32)
            q = quantize(tl.where(finite[:, None], x, 0.0), scales, zeros)
            tl.store(q_rows + cols[None, :], q, mask=m_in[:, None] & (cols < K_PADDED)[None, :])


@triton.jit
def _row_scale(row_scale_ptr, rm, M, SCALAR_SCALE: tl.constexpr):
    if SCALAR_SCALE:
        scale = tl.zeros(rm.shape, tl.float32) + tl.load(row_scale_ptr)
    else:
        scale = tl.load(row_scale_ptr + rm, mask=rm < M, other=0.0)
    return scale


@triton.jit
def block_of(pid, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Which block a program computes: columns of GROUP_M blocks of rows, so that neighbours share w in L2."""
    m_blocks, n_blocks = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = pid // (GROUP_M * n_blocks) * GROUP_M
    rows = tl.minimum(m_blocks - first, GROUP_M)
    within = pid % (GROUP_M * n_blocks)
    return first + within % rows, within // rows


@triton.jit
def gemm_kernel(
    q_ptr,  # [M, K] int8, or uint8 in 0..127 seen as int8, rows stride_qm apart
    w_ptr,  # [N, K] int8, rows stride_wn apart
    row_scale_ptr,  # [M] float32, or a scalar where SCALAR_SCALE
    zero_ptr,  # int32 scalar that is still to be subtracted from q, or None
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32, or None
    out_scale_ptr,  # float32 scalar, or None
    out_zero_ptr,  # int32 scalar, or None
    x0_ptr,  # [M, N] as y, or None: y becomes x0 * y + xl
    xl_ptr,  # as x0_ptr
    y_ptr,  # [M, N]; not written where K is split
    partial_ptr,  # [splits, M, N] int32, or None
    M,
    N,
    K,
    K_SPLIT,  # how much of K one program takes, a multiple of BLOCK_K
    stride_qm,
    stride_wn,
    SCALAR_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HALVES: tl.constexpr,  # 2: two dots of half the width share the activations; 1: one dot
    TAIL: tl.constexpr,  # K is no multiple of BLOCK_K
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    HALF: tl.constexpr = BLOCK_N // HALVES
    m_block, n_block = block_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    split = tl.program_id(1)
    rm = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    rn = n_block * BLOCK_N + tl.arange(0, HALF)
    rk = tl.arange(0, BLOCK_K)
    # Rows past the end are clamped: what they compute is not stored, and the main loop needs no mask.
    k_begin = split * K_SPLIT
    k_end = tl.minimum(K, k_begin + K_SPLIT)
    q_at = q_ptr + tl.minimum(rm, M - 1).to(tl.int64)[:, None] * stride_qm + rk[None, :]
    w_at = w_ptr + tl.minimum(rn, N - 1).to(tl.int64)[None, :] * stride_wn + rk[:, None]
    v_at = w_ptr + tl.minimum(rn + HALF, N - 1).to(tl.int64)[None, :] * stride_wn + rk[:, None]
    acc = tl.zeros([BLOCK_M, HALF], tl.int32)
    acc2 = tl.zeros([BLOCK_M, HALF], tl.int32)
    if zero_ptr is not None:
        # Before the main loop, since after it the accumulators would be in the way: 6 to 28 spills.
        zero = tl.load(zero_ptr)
        less = tl.zeros([HALF], tl.int32)
        less2 = tl.zeros([HALF], tl.int32)
        if zero != 0:
            less = zero * _column_sums(w_at, k_begin, k_end, HALF, BLOCK_K)
            if HALVES == 2:
                less2 = zero * _column_sums(v_at, k_begin, k_end, HALF, BLOCK_K)
    k_whole = k_end - (k_end - k_begin) % BLOCK_K
    for k in range(k_begin, k_whole, BLOCK_K):
        q = tl.load(q_at + k)
        acc = tl.dot(q, tl.load(w_at + k), acc=acc, out_dtype=tl.int32)
        if HALVES == 2:
            acc2 = tl.dot(q, tl.load(v_at + k), acc=acc2, out_dtype=tl.int32)
    if TAIL:
        k_in = k_whole + rk < k_end
        q = tl.load(q_at + k_whole, mask=k_in[None, :], other=0)
        acc = tl.dot(q, tl.load(w_at + k_whole, mask=k_in[:, None], other=0), acc=acc, out_dtype=tl.int32)
        if HALVES == 2:
            v = tl.load(v_at + k_whole, mask=k_in[:, None], other=0)
            acc2 = tl.dot(q, v, acc=acc2, out_dtype=tl.int32)
    if zero_ptr is not None:
        acc -= less[None, :]
        if HALVES == 2:
            acc2 -= less2[None, :]

    if partial_ptr is None:
        cross = None if x0_ptr is None else (x0_ptr, xl_ptr)
        scale = _row_scale(row_scale_ptr, rm, M, SCALAR_SCALE)
        finish(acc, scale, rm, rn, w_scale_ptr, bias_ptr, out_scale_ptr, out_zero_ptr, y_ptr, M, N, ACTIVATION, cross)
        if HALVES == 2:
            rn += HALF
            finish(
                acc2, scale, rm, rn, w_scale_ptr, bias_ptr, out_scale_ptr, out_zero_ptr, y_ptr, M, N, ACTIVATION, cross
            )
    else:
        keep_partial(acc, rm, rn, split, partial_ptr, M, N)
        if HALVES == 2:
            keep_partial(acc2, rm, rn + HALF, split, partial_ptr, M, N)


@triton.jit
def _column_sums(w_at, k_begin, k_end, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """``sum_k w[n, k]`` as int32 ``[BN]``: with it, q is multiplied as it is, and its zero point subtracted after.

    ``sum (q - zero) w = sum q w - zero sum w``. Every sum on the way is of products within 127^2, as q and zero are
    in 0..127, so that the tensor cores, which saturate, never do. The sum is a product with 16 equal rows; a zero
    point of 0, as after a ReLU, does not come here.
    """
    rk = tl.arange(0, BLOCK_K)
    rows = tl.zeros([16, BLOCK_N], tl.int32)
    ones = tl.full([16, BLOCK_K], 1, tl.int8)
    for k in range(k_begin, k_end, BLOCK_K):
        w = tl.load(w_at + k, mask=(k + rk < k_end)[:, None], other=0)
        rows = tl.dot(ones, w, acc=rows, out_dtype=tl.int32)
    return tl.max(rows, axis=0)


@triton.jit
def gemm_tma_kernel(
    q_desc,  # [M, K] int8 in blocks [BLOCK_M, BLOCK_K]
    w_desc,  # [N, K] int8 in blocks [BLOCK_N, BLOCK_K]
    row_scale_ptr,  # [M] float32, or a scalar where SCALAR_SCALE
    zero_ptr,  # int32 scalar that is still to be subtracted from q, or None
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32, or None
    out_scale_ptr,  # float32 scalar, or None
    out_zero_ptr,  # int32 scalar, or None
    x0_ptr,  # [M, N] as y, or None: y becomes x0 * y + xl
    xl_ptr,  # as x0_ptr
    y_ptr,  # [M, N]
    M,
    N,
    K,
    SCALAR_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    m_block, n_block = block_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    m_begin, n_begin = m_block * BLOCK_M, n_block * BLOCK_N
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for k in range(0, K, BLOCK_K):  # the descriptor gives zeros past every edge
        acc = tl.dot(q_desc.load([m_begin, k]), w_desc.load([n_begin, k]).T, acc=acc, out_dtype=tl.int32)
    if zero_ptr is not None:
        zero = tl.load(zero_ptr)
        if zero != 0:  # as _column_sums
            rows = tl.zeros([16, BLOCK_N], tl.int32)
            ones = tl.full([16, BLOCK_K], 1, tl.int8)
            for k in range(0, K, BLOCK_K):
                rows = tl.dot(ones, w_desc.load([n_begin, k]).T, acc=rows, out_dtype=tl.int32)
            acc -= zero * tl.max(rows, axis=0)[None, :]
    rm = m_begin + tl.arange(0, BLOCK_M)
    rn = n_begin + tl.arange(0, BLOCK_N)
    scale = _row_scale(row_scale_ptr, rm, M, SCALAR_SCALE)
    cross = None if x0_ptr is None else (x0_ptr, xl_ptr)
    finish(acc, scale, rm, rn, w_scale_ptr, bias_ptr, out_scale_ptr, out_zero_ptr, y_ptr, M, N, ACTIVATION, cross)
