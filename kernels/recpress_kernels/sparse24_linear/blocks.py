"""What the 2:4 kernels share on the device: the sparse tensor-core instruction, written as threadwise inline asm.

Imports triton alone. triton's language has no sparse dot; the registers that mma.sp takes are the same four a lane
everywhere, so that layouts that say which lane holds what are enough.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from recpress_kernels.int8_linear import blocks as dense

# The dense kernels' own functions, compiled as Gluon: they are elementwise and name no layout.
activate = gluon.jit(dense.activate.fn)
clamp_round = gluon.jit(dense.clamp_round.fn)


@gluon.constexpr_function
def products(kind, selector, outputs, inputs):
    """All products of a warp on ``kind`` s8, f16 or bf16: its tiles of W, one after another, with its tiles of x.

    Registers come a tile after another, four each; the accumulator's with the tiles of x varying first.
    """
    shape = "m16n8k64.row.col.s32.s8.s8.s32" if kind == "s8" else f"m16n8k32.row.col.f32.{kind}.{kind}.f32"
    (d,) = outputs
    a, metadata, b, c = inputs
    across = len(b) // 4
    lines = []
    for tile in range(len(a) // 4 * across):
        row, column = tile // across, tile % across
        four = (d[4 * tile :], a[4 * row :], b[4 * column :], c[4 * tile :])
        operands = ", ".join("{" + ", ".join(registers[:4]) + "}" for registers in four)
        lines.append(f"mma.sp::ordered_metadata.sync.aligned.{shape} {operands}, {metadata[row]}, {selector};")
    return "\n".join(lines)


@gluon.constexpr_function
def products_s8(outputs, inputs):
    return products("s8", 0, outputs, inputs)


@gluon.constexpr_function
def accumulator_layout(warps):
    """Tile ``m`` of warp ``w`` covers rows ``16 (m warps + w)``."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[warps, 1], instr_shape=[16, 8])


@gluon.constexpr_function
def lane_words_layout(rows, words, warps):
    """``[rows, 32 * words * warps]`` with ``words`` consecutive ones a lane, a row a register group."""
    return gl.BlockedLayout([rows, words], [1, 32], [1, warps], [1, 0])


@gluon.constexpr_function
def x_layout(words, warps):
    """``[8 n, 16]`` words of x: lane 4 g + t holds ``words`` at a time of rows g + 8 i, in every warp the same.

    Warps lie along the words, of which there are not enough for two: so they repeat each other.
    """
    return gl.BlockedLayout([1, words], [8, 4], [1, warps], [1, 0])
