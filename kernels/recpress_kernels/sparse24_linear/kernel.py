"""sparse24_linear on NVIDIA's sparse tensor cores: y^T = W x^T in fp16 or bf16, W 2:4 and the first operand, in Gluon.

As int8_sparse24_linear/kernel.py, but for the registers of x: two inputs a word, so that a lane's four words of a row
lie 16 bytes apart and are loaded one by one.

Imports triton alone; compiles under triton 3.9 and later, where Gluon has threadwise inline asm.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from recpress_kernels.sparse24_linear.blocks import accumulator_layout, activate
from recpress_kernels.sparse24_linear.sums import sums


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
        x_ptr,
        M,
        first_row,
        tile,
        tiles,
        rounds,
        stride_xm,
        KIND,
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
    if bias_ptr is not None:
        acc += gl.load(bias_ptr + n, mask=n_in, other=0.0).to(gl.float32)[:, None]
    y = activate(acc, ACTIVATION)
    at = y_ptr + m.to(gl.int64)[None, :] * N + n[:, None]
    gl.store(at, y.to(y_ptr.dtype.element_ty), mask=n_in[:, None] & m_in[None, :])
