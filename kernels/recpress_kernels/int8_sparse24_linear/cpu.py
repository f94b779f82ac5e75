"""int8_sparse24_linear on a CPU, on canonical weights: decompressed, then int8_linear.

The fast path is a packed buffer, which ``int8_linear_packed`` and ``int8_mlp_packed`` run; this one serves graphs that
were not packed, at the speed of int8_linear less the time to decompress.
"""

from torch import Tensor

from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.int8_linear import cpu


def int8_sparse24_linear(x: Tensor, values: Tensor, indices: Tensor, *operands: Tensor | str | None) -> Tensor:
    """The op on ``x`` ``[M, K]``: ``[M, N]``."""
    return cpu.int8_linear(x, decompress(Sparse24(values, indices, x.shape[1])), *operands)
