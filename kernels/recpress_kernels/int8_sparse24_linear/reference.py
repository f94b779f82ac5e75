"""Linear layer on int8 2:4 weights in canonical form, in plain torch: the truth for every device.

It is int8_linear (its reference.py has the formula and every rounding) on the weight that formats/sparse24.py
decompresses to: the products that are left out are products with zero, so every bit is the same.
"""

from torch import Tensor

from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.int8_linear import reference


def int8_sparse24_linear(x: Tensor, values: Tensor, indices: Tensor, *operands: Tensor | str | None) -> Tensor:
    """The op on ``x`` ``[M, K]``: ``[M, N]``. ``operands`` are those of int8_linear behind the weight."""
    return reference.int8_linear(x, decompress(Sparse24(values, indices, x.shape[1])), *operands)
