"""The loop over K that both 2:4 kernels share: x from global memory to registers, or through shared memory.

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
    rounds,  # of UNROLL steps
    stride_x,  # in words
    KIND: gl.constexpr,  # s8, fp16 or bf16
    REST: gl.constexpr,  # steps of 64 inputs after the rounds
    TILES_N: gl.constexpr,
    TILES_M: gl.constexpr,
    UNROLL: gl.constexpr,
    STAGES: gl.constexpr,  # of x in shared memory, or 0: x goes to registers
    WARPS: gl.constexpr,
):
    """``[16 * TILES_N * WARPS, 8 * TILES_M]`` int32 or float32, in accumulator_layout."""
    TYPE: gl.constexpr = gl.int32 if KIND == "s8" else gl.float32
    acc = gl.zeros([16 * TILES_N * WARPS, 8 * TILES_M], TYPE, accumulator_layout(WARPS))
    w_at = values_ptr + tile * 128 + lane_offsets(TILES_N, 4, WARPS)
    s_at = metadata_ptr + tile * 32 + lane_offsets(TILES_N, 1, WARPS)
    LANES: gl.constexpr = x_layout(KIND, TILES_M, WARPS)
    WORDS: gl.constexpr = 16 if KIND == "s8" else 32  # of a row of x a step
    if STAGES:
        x_at = _x_pointers(x_ptr, M, first_row, stride_x, WORDS, TILES_M, copy_layout(WORDS, WARPS))
        acc = _staged(w_at, s_at, x_at, tiles, rounds * UNROLL + REST, acc, KIND, WORDS, STAGES, LANES)
    else:
        x_at = _x_pointers(x_ptr, M, first_row, stride_x, 16, TILES_M, LANES)
        acc = _direct(w_at, s_at, x_at, tiles, rounds, acc, KIND, WORDS, UNROLL, REST)
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
    steps = gl.to_tensor(steps)  # triton makes an argument of 1 a constant, which is no mask
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
def _x_pointers(x_ptr, M, first_row, stride_x, WORDS: gl.constexpr, TILES_M: gl.constexpr, LAYOUT: gl.constexpr):
    """Of rows that may not exist, the last one's: what they add up to is not stored."""
    row = gl.minimum(first_row + gl.arange(0, 8 * TILES_M, gl.SliceLayout(1, LAYOUT)), M - 1)
    word = gl.arange(0, WORDS, gl.SliceLayout(0, LAYOUT))
    return x_ptr + row.to(gl.int64)[:, None] * stride_x + word[None, :]
