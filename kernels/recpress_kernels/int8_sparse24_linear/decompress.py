"""int8_sparse24_linear without sparse tensor cores: the weight is expanded in registers, then multiplied dense.

The buffers and arguments of the other forms, and the same bits. What it saves is the weight's traffic, 0.625 bytes a
weight instead of 1: the arithmetic is that of a dense product, and the expansion comes on top.

Imports triton alone; compiles wherever triton compiles an int8 dot, and runs under its interpreter.
"""

import triton
import triton.language as tl

from recpress_kernels.int8_linear.blocks import finish


@triton.jit
def gemm_kernel(
    values_ptr,  # [steps, tiles, 32, 4] int32
    metadata_ptr,  # [steps, tiles, 32, 4] int8, the bytes of the words
    sums_ptr,  # [N] int32, or None: q has its zero point subtracted
    q_ptr,  # [M, stride_qm] int32, four int8 a word, zeros up to 64 * steps
    row_scale_ptr,  # [M] float32, NaN for rows that are not finite; or a scalar, with sums
    zero_ptr,  # int32 scalar, or None
    w_scale_ptr,  # [N] float32
    bias_ptr,  # [N] float32, or None
    out_scale_ptr,  # float32 scalar, or None: y stays float
    out_zero_ptr,  # int32 scalar, or None
    y_ptr,  # [M, N] contiguous
    M,
    N,
    steps,  # of 64 inputs
    tiles,  # of 16 outputs, at least TILES_N * WARPS
    stride_qm,  # in words, a multiple of 4
    REST: tl.constexpr,  # steps that rounds of UNROLL leave over
    ACTIVATION: tl.constexpr,
    TILES_N: tl.constexpr,  # tiles of 16 outputs a warp
    TILES_M: tl.constexpr,  # tiles of 8 rows of x, at least 2
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,  # 0: x goes to registers
    SPLIT: tl.constexpr,  # False: no warps share K
    WARPS: tl.constexpr,
):
    TILES: tl.constexpr = TILES_N * WARPS
    # As in kernel.py: the last block begins early, so that no load of a weight needs a mask.
    tile = tl.minimum(tl.program_id(0) * TILES, tiles - TILES)
    rm = tl.program_id(1) * (8 * TILES_M) + tl.arange(0, 8 * TILES_M)
    rn = tile * 16 + tl.arange(0, 16 * TILES)
    row = tl.minimum(rm, M - 1).to(tl.int64)[:, None] * (stride_qm // 4 * 16)
    q_at = q_ptr.to(tl.pointer_type(tl.int8)) + row + tl.arange(0, 64)[None, :]
    words = tl.arange(0, 128 * TILES)
    w_at = values_ptr + tile * 128
    s_at = metadata_ptr + tile * 128
    acc = tl.zeros([8 * TILES_M, 16 * TILES], tl.int32)
    for step in range(0, steps):
        w = expand(tl.load(w_at + words), tl.load(s_at + words), TILES)
        acc = tl.dot(tl.load(q_at + 64 * step), tl.trans(w), acc=acc, out_dtype=tl.int32)
        w_at += tiles * 128
        s_at += tiles * 128
    if zero_ptr is not None:
        acc -= (tl.load(zero_ptr) * tl.load(sums_ptr + rn, mask=rn < N, other=0))[None, :]
        scale = tl.zeros([8 * TILES_M], tl.float32) + tl.load(row_scale_ptr)
    else:
        scale = tl.load(row_scale_ptr + rm, mask=rm < M, other=0.0)
    finish(acc, scale, rm, rn, w_scale_ptr, bias_ptr, out_scale_ptr, out_zero_ptr, y_ptr, M, N, ACTIVATION)


@triton.jit
def expand(values, metadata, TILES: tl.constexpr):
    """One step of tiles in fragment order, int32 and int8 ``[128 * TILES]``, as dense int8 ``[16 * TILES, 64]``.

    A group of four is one word, into which its two values are shifted. Dimensions are named as in
    formats/sparse24_gpu.py; each word of values is the groups p = 0 and 1, and lane t is 2 t1 + t0.
    """
    values = tl.reshape(values, [8 * TILES, 4, 2, 2])  # tiles and g, t, q, h
    places = tl.permute(tl.reshape(metadata.to(tl.int32), [8 * TILES, 2, 2, 4]), (0, 3, 1, 2))  # from q, h, t
    low = ((values & 255) << (places & 3) * 8) | ((values >> 8 & 255) << (places >> 2 & 3) * 8)
    high = ((values >> 16 & 255) << (places >> 4 & 3) * 8) | ((values >> 24 & 255) << (places >> 6 & 3) * 8)
    words = tl.reshape(tl.join(low, high), [TILES, 8, 2, 2, 2, 2, 2])  # tiles, g, t1, t0, q, h, p
    words = tl.reshape(tl.permute(words, (0, 5, 1, 3, 6, 4, 2)), [16 * TILES, 16])  # groups in the order of the inputs
    even = tl.join(words.to(tl.int8), (words >> 16).to(tl.int8))
    odd = tl.join((words >> 8).to(tl.int8), (words >> 24).to(tl.int8))
    return tl.reshape(tl.join(even, odd), [16 * TILES, 64])
