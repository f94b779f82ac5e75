"""dot_interaction on a CPU: the native kernel, or else torch's batched matmul."""

import torch
from torch import Tensor

from recpress_kernels import native
from recpress_kernels.dot_interaction import reference

_CODES = {dtype: native.DTYPES[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def path() -> str:
    """Which path runs, and why not the other."""
    status = native.status()
    return status.reason if status.ok else f"torch's matmul, slower: {status.reason}"


def plain(vectors: Tensor, front: Tensor | None) -> Tensor | None:
    """The usual case, whose checks take 1 us: contiguous ``vectors`` ``[B, V, D]`` and ``front`` ``[B, F]``.

    None where there is anything else about the operands, faults included.
    """
    shape, dtype = vectors.shape, vectors.dtype
    code = _CODES.get(dtype)
    if native.dots is None or code is None or len(shape) != 3 or not vectors.is_contiguous():
        return None
    batch, count, dim = shape
    if count == 0 or dim == 0:
        return None
    address, width = None, 0
    if front is not None:
        front_shape = front.shape
        if len(front_shape) != 2 or front_shape[0] != batch or front.dtype is not dtype or not front.is_contiguous():
            return None
        address, width = front.data_ptr(), front_shape[1]
    y = vectors.new_empty(batch, width + count * (count - 1) // 2)
    failed = native.dots(
        vectors.data_ptr(),
        batch,
        count,
        dim,
        count * dim,
        dim,
        code,
        address,
        width,
        width,
        0,
        y.data_ptr(),
        code,
        0.0,
        0,
        native.isa,
    )
    if failed:
        native.check("dot_interaction", failed)
    return y


def dot_interaction(
    vectors: Tensor,
    front: Tensor | None,
    self_interaction: bool,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
) -> Tensor:
    """The op on checked operands of any strides."""
    if native.dots is None:
        return reference.dot_interaction(vectors, front, self_interaction, out_scale, out_zero_point)
    vectors = vectors if vectors.stride(2) == 1 else vectors.contiguous()
    front = front if front is None or front.stride(1) == 1 else front.contiguous()
    batch, count, dim = vectors.shape
    front_width = 0 if front is None else front.shape[1]
    pairs = count * (count + (1 if self_interaction else -1)) // 2
    dtype = vectors.dtype if out_scale is None else torch.uint8
    y = torch.empty(batch, front_width + pairs, dtype=dtype)
    code = native.dots(
        vectors.data_ptr(),
        *(batch, count, dim, vectors.stride(0), vectors.stride(1), _CODES[vectors.dtype]),
        None if front is None else front.data_ptr(),
        *(front_width, 0 if front is None else front.stride(0), self_interaction),
        *(y.data_ptr(), native.DTYPES[dtype]),
        0.0 if out_scale is None else out_scale.item(),
        0 if out_zero_point is None else out_zero_point.item(),
        native.isa,
    )
    native.check("dot_interaction", code)
    return y
