"""Which tile int8_linear's kernel runs with: a pure function of the shape, and the launch itself."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """One program computes ``block_m`` rows times ``block_n`` columns, ``block_k`` of K at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# The first entry whose bound on M holds. Small batches take narrow tiles, so that the grid fills the GPU.
_TILES = (
    (16, Tile(16, 32, 128, 4, 3)),
    (64, Tile(32, 64, 128, 4, 3)),
    (1 << 62, Tile(64, 64, 128, 4, 3)),
)


def choose_tile(m: int) -> Tile:
    """The tile for ``m`` rows. Chosen by reasoning on the grid's size, not yet by measurement on a GPU."""
    return next(tile for bound, tile in _TILES if m <= bound)


def launch(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *, tile: Tile | None = None) -> Tensor:
    """Run the kernel on ``x`` ``[M, K]`` whose last dimension is contiguous: ``[M, N]`` in the dtype of x."""
    from recpress_kernels.int8_linear.kernel import int8_linear_kernel

    m, k = x.shape
    n = weight.shape[0]
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m == 0 or n == 0:
        return y
    tile = tile or choose_tile(m)
    grid = (-(-m // tile.block_m), -(-n // tile.block_n))
    int8_linear_kernel[grid](
        x,
        weight,
        weight_scale,
        weight_scale if bias is None else bias,
        y,
        m,
        n,
        k,
        x.stride(0),
        HAS_BIAS=bias is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return y
