"""sparse24_linear on NVIDIA's sparse tensor cores: y^T = W x^T in fp16 or bf16, W 2:4 and the first operand, in Gluon.

As int8_sparse24_linear/kernel.py, but for the registers of x: two inputs a word, so that a lane's four words of a row
lie 16 bytes apart and are loaded one by one.

Imports triton alone; compiles under triton 3.9 and later, where Gluon has threadwise inline asm.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from recpress_kernels.sparse24_linear.blocks import accumulator_layout, activate, lane_offsets, multiply, x_layout


@gluon.jit
def gemm_kernel(
    values_ptr,  # [2 * steps, tiles, 32, 4] int32, two values a word
    metadata_ptr,  # [steps, tiles, 32] int32
    x_ptr,  # [M, stride_xm] int32, two inputs a word, zeros from K up to 64 * steps
    bias_ptr,  # [N] float32 or KIND, or None
    y_ptr,  # [M, N] contiguous
    M,
    N,
    rounds,  # of UNROLL steps
    tiles,  # of 16 outputs, at least TILES_N * WARPS
    stride_xm,  # in words
    REST: gl.constexpr,  # steps of 64 inputs after the rounds
    KIND: gl.constexpr,  # fp16 or bf16
    ACTIVATION: gl.constexpr,
    TILES_N: gl.constexpr,  # tiles of 16 outputs a warp
    TILES_M: gl.constexpr,  # tiles of 8 rows of x
    UNROLL: gl.constexpr,
    WARPS: gl.constexpr,
):
    # The last block begins early instead of ending past the edge: it computes some outputs again, to the same bits,
    # and no load of a weight needs a mask.
    tile = gl.minimum(gl.program_id(0) * (TILES_N * WARPS), tiles - TILES_N * WARPS)
    w_at = values_ptr + tile * 128 + lane_offsets(TILES_N, 4, WARPS)
    s_at = metadata_ptr + tile * 32 + lane_offsets(TILES_N, 1, WARPS)
    w_half, s_step = tiles * 128, tiles * 32
    first_row = gl.program_id(1) * (8 * TILES_M)
    XL: gl.constexpr = x_layout(KIND, TILES_M, WARPS)
    row = gl.minimum(first_row + gl.arange(0, 8 * TILES_M, gl.SliceLayout(1, XL)), M - 1)
    word = gl.arange(0, 16, gl.SliceLayout(0, XL))
    x_at = x_ptr + row.to(gl.int64)[:, None] * stride_xm + word[None, :]

    ACC: gl.constexpr = accumulator_layout(WARPS)
    acc = gl.zeros([16 * TILES_N * WARPS, 8 * TILES_M], gl.float32, ACC)
    for _round in range(0, rounds):
        for i in gl.static_range(UNROLL):
            acc = _step(w_at + 2 * i * w_half, w_half, s_at + i * s_step, x_at + 32 * i, acc, KIND)
        w_at += 2 * UNROLL * w_half
        s_at += UNROLL * s_step
        x_at += 32 * UNROLL
    for i in gl.static_range(REST):
        acc = _step(w_at + 2 * i * w_half, w_half, s_at + i * s_step, x_at + 32 * i, acc, KIND)

    n = tile * 16 + gl.arange(0, 16 * TILES_N * WARPS, gl.SliceLayout(1, ACC))
    m = first_row + gl.arange(0, 8 * TILES_M, gl.SliceLayout(0, ACC))
    n_in, m_in = n < N, m < M
    if bias_ptr is not None:
        acc += gl.load(bias_ptr + n, mask=n_in, other=0.0).to(gl.float32)[:, None]
    y = activate(acc, ACTIVATION)
    at = y_ptr + m.to(gl.int64)[None, :] * N + n[:, None]
    gl.store(at, y.to(y_ptr.dtype.element_ty), mask=n_in[:, None] & m_in[None, :])


@gluon.jit
def _step(w_at, w_half, s_at, x_at, acc, KIND: gl.constexpr):
    """64 inputs: two products, whose metadata share a word (selectors 0 and 1)."""
    metadata = gl.load(s_at)
    acc = multiply(gl.load(w_at), metadata, gl.load(x_at), acc, KIND, 0)
    return multiply(gl.load(w_at + w_half), metadata, gl.load(x_at + 16), acc, KIND, 1)
