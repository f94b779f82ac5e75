"""int8_sparse24_linear on a GPU: allocate, launch what launch.py chose. Nothing waits for the stream."""

from collections.abc import Callable

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.sparse24_gpu import STEP, FragmentWeight, check
from recpress_kernels.int8_linear.cuda import device_facts, quantize_padded
from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_sparse24_linear import decompress, kernel, plain
from recpress_kernels.int8_sparse24_linear.launch import Config, choose, fits, form, grid, rest, supports
from recpress_kernels.int8_sparse24_linear.layouts import Checked
from recpress_kernels.support import Support


def int8_sparse24_linear(
    x: Tensor,
    weight: FragmentWeight,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """The op on checked operands: ``[M, N]`` in the dtype of x, float32 for uint8, or uint8 with ``out_scale``.

    Args:
        x: ``[M, K]`` float or uint8, its last dimension contiguous.
        weight: int8 ``[N, K]`` in fragment order, on the device of x.
        config: instead of what launch.py would choose.

    Raises:
        KernelInputError: the weight is not int8 in this order, or the device or configuration cannot run it.
    """
    check_operands("int8_sparse24_linear", x, weight, torch.int8)
    (m, k), n = x.shape, weight.out_features
    dtype = torch.uint8 if out_scale is not None else torch.float32 if x.dtype == torch.uint8 else x.dtype
    y = torch.empty(m, n, dtype=dtype, device=x.device)
    if m == 0:
        return y
    facts = runnable("int8_sparse24_linear", supports, config, n, x.device)
    config = config or choose(m, n, k, facts)
    steps, tiles = weight.values.shape[:2]
    sums = zero = None
    if x.dtype == torch.uint8:
        q, row_scale, zero, sums = _padded(x, steps * STEP), x_scale, x_zero_point, weight.sums
    else:
        q, row_scale = quantize_padded(x, x_scale, x_zero_point, steps * STEP)
    gemm, metadata = _kernel(facts, config, weight.metadata)
    gemm[grid(config, m, n)](
        weight.values,
        metadata,
        sums,
        q.view(torch.int32),
        row_scale,
        zero,
        weight_scale,
        bias,
        out_scale,
        out_zero_point,
        y,
        m,
        n,
        steps,
        tiles,
        q.stride(0) // 4,
        REST=rest(config, steps),
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


def _kernel(facts: Device, config: Config, metadata: Tensor) -> tuple[object, Tensor]:
    """The kernel in the form that a device takes, and the metadata as that reads them: words, or their bytes."""
    if form(facts) == "gluon":
        return kernel.gemm_kernel, metadata
    if config.stages or config.split:
        raise KernelInputError(
            f"int8_sparse24_linear: {config} and form {form(facts)}; give neither stages nor split, or use Gluon"
        )
    if form(facts) == "plain":
        return Checked(plain.gemm_kernel), metadata.view(torch.int8)
    return decompress.gemm_kernel, metadata.view(torch.int8)


def check_operands(op: str, x: Tensor, weight: FragmentWeight, dtype: torch.dtype) -> None:
    """Check that ``x`` and a weight of ``dtype`` belong together; K may end inside the weight's last group of four.

    Raises:
        KernelInputError: they do not.
    """
    check(weight)
    if weight.dtype != dtype:
        raise KernelInputError(f"{op}: weight is of {weight.dtype}; give one packed from {dtype} values")
    padded = -(-x.shape[-1] // 4) * 4
    if x.dim() != 2 or padded != weight.in_features or x.device != weight.values.device:
        raise KernelInputError(
            f"{op}: x has shape {tuple(x.shape)} on {x.device}; the weight takes "
            f"[M, {weight.in_features}] on {weight.values.device}"
        )


def runnable(
    op: str, supports: Callable[[Device], Support], config: Config | None, n: int, device: torch.device
) -> Device:
    """What launch.py asks about ``device``, once it is known to run the kernel, in ``config`` if that is given.

    Raises:
        KernelInputError: it does not.
    """
    facts = device_facts(device)
    for support in (supports(facts), config is None or fits(config, n)):
        if not support:
            raise KernelInputError(f"{op}: {support.reason}")
    return facts


def _padded(x: Tensor, k: int) -> Tensor:
    """uint8 x as int8 with zeros up to ``k``; itself where its rows already lie so."""
    if x.shape[1] == k and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0:
        return x.view(torch.int8)
    q = torch.zeros(x.shape[0], k, dtype=torch.int8, device=x.device)
    q[:, : x.shape[1]] = x.view(torch.int8)
    return q
