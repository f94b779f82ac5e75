"""int8_linear on a GPU: allocate, launch what launch.py chose. Everything stays on the stream; nothing waits."""

import functools

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from recpress_kernels.errors import KernelInputError
from recpress_kernels.int8_linear import kernel
from recpress_kernels.int8_linear.launch import ROW_BYTES, Config, Device, choose, k_split, supports, with_cross
from recpress_kernels.int8_linear.tuned import table_of

_GROUP_M = 8


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    *,
    cross: tuple[Tensor, Tensor] | None = None,
    config: Config | None = None,
) -> Tensor:
    """The op on checked operands: ``[M, N]`` in the dtype of x, float32 for uint8, or uint8 with ``out_scale``.

    Args:
        x: ``[M, K]`` float or uint8, its last dimension contiguous.
        weight: int8 ``[N, K]``, its last dimension contiguous; rows may be padded, see :func:`pad_rows`.
        cross: x0 and x, both contiguous ``[M, N]`` in the dtype of the output, which is x0 * y + x then.
        config: instead of what launch.py would choose.

    Raises:
        KernelInputError: the given configuration cannot run on these operands.
    """
    m, k = x.shape
    n = weight.shape[0]
    y = torch.empty(m, n, dtype=_out_dtype(x, out_scale), device=x.device)
    if m == 0 or n == 0:
        return y
    quantized = x.dtype == torch.uint8
    aligned = _aligned(weight) and (not quantized or _aligned(x))
    if config is None:
        config = _choice(m, n, k, x.device, quantized, aligned)
        config = config if cross is None else with_cross(config, device_facts(x.device))
    elif not (support := supports(config, quantized=quantized, aligned=aligned)):
        raise KernelInputError(f"int8_linear: {support.reason}")
    epilogue = (weight_scale, bias, out_scale, out_zero_point, *(cross or (None, None)))
    if config.route == "fused":
        _fused(x, weight, x_scale, x_zero_point, epilogue, y, activation, config)
        return y
    zero = None
    if quantized:
        q, row_scale, zero = x.view(torch.int8), x_scale, x_zero_point
    else:
        q, row_scale = quantize_rows(x, x_scale, x_zero_point)
        # q is followed by zeros up to a multiple of 16, so that what the weight's padding holds does not matter.
        k = _readable(weight, k)
    run = _tma if config.route == "tma" else _gemm
    run(q, weight, k, row_scale, zero, epilogue, y, activation, config)
    return y


def pad_rows(weight: Tensor) -> Tensor:
    """``weight`` int8 ``[N, K]`` as a view of storage whose rows are multiples of 16 bytes; itself where they are.

    A load step: it lets an odd K be read in 16-byte loads and through tensor descriptors.
    """
    n, k = weight.shape
    if k % ROW_BYTES == 0:
        return weight.contiguous()
    padded = weight.new_zeros(n, _round_up(k))
    padded[:, :k] = weight
    return padded[:, :k]


def quantize_rows(x: Tensor, x_scale: Tensor | None = None, x_zero_point: Tensor | None = None):
    """``(q - zero) int8 [M, K]`` and ``scale float32 [M]`` of float ``x``; rows of q are padded with zeros to 16."""
    q, row_scale = quantize_padded(x, x_scale, x_zero_point, _round_up(x.shape[1]))
    return q[:, : x.shape[1]], row_scale


def quantize_padded(x: Tensor, x_scale: Tensor | None, x_zero_point: Tensor | None, padded: int):
    """``(q - zero) int8 [M, padded]``, zeros from K on, and ``scale float32 [M]`` of float ``x``."""
    m, k = x.shape
    q = torch.empty(m, padded, dtype=torch.int8, device=x.device)
    row_scale = torch.empty(m, dtype=torch.float32, device=x.device)
    block_k = min(4096, triton.next_power_of_2(padded))
    block_m = max(1, 4096 // block_k // 2)
    kernel.quantize_rows_kernel[(triton.cdiv(m, block_m),)](
        x,
        x_scale,
        x_zero_point,
        q,
        row_scale,
        m,
        k,
        padded,
        x.stride(0),
        ONE_BLOCK=padded <= block_k,
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return q, row_scale


@functools.lru_cache(maxsize=4096)
def _choice(m: int, n: int, k: int, device: torch.device, quantized: bool, aligned: bool) -> Config:
    """What was measured on this GPU for this shape, or else what launch.py chooses."""
    measured = table_of(torch.cuda.get_device_name(device)).find(m, n, k, quantized=quantized, aligned=aligned)
    return measured or choose(m, n, k, device_facts(device), quantized=quantized, aligned=aligned)


@functools.cache
def device_facts(device: torch.device) -> Device:
    """What launch.py asks about a GPU."""
    properties = torch.cuda.get_device_properties(device)
    backend = "hip" if torch.version.hip else "cuda"
    capability = 0 if backend == "hip" else properties.major * 10 + properties.minor
    major, minor = triton.__version__.split(".")[:2]
    return Device(backend, capability, properties.multi_processor_count, (int(major), int(minor)))


def _out_dtype(x: Tensor, out_scale: Tensor | None) -> torch.dtype:
    if out_scale is not None:
        return torch.uint8
    return torch.float32 if x.dtype == torch.uint8 else x.dtype


def _fused(x, weight, x_scale, x_zero_point, epilogue, y, activation, config) -> None:
    (m, n), k = y.shape, x.shape[1]
    partial = row_scale = None
    if config.splits > 1:
        partial = torch.empty(config.splits, m, n, dtype=torch.int32, device=x.device)
        row_scale = torch.empty(m, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n), config.splits)
    weight_scale, bias, *after = epilogue
    kernel.fused_kernel[grid](
        x,
        weight,
        weight_scale,
        bias,
        x_scale,
        x_zero_point,
        *after,
        y,
        partial,
        row_scale,
        m,
        n,
        k,
        _readable(weight, k),
        k_split(config, k),
        x.stride(0),
        weight.stride(0),
        ACTIVATION=activation,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        **_options(config),
    )
    if partial is not None:
        _reduce(partial, row_scale, epilogue, y, activation)


def _gemm(q, weight, k, row_scale, zero, epilogue, y, activation, config) -> None:
    """``zero`` is None where q already has its zero point subtracted; then ``row_scale`` is ``[M]``, else a scalar."""
    m, n = y.shape
    partial = None
    if config.splits > 1:
        partial = torch.empty(config.splits, m, n, dtype=torch.int32, device=y.device)
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n), config.splits)
    kernel.gemm_kernel[grid](
        q,
        weight,
        row_scale,
        zero,
        *epilogue,
        y,
        partial,
        m,
        n,
        k,
        k_split(config, k),
        q.stride(0),
        weight.stride(0),
        SCALAR_SCALE=zero is not None,
        ACTIVATION=activation,
        HALVES=config.halves,
        TAIL=k % config.block_k != 0,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=_GROUP_M,
        **_options(config),
    )
    if partial is not None:
        _reduce(partial, row_scale, epilogue, y, activation, scalar_scale=zero is not None)


def _tma(q, weight, k, row_scale, zero, epilogue, y, activation, config) -> None:
    m, n = y.shape
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)
    kernel.gemm_tma_kernel[grid](
        TensorDescriptor(q, [m, k], [q.stride(0), 1], [config.block_m, config.block_k]),
        TensorDescriptor(weight, [n, k], [weight.stride(0), 1], [config.block_n, config.block_k]),
        row_scale,
        zero,
        *epilogue,
        y,
        m,
        n,
        k,
        SCALAR_SCALE=zero is not None,
        ACTIVATION=activation,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=_GROUP_M,
        **_options(config),
    )


def _reduce(partial, row_scale, epilogue, y, activation, *, scalar_scale=False) -> None:
    m, n = y.shape
    block_m, block_n = min(4, triton.next_power_of_2(m)), 128
    kernel.reduce_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, block_n))](
        partial,
        row_scale,
        *epilogue,
        y,
        m,
        n,
        SPLITS=partial.shape[0],
        SCALAR_SCALE=scalar_scale,
        ACTIVATION=activation,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
        enable_fp_fusion=False,
    )


def _options(config: Config) -> dict[str, object]:
    # Products and sums are not fused, so that the floats of `none` and `relu` have the same bits on every device.
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": False}


def _aligned(rows: Tensor) -> bool:
    return rows.data_ptr() % ROW_BYTES == 0 and rows.stride(0) % ROW_BYTES == 0


def _readable(rows: Tensor, k: int) -> int:
    """``k`` rounded up to whole 16 bytes where every row of storage reaches that far, else ``k``."""
    last = rows.storage_offset() + (rows.shape[0] - 1) * rows.stride(0)
    reach = min(rows.stride(0), rows.untyped_storage().nbytes() - last)
    return _round_up(k) if reach >= _round_up(k) else k


def _round_up(k: int) -> int:
    return -(-k // ROW_BYTES) * ROW_BYTES
