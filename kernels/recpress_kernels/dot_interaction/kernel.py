"""dot_interaction on a GPU: one program a row of the batch holds all products of its vectors, and stores a triangle.

float16 and bfloat16 are multiplied on tensor cores with float32 sums, float32 on the ordinary cores, since tensor cores
would round it to 11 bits. Imports triton alone. The formula stands in reference.py.
"""

import triton
import triton.language as tl

from recpress_kernels.int8_linear.blocks import requantize


@triton.jit
def dots_kernel(
    x_ptr,  # [B, V, D] float32, float16 or bfloat16, rows stride_xb and vectors stride_xv apart
    front_ptr,  # [B, F] as x, rows stride_fb apart, or None
    out_scale_ptr,  # float32 scalar, or None: y as x
    out_zero_ptr,  # int32 scalar, or None
    y_ptr,  # [B, WIDTH] as x, or uint8 with out_scale
    V,
    D,
    F,
    WIDTH,  # F and the number of pairs
    stride_xb,
    stride_xv,
    stride_fb,
    SELF: tl.constexpr,  # 1: products of a vector with itself too; else 0
    BLOCK_V: tl.constexpr,  # at least V
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rv = tl.arange(0, BLOCK_V)
    rd = tl.arange(0, BLOCK_D)
    # Vectors past the last are the last again: their products are not stored, and loads need no mask for them.
    x_at = x_ptr + row * stride_xb + tl.minimum(rv, V - 1).to(tl.int64)[:, None] * stride_xv + rd[None, :]
    acc = tl.zeros([BLOCK_V, BLOCK_V], tl.float32)
    for d in range(0, D, BLOCK_D):
        x = tl.load(x_at + d, mask=(d + rd < D)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(x), acc=acc, input_precision="ieee")
    if out_scale_ptr is not None:
        acc = requantize(acc, out_scale_ptr, out_zero_ptr)
    y_row = y_ptr + row * WIDTH
    begin = rv * (rv - 1) // 2 + SELF * rv  # where a row of the triangle begins
    kept = (rv[None, :] < rv[:, None] + SELF) & (rv < V)[:, None]
    tl.store(y_row + F + begin[:, None] + rv[None, :], acc.to(y_ptr.dtype.element_ty), mask=kept)
    if front_ptr is not None:
        for f in range(0, F, BLOCK_D):
            front = tl.load(front_ptr + row * stride_fb + f + rd, mask=f + rd < F, other=0.0).to(tl.float32)
            if out_scale_ptr is not None:
                front = requantize(front, out_scale_ptr, out_zero_ptr)
            tl.store(y_row + f + rd, front.to(y_ptr.dtype.element_ty), mask=f + rd < F)
