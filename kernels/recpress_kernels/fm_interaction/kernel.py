"""fm_interaction on a GPU: a program sums the vectors of a few rows and their squares as it reads them, once.

Imports triton alone. The formula stands in reference.py.
"""

import triton
import triton.language as tl


@triton.jit
def second_order_kernel(
    x_ptr,  # [B, V, D] float32, float16 or bfloat16, rows stride_xb and vectors stride_xv apart
    y_ptr,  # [B] as x
    B,
    V,
    D,
    stride_xb,
    stride_xv,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rb = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    rd = tl.arange(0, BLOCK_D)
    x_rows = x_ptr + tl.minimum(rb, B - 1).to(tl.int64)[:, None] * stride_xb  # what is past the end is not stored
    total = tl.zeros([BLOCK_B], tl.float32)
    for d in range(0, D, BLOCK_D):
        sums = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        squares = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        for v in range(V):
            x = tl.load(x_rows + v * stride_xv + (d + rd)[None, :], mask=(d + rd < D)[None, :], other=0.0)
            x = x.to(tl.float32)
            sums += x
            squares += x * x
        total += tl.sum(sums * sums - squares, axis=1)
    tl.store(y_ptr + rb, (0.5 * total).to(y_ptr.dtype.element_ty), mask=rb < B)
