"""The loop over K that both 2:4 kernels share, in three forms.

Warps of a program share rows of x and have outputs of their own: each loads x into its registers, or all read it from
shared memory. Or, where there are too few outputs to fill a GPU, they share the outputs and split K.

Imports triton alone.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from recpress_kernels.sparse24_linear.blocks import (
    accumulator_layout,
    copy_layout,
    lane_offsets,
    multiply,
    staged_layout,
    x_layout,
)


@gluon.jit
def sums(
    values_ptr,  # [steps, tiles, 32, 4] int32 of s8, twice as many of 16 bits
    metadata_ptr,  # [steps, tiles, 32] int32
    x_ptr,  # [M, stride_x] int32, zeros from K up to 64 * steps
    M,
    first_row,  # of x
    tile,  # the first of outputs
    tiles,
    steps,  # of 64 inputs
    stride_x,  # in words
    KIND: gl.constexpr,  # s8, fp16 or bf16
    REST: gl.constexpr,  # steps, with SPLIT of each warp, that the loop leaves over
    TILES_N: gl.constexpr,
    TILES_M: gl.constexpr,
    UNROLL: gl.constexpr,
    STAGES: gl.constexpr,  # of x in shared memory, or 0: x goes to registers
    SPLIT: gl.constexpr,  # warps split K
    WARPS: gl.constexpr,
):
    """``[outputs, 8 * TILES_M]`` int32 or float32 in accumulator_layout: ``16 * TILES_N`` outputs a warp, or in all."""
    steps = gl.to_tensor(steps)  # triton makes an argument of 1 a constant, which is no mask
    TYPE: gl.constexpr = gl.int32 if KIND == "s8" else gl.float32
    acc = gl.zeros([16 * TILES_N * WARPS, 8 * TILES_M], TYPE, accumulator_layout(WARPS))
    values_ptr += tile * 128
    metadata_ptr += tile * 32
    LANES: gl.constexpr = x_layout(KIND, TILES_M, WARPS, SPLIT)
    WORDS: gl.constexpr = 16 if KIND == "s8" else 32  # of a row of x a step
    if SPLIT:
        x_at = _x_pointers(x_ptr, M, first_row, stride_x, 16 * WARPS, TILES_M, LANES, WORDS)
        acc = _split(values_ptr, metadata_ptr, x_at, tiles, steps, acc, KIND, WORDS, TILES_N, UNROLL, REST, WARPS)
        acc = gl.sum(acc.reshape([TILES_N, WARPS, 16, 8 * TILES_M]), axis=1).reshape([16 * TILES_N, 8 * TILES_M])
        acc = gl.convert_layout(acc, accumulator_layout(WARPS))
    else:
        w_at = values_ptr + lane_offsets(TILES_N, 4, WARPS, 32 * 4 * WARPS, 32 * 4)
        s_at = metadata_ptr + lane_offsets(TILES_N, 1, WARPS, 32 * WARPS, 32)
        if STAGES:
            COPY: gl.constexpr = copy_layout(WORDS, WARPS)
            x_at = _x_pointers(x_ptr, M, first_row, stride_x, WORDS, TILES_M, COPY, 16)
            acc = _staged(w_at, s_at, x_at, tiles, steps, acc, KIND, WORDS, STAGES, LANES)
        else:
            x_at = _x_pointers(x_ptr, M, first_row, stride_x, 16, TILES_M, LANES, 16)
            acc = _direct(w_at, s_at, x_at, tiles, steps // UNROLL, acc, KIND, WORDS, UNROLL, REST)
    return acc


@gluon.jit
def _direct(
    w_at,
    s_at,
    x_at,
    tiles,
    rounds,
    acc,
    KIND: gl.constexpr,
    WORDS: gl.constexpr,
    UNROLL: gl.constexpr,
    REST: gl.constexpr,
):
    w_step, s_step = tiles * (8 * WORDS), tiles * 32
    for _round in range(0, rounds):
        for i in gl.static_range(UNROLL):
            acc = _direct_step(w_at + i * w_step, s_at + i * s_step, x_at + i * WORDS, tiles, acc, KIND)
        w_at += UNROLL * w_step
        s_at += UNROLL * s_step
        x_at += UNROLL * WORDS
    for i in gl.static_range(REST):
        acc = _direct_step(w_at + i * w_step, s_at + i * s_step, x_at + i * WORDS, tiles, acc, KIND)
    return acc


@gluon.jit
def _direct_step(w_at, s_at, x_at, tiles, acc, KIND: gl.constexpr):
    """64 inputs: one product of s8; two of 16 bits, whose metadata share a word (selectors 0 and 1)."""
    metadata = gl.load(s_at)
    acc = multiply(gl.load(w_at), metadata, gl.load(x_at), acc, KIND, 0)
    if KIND != "s8":
        acc = multiply(gl.load(w_at + tiles * 128), metadata, gl.load(x_at + 16), acc, KIND, 1)
    return acc


@gluon.jit
def _split(
    values_ptr,
    metadata_ptr,
    x_at,
    tiles,
    steps,
    acc,
    KIND: gl.constexpr,
    WORDS: gl.constexpr,
    TILES_N: gl.constexpr,
    UNROLL: gl.constexpr,
    REST: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Warp w takes steps w, w + WARPS, ...; the last ones may not exist, and count as zeros."""
    w_step, s_step = tiles * (8 * WORDS), tiles * 32
    w_at = values_ptr + lane_offsets(TILES_N, 4, WARPS, 32 * 4, w_step)
    s_at = metadata_ptr + lane_offsets(TILES_N, 1, WARPS, 32, s_step)
    ROUND: gl.constexpr = WARPS * UNROLL
    for _round in range(0, steps // ROUND):
        for i in gl.static_range(UNROLL):
            j = i * WARPS
            acc = _direct_step(w_at + j * w_step, s_at + j * s_step, x_at + j * WORDS, tiles, acc, KIND)
        w_at += ROUND * w_step
        s_at += ROUND * s_step
        x_at += ROUND * WORDS
    left = steps % ROUND
    W_WARP: gl.constexpr = gl.SliceLayout(0, w_at.type.layout)
    S_WARP: gl.constexpr = gl.SliceLayout(0, s_at.type.layout)
    X_WARP: gl.constexpr = gl.SliceLayout(0, x_at.type.layout)
    w_warp = (gl.arange(0, 128 * WARPS, W_WARP) // 128)[None, :]
    s_warp = (gl.arange(0, 32 * WARPS, S_WARP) // 32)[None, :]
    x_warp = (gl.arange(0, 16 * WARPS, X_WARP) // 16)[None, :]
    for i in gl.static_range(REST):
        j = i * WARPS
        w_in, x_in = w_warp + j < left, x_warp + j < left
        metadata = gl.load(s_at + j * s_step, mask=s_warp + j < left, other=0x44444444)  # places 0 and 1 everywhere
        w = gl.load(w_at + j * w_step, mask=w_in, other=0)
        acc = multiply(w, metadata, gl.load(x_at + j * WORDS, mask=x_in, other=0), acc, KIND, 0)
        if KIND != "s8":
            w = gl.load(w_at + j * w_step + tiles * 128, mask=w_in, other=0)
            acc = multiply(w, metadata, gl.load(x_at + j * WORDS + 16, mask=x_in, other=0), acc, KIND, 1)
    return acc


@gluon.jit
def _staged(
    w_at,
    s_at,
    x_at,
    tiles,
    steps,
    acc,
    KIND: gl.constexpr,
    WORDS: gl.constexpr,
    STAGES: gl.constexpr,
    LANES: gl.constexpr,
):
    """Step by step: unrolled, what follows the loop for the steps left over spills up to 56 registers."""
    places = gl.allocate_shared_memory(gl.int32, [STAGES, acc.shape[1], WORDS], staged_layout(WORDS))
    for i in gl.static_range(STAGES - 1):
        async_copy.async_load(places.index(i), x_at + i * WORDS, mask=i < steps)
        async_copy.commit_group()
    x_at += (STAGES - 1) * WORDS
    full, empty = 0, STAGES - 1
    for step in range(0, steps):
        async_copy.wait_group(STAGES - 2)
        # For the copies of all warps; and all have left the step before this one, whose place is filled again.
        gl.barrier()
        async_copy.async_load(places.index(empty), x_at, mask=step + STAGES - 1 < steps)
        async_copy.commit_group()
        metadata = gl.load(s_at)
        acc = multiply(gl.load(w_at), metadata, places.index(full).slice(0, 16, 1).load(LANES), acc, KIND, 0)
        if KIND != "s8":
            x = places.index(full).slice(16, 16, 1).load(LANES)
            acc = multiply(gl.load(w_at + tiles * 128), metadata, x, acc, KIND, 1)
        w_at += tiles * (8 * WORDS)
        s_at += tiles * 32
        x_at += WORDS
        empty = full
        full = gl.where(full == STAGES - 1, 0, full + 1)
    return acc


@gluon.jit
def _x_pointers(
    x_ptr,
    M,
    first_row,
    stride_x,
    WORDS: gl.constexpr,
    TILES_M: gl.constexpr,
    LAYOUT: gl.constexpr,
    STEP: gl.constexpr,  # words from the first of 16 words to the first of the next 16
):
    """Of rows that may not exist, the last one's: what they add up to is not stored."""
    row = gl.minimum(first_row + gl.arange(0, 8 * TILES_M, gl.SliceLayout(1, LAYOUT)), M - 1)
    word = gl.arange(0, WORDS, gl.SliceLayout(0, LAYOUT))
    if STEP != 16:
        word = word // 16 * STEP + word % 16
    return x_ptr + row.to(gl.int64)[:, None] * stride_x + word[None, :]
