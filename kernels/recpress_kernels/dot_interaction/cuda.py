"""dot_interaction on a GPU: allocate, launch what launch.py chose. Everything stays on the stream; nothing waits."""

import torch
from torch import Tensor

from recpress_kernels.dot_interaction import kernel
from recpress_kernels.dot_interaction.launch import Config, choose


def dot_interaction(
    vectors: Tensor,
    front: Tensor | None = None,
    self_interaction: bool = False,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """The op on checked operands of any strides; ``config`` stands instead of what launch.py would choose."""
    vectors = vectors if vectors.stride(2) == 1 else vectors.contiguous()
    front = front if front is None or front.stride(1) == 1 else front.contiguous()
    batch, count, dim = vectors.shape
    front_width = 0 if front is None else front.shape[1]
    width = front_width + count * (count + (1 if self_interaction else -1)) // 2
    dtype = vectors.dtype if out_scale is None else torch.uint8
    y = torch.empty(batch, width, dtype=dtype, device=vectors.device)
    if y.numel() == 0:
        return y
    config = config or choose(count, dim, float32=vectors.dtype == torch.float32)
    kernel.dots_kernel[(batch,)](
        vectors,
        front,
        out_scale,
        out_zero_point,
        y,
        count,
        dim,
        front_width,
        width,
        vectors.stride(0),
        vectors.stride(1),
        0 if front is None else front.stride(0),
        SELF=int(self_interaction),
        BLOCK_V=config.block_v,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )
    return y
