"""weight_only_linear on a GPU: int8 weights widened to the dtype of x in registers, a float product, one epilogue.

Imports triton alone. The formula stands in reference.py.
"""

import triton
import triton.language as tl

from recpress_kernels.int8_linear.blocks import finish
from recpress_kernels.int8_linear.kernel import block_of


@triton.jit
def gemm_kernel(
    x_ptr,  # [M, K] float32, float16 or bfloat16, rows stride_xm apart
    w_ptr,  # [N, K] int8, rows stride_wn apart
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32, or None
    y_ptr,  # [M, N] as x
    M,
    N,
    K,
    stride_xm,
    stride_wn,
    ACTIVATION: tl.constexpr,
    TAIL: tl.constexpr,  # K is no multiple of BLOCK_K
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    m_block, n_block = block_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rm = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    rn = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    rk = tl.arange(0, BLOCK_K)
    # Rows past the end are clamped: what they compute is not stored, and the main loop needs no mask.
    x_at = x_ptr + tl.minimum(rm, M - 1).to(tl.int64)[:, None] * stride_xm + rk[None, :]
    w_at = w_ptr + tl.minimum(rn, N - 1).to(tl.int64)[None, :] * stride_wn + rk[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    k_whole = K - K % BLOCK_K
    for k in range(0, k_whole, BLOCK_K):
        x = tl.load(x_at + k)
        acc = tl.dot(x, tl.load(w_at + k).to(x.dtype), acc=acc, input_precision="ieee")
    if TAIL:
        k_in = k_whole + rk < K
        x = tl.load(x_at + k_whole, mask=k_in[None, :], other=0.0)
        w = tl.load(w_at + k_whole, mask=k_in[:, None], other=0)
        acc = tl.dot(x, w.to(x.dtype), acc=acc, input_precision="ieee")
    ones = tl.full([BLOCK_M], 1.0, tl.float32)
    finish(acc, ones, rm, rn, w_scale_ptr, bias_ptr, None, None, y_ptr, M, N, ACTIVATION)
