"""sparse24_linear on a GPU: allocate, launch what launch.py chose. Nothing waits for the stream."""

import torch
from torch import Tensor

from recpress_kernels.formats.sparse24_gpu import STEP, FragmentWeight
from recpress_kernels.int8_sparse24_linear.cuda import check_operands, runnable
from recpress_kernels.int8_sparse24_linear.launch import Config, gluon, grid, rest
from recpress_kernels.sparse24_linear import kernel
from recpress_kernels.sparse24_linear.launch import choose

_KINDS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def sparse24_linear(
    x: Tensor,
    weight: FragmentWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    config: Config | None = None,
) -> Tensor:
    """The op on checked operands: ``[M, N]`` in the dtype of x.

    Args:
        x: ``[M, K]`` float16 or bfloat16, its last dimension contiguous.
        weight: ``[N, K]`` in fragment order, of the dtype and on the device of x.
        bias: ``[N]`` float32 or of the dtype of x, or None.
        config: instead of what launch.py would choose.

    Raises:
        KernelInputError: the weight is of another dtype or shape, or the device or configuration cannot run it.
    """
    check_operands("sparse24_linear", x, weight, x.dtype)
    (m, k), n = x.shape, weight.out_features
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m == 0:
        return y
    facts = runnable("sparse24_linear", gluon, config, n, x.device)
    config = config or choose(m, n, k, facts)
    steps, tiles = weight.metadata.shape[:2]
    words = _words(x, steps * STEP)
    kernel.gemm_kernel[grid(config, m, n)](
        weight.values,
        weight.metadata,
        words,
        bias,
        y,
        m,
        n,
        steps,
        tiles,
        words.stride(0),
        REST=rest(config, steps),
        KIND=_KINDS[x.dtype],
        ACTIVATION=activation,
        TILES_N=config.tiles_n,
        TILES_M=config.tiles_m,
        UNROLL=config.unroll,
        STAGES=config.stages,
        SPLIT=config.split,
        WARPS=config.warps,
        num_warps=config.warps,
        enable_fp_fusion=False,
    )
    return y


def _words(x: Tensor, k: int) -> Tensor:
    """x as int32 ``[M, k / 2]`` with zeros from K on; its own memory where rows are whole words and end at ``k``."""
    if x.shape[1] < k or x.stride(0) % 2 or x.data_ptr() % 4:
        padded = torch.zeros(x.shape[0], k, dtype=x.dtype, device=x.device)
        padded[:, : x.shape[1]] = x
        x = padded
    return x.view(torch.int32)
