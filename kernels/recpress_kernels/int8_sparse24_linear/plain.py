"""int8_sparse24_linear on NVIDIA's sparse tensor cores in the plain Triton language, for tritons whose Gluon cannot.

The same buffers, products and epilogue as the Gluon form in kernel.py, and the same bits. The language says nothing
about which thread holds what: that a lane holds the four registers of one mma.sp follows from how triton lays out
tensors ``[lanes, 4]`` of which a lane loads 16 bytes. It must be asserted of what was compiled: see layouts.py.

Imports triton alone.
"""

import triton
import triton.language as tl

from recpress_kernels.int8_linear.blocks import finish

PRODUCT = tl.constexpr(
    "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$9, $10, $11, $12}, {$13, $14, $15, $16}, $8, 0;"
)
# Four words of the weight, one of metadata, which comes as four bytes, four words of x, four sums.
CONSTRAINTS = tl.constexpr("=r,=r,=r,=r" + ",r" * 13)


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
    TILES_M: tl.constexpr,  # tiles of 8 rows of x
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,  # 0: x goes to registers
    SPLIT: tl.constexpr,  # False: no warps share K
    WARPS: tl.constexpr,
):
    # As in kernel.py: the last block begins early, so that no load of a weight needs a mask.
    tile = tl.minimum(tl.program_id(0) * (TILES_N * WARPS), tiles - TILES_N * WARPS)
    lane, four = tl.arange(0, 32 * WARPS), tl.arange(0, 4)
    words = lane[:, None] * 4 + four[None, :]
    w_at = values_ptr + tile * 128
    s_at = metadata_ptr + tile * 128
    step = tiles * 128  # words of values, and as many bytes of metadata
    first_row = tl.program_id(1) * (8 * TILES_M)
    stride = stride_qm // 4 * 4  # rows begin at multiples of 16 bytes: said so that the compiler sees it
    q_at = ()
    for j in tl.static_range(TILES_M):
        row = tl.minimum(first_row + 8 * j + lane // 4 % 8, M - 1)
        q_at += (q_ptr + row.to(tl.int64)[:, None] * stride + (lane % 4 * 4)[:, None] + four[None, :],)
    acc = ()
    for _ in tl.static_range(TILES_N * TILES_M):
        acc += (tl.zeros([32 * WARPS, 4], tl.int32),)

    for _round in range(0, steps // UNROLL):
        for i in tl.static_range(UNROLL):
            acc = _step(acc, w_at, s_at, words, q_at, i, TILES_N, TILES_M, WARPS)
            w_at += step
            s_at += step
        q_at = _advance(q_at, 16 * UNROLL)
    for i in tl.static_range(REST):
        acc = _step(acc, w_at, s_at, words, q_at, i, TILES_N, TILES_M, WARPS)
        w_at += step
        s_at += step

    for j in tl.static_range(TILES_M):
        rm = first_row + 8 * j + tl.arange(0, 8)
        if zero_ptr is not None:
            scale = tl.zeros([8], tl.float32) + tl.load(row_scale_ptr)
        else:
            scale = tl.load(row_scale_ptr + rm, mask=rm < M, other=0.0)
        for i in tl.static_range(TILES_N):
            rn = (tile + i * WARPS) * 16 + tl.arange(0, 16 * WARPS)
            # Lane 4 g + t of a warp holds outputs g and g + 8 of rows 2 t and 2 t + 1.
            block = tl.reshape(acc[i * TILES_M + j], [WARPS, 8, 4, 2, 2])
            block = tl.reshape(tl.permute(block, (2, 4, 0, 3, 1)), [8, 16 * WARPS])
            if zero_ptr is not None:
                block -= (tl.load(zero_ptr) * tl.load(sums_ptr + rn, mask=rn < N, other=0))[None, :]
            finish(block, scale, rm, rn, w_scale_ptr, bias_ptr, out_scale_ptr, out_zero_ptr, y_ptr, M, N, ACTIVATION)


@triton.jit
def _step(
    acc, w_at, s_at, words, q_at, i: tl.constexpr, TILES_N: tl.constexpr, TILES_M: tl.constexpr, WARPS: tl.constexpr
):
    """The sums of all tiles after one more step of 64 inputs, the ``i``-th from ``q_at`` on."""
    q = ()
    for j in tl.static_range(TILES_M):
        q += (tl.load(q_at[j] + 16 * i),)
    added = ()
    for n in tl.static_range(TILES_N):
        w = tl.load(w_at + (words + n * WARPS * 128))
        s = tl.load(s_at + (words + n * WARPS * 128))
        for m in tl.static_range(TILES_M):
            operands = [w, s, q[m], acc[n * TILES_M + m]]
            added += (tl.inline_asm_elementwise(PRODUCT, CONSTRAINTS, operands, tl.int32, is_pure=True, pack=4),)
    return added


@triton.jit
def _advance(pointers, words: tl.constexpr):
    moved = ()
    for j in tl.static_range(len(pointers)):
        moved += (pointers[j] + words,)
    return moved
