"""int8_sparse24_linear on NVIDIA's sparse tensor cores: y^T = W x^T, W 2:4 and the first operand, in Gluon.

The sparse operand has 16 rows an instruction and the dense one 8 columns, so that the weight's outputs take the rows
and a batch of 8 wastes nothing. Weights come in fragment order (formats/sparse24_gpu.py): each operand is one load of
16 bytes a lane from global memory, and nothing passes through shared memory.

Imports triton alone; compiles under triton 3.9 and later, where Gluon has threadwise inline asm.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from recpress_kernels.sparse24_linear.blocks import (
    accumulator_layout,
    activate,
    clamp_round,
)
from recpress_kernels.sparse24_linear.sums import sums


@gluon.jit
def gemm_kernel(
    values_ptr,  # [steps, tiles, 32, 4] int32
    metadata_ptr,  # [steps, tiles, 32] int32
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
    rounds,  # of UNROLL steps
    tiles,  # of 16 outputs, at least TILES_N * WARPS
    stride_qm,  # in words
    REST: gl.constexpr,  # steps of 64 inputs after the rounds
    ACTIVATION: gl.constexpr,
    TILES_N: gl.constexpr,  # tiles of 16 outputs a warp
    TILES_M: gl.constexpr,  # tiles of 8 rows of x
    UNROLL: gl.constexpr,
    STAGES: gl.constexpr,  # of x in shared memory, or 0: x goes to registers
    WARPS: gl.constexpr,
):
    # The last block begins early instead of ending past the edge: it computes some outputs again, to the same bits,
    # and no load of a weight needs a mask.
    tile = gl.minimum(gl.program_id(0) * (TILES_N * WARPS), tiles - TILES_N * WARPS)
    first_row = gl.program_id(1) * (8 * TILES_M)
    acc = sums(
        values_ptr,
        metadata_ptr,
        q_ptr,
        M,
        first_row,
        tile,
        tiles,
        rounds,
        stride_qm,
        "s8",
        REST,
        TILES_N,
        TILES_M,
        UNROLL,
        STAGES,
        WARPS,
    )
    ACC: gl.constexpr = accumulator_layout(WARPS)
    n = tile * 16 + gl.arange(0, 16 * TILES_N * WARPS, gl.SliceLayout(1, ACC))
    m = first_row + gl.arange(0, 8 * TILES_M, gl.SliceLayout(0, ACC))
    n_in, m_in = n < N, m < M
    if zero_ptr is not None:
        acc -= (gl.load(zero_ptr) * gl.load(sums_ptr + n, mask=n_in, other=0))[:, None]
        scale = gl.load(row_scale_ptr + m * 0)  # a scalar, as the zero point is
    else:
        scale = gl.load(row_scale_ptr + m, mask=m_in, other=0.0)
    w_scale = gl.load(w_scale_ptr + n, mask=n_in, other=0.0)
    y = acc.to(gl.float32) * scale[None, :] * w_scale[:, None]
    if bias_ptr is not None:
        y += gl.load(bias_ptr + n, mask=n_in, other=0.0)[:, None]
    y = activate(y, ACTIVATION)
    if out_scale_ptr is not None:
        out_zero = gl.load(out_zero_ptr).to(gl.float32)
        y = gl.div_rn(y, gl.full_like(y, 1.0) * gl.load(out_scale_ptr))
        y = clamp_round(y, -out_zero, 127.0 - out_zero).to(gl.float32) + out_zero
    at = y_ptr + m.to(gl.int64)[None, :] * N + n[:, None]
    gl.store(at, y.to(y_ptr.dtype.element_ty), mask=n_in[:, None] & m_in[None, :])
