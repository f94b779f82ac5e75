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
def products(kind, selector, tiles_n, tiles_m):
    """The text of all products of a warp: its tiles of W, one after another, with its tiles of x.

    ``kind`` is s8, fp16 or bf16. Registers are numbered from the sums on: those, W, one of metadata a tile, x, and the
    sums so far; four a tile, the sums' with the tiles of x varying first. ``selector`` says which lanes of each four
    hold the metadata: of 16 bits 0 or 1, of s8 0.
    """
    short = {"s8": "s8", "fp16": "f16", "bf16": "bf16"}[kind]
    shape = "m16n8k64.row.col.s32.s8.s8.s32" if kind == "s8" else f"m16n8k32.row.col.f32.{short}.{short}.f32"
    w = 4 * tiles_n * tiles_m
    metadata = w + 4 * tiles_n
    x = metadata + tiles_n
    acc = x + 4 * tiles_m
    lines = []
    for tile in range(tiles_n * tiles_m):
        row, column = tile // tiles_m, tile % tiles_m
        starts = (4 * tile, w + 4 * row, x + 4 * column, acc + 4 * tile)
        operands = ", ".join("{" + ", ".join(f"${start + i}" for i in range(4)) + "}" for start in starts)
        lines.append(f"mma.sp::ordered_metadata.sync.aligned.{shape} {operands}, ${metadata + row}, {selector};")
    return "\n".join(lines)


@gluon.jit
def multiply(w, metadata, x, acc, KIND: gl.constexpr, SELECTOR: gl.constexpr):
    """``acc`` + the products of one mma.sp a tile; operands as int32 words in the layouts below."""
    C: gl.constexpr = "r" if KIND == "s8" else "f"
    text: gl.constexpr = products(KIND, SELECTOR, w.shape[0], x.shape[0] // 8)
    # Early clobber: the first products' sums must not overwrite what the last ones read.
    return gl.inline_asm(text, ("=&" + C, "r", "r", "r", C), [w, metadata, x, acc], acc.type, is_pure=True)


@gluon.constexpr_function
def accumulator_layout(warps):
    """Tile ``m`` of warp ``w`` covers rows ``16 (m warps + w)``."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[warps, 1], instr_shape=[16, 8])


@gluon.constexpr_function
def lane_words_layout(rows, words, warps):
    """``[rows, 32 * words * warps]`` with ``words`` consecutive ones a lane, a row a register group."""
    return gl.BlockedLayout([rows, words], [1, 32], [1, warps], [1, 0])


@gluon.constexpr_function
def x_layout(kind, tiles, warps):
    """``[8 tiles, 16]`` words of x, four a lane: lane 4 g + t holds of rows g + 8 i, in every warp the same,

    of s8 words ``4 t + r``, which lie together; of 16 bits words ``t + 4 r``.
    """
    together, apart = [[0, 1], [0, 2]], [[0, 4], [0, 8]]
    words, lanes = (together, apart) if kind == "s8" else (apart, together)
    rows = [[8 << i, 0] for i in range(tiles.bit_length() - 1)]
    warp = [[0, 0] for _ in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(words + rows, [*lanes, [1, 0], [2, 0], [4, 0]], warp, [], [8 * tiles, 16])


@gluon.constexpr_function
def copy_layout(words, warps):
    """``[rows, words]`` of x as it is copied: 16 bytes a lane, whole rows of ``words`` a warp."""
    lanes = words // 4
    return gl.BlockedLayout([1, 4], [32 // lanes, lanes], [warps, 1], [1, 0])


@gluon.constexpr_function
def staged_layout(words):
    """Rows of x in shared memory, their 16-byte pieces exchanged so that eight rows meet all banks."""
    return gl.SwizzledSharedLayout(4, 32 // words, words // 4, [1, 0])


@gluon.jit
def lane_offsets(ROWS: gl.constexpr, WORDS: gl.constexpr, WARPS: gl.constexpr):
    """Offsets ``[ROWS, 32 * WORDS * WARPS]`` of words that lie a tile after another, a warp's one a row."""
    LAYOUT: gl.constexpr = lane_words_layout(ROWS, WORDS, WARPS)
    WIDTH: gl.constexpr = 32 * WORDS * WARPS
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    return rows[:, None] * WIDTH + gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))[None, :]
