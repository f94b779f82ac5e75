"""weight_only_linear on a GPU: allocate, launch what launch.py chose. Everything stays on the stream; nothing waits."""

import torch
from torch import Tensor

from recpress_kernels.int8_linear.cuda import device_facts
from recpress_kernels.int8_linear.launch import blocks
from recpress_kernels.weight_only_linear import kernel
from recpress_kernels.weight_only_linear.launch import Config, choose

_GROUP_M = 8


def weight_only_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    config: Config | None = None,
) -> Tensor:
    """The op on checked operands: x ``[M, K]`` and weight ``[N, K]``, last dimensions contiguous, to ``[M, N]``.

    ``config`` stands instead of what launch.py would choose.
    """
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m == 0 or n == 0:
        return y
    config = config or choose(m, n, device_facts(x.device), float32=x.dtype == torch.float32)
    kernel.gemm_kernel[(blocks(config, m, n),)](
        x,
        weight,
        weight_scale,
        bias,
        y,
        m,
        n,
        k,
        x.stride(0),
        weight.stride(0),
        ACTIVATION=activation,
        TAIL=k % config.block_k != 0,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=_GROUP_M,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
    return y
