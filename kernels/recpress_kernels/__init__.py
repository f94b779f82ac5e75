"""Kernels of recpress: compressed formats and the ops that compute on them.

Importing this package registers the ops under ``torch.ops.recpress``:

* ``int8_linear``: a linear layer on int8 weights, activations quantised a row at a time;
* ``embedding_bag_rows``: pooled look-ups in tables of quantised rows.

It needs torch and triton alone and can be used without the plugin. Where torch is not installed no op is
registered, but the kernels and ``recpress_kernels.inspect`` can be used.
"""

from importlib.util import find_spec

from recpress_kernels.errors import IndexBoundsError, KernelInputError, RecpressError
from recpress_kernels.support import Support

if find_spec("torch") is not None:
    from recpress_kernels.embedding_bag_rows.op import embedding_bag_rows
    from recpress_kernels.int8_linear.op import int8_linear

__all__ = [
    "IndexBoundsError",
    "KernelInputError",
    "RecpressError",
    "Support",
    "embedding_bag_rows",
    "int8_linear",
]
