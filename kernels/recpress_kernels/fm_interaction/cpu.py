"""fm_interaction on a CPU: the native kernel, or else torch."""

from torch import Tensor

from recpress_kernels import native
from recpress_kernels.fm_interaction import reference


def path() -> str:
    """Which path runs, and why not the other."""
    status = native.status()
    return status.reason if status.ok else f"torch's sums, slower: {status.reason}"


def fm_interaction(vectors: Tensor) -> Tensor:
    """The op on checked operands of any strides."""
    if native.second_order is None:
        return reference.fm_interaction(vectors)
    vectors = vectors if vectors.stride(2) == 1 else vectors.contiguous()
    batch, count, dim = vectors.shape
    batch_stride, stride, _ = vectors.stride()
    code = native.DTYPES[vectors.dtype]
    y = vectors.new_empty(batch, 1)
    failed = native.second_order(
        vectors.data_ptr(), batch, count, dim, batch_stride, stride, code, y.data_ptr(), native.isa
    )
    native.check("fm_interaction", failed)
    return y
