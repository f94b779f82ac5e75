"""fm_interaction on a GPU: allocate, launch what launch.py chose. Everything stays on the stream; nothing waits."""

import torch
import triton
from torch import Tensor

from recpress_kernels.fm_interaction import kernel
from recpress_kernels.fm_interaction.launch import choose


def fm_interaction(vectors: Tensor) -> Tensor:
    """The op on checked operands of any strides."""
    vectors = vectors if vectors.stride(2) == 1 else vectors.contiguous()
    batch, count, dim = vectors.shape
    y = torch.empty(batch, 1, dtype=vectors.dtype, device=vectors.device)
    if batch == 0:
        return y
    config = choose(dim)
    kernel.second_order_kernel[(triton.cdiv(batch, config.block_b),)](
        vectors,
        y,
        batch,
        count,
        dim,
        vectors.stride(0),
        vectors.stride(1),
        BLOCK_B=config.block_b,
        BLOCK_D=config.block_d,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return y
