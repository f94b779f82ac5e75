"""Kernels of recpress: compressed formats and the ops that compute on them.

Importing this package registers the ops under ``torch.ops.recpress``:

* ``int8_linear``: a linear layer on int8 weights, activations quantised to 7 bits as they come or as calibrated;
* ``int8_sparse24_linear``: the same on int8 weights of which two in four inputs are kept;
* ``weight_only_linear``: int8 weights under float activations;
* ``int8_mlp``: a stack of int8_linear layers in one call;
* ``int8_linear_packed``, ``int8_mlp_packed``: the same on weights, dense or 2:4, packed for the native CPU kernels;
* ``int8_cross``, ``int8_cross_packed``: the cross layer of DCN-v2 on int8 weights;
* ``sparse24_linear``: a linear layer on 2:4 weights in float16 or bfloat16;
* ``int8_sparse24_linear_fragments``, ``sparse24_linear_fragments``: 2:4 weights packed for a GPU's sparse tensor cores;
* ``embedding_bag_rows``: pooled look-ups in tables of quantised rows; ``look_up_rows`` is its short form for one index
  a table and row, in tables described once by ``RowTables``, and ``bags_of_padded`` makes bags of padded ids;
* ``map_ids``: ids to rows of a table: what is out of vocabulary to one row, and through a remap; ``IdMap`` holds that
  for ``RowTables``, which do it in their own call;
* ``dot_interaction``: the dot products of all pairs of a row's vectors, as DLRM takes them;
* ``fm_interaction``: the second order of a factorisation machine.

It needs torch and triton alone and can be used without the plugin. Where torch is not installed no op is
registered, but the kernels and ``recpress_kernels.inspect`` can be used.
"""

from importlib.util import find_spec

from recpress_kernels.errors import IndexBoundsError, KernelInputError, RecpressError
from recpress_kernels.support import Support

if find_spec("torch") is not None:
    from recpress_kernels.dot_interaction.op import dot_interaction
    from recpress_kernels.embedding_bag_rows.op import embedding_bag_rows
    from recpress_kernels.embedding_bag_rows.padded import bags_of_padded
    from recpress_kernels.embedding_bag_rows.tables import RowTables, look_up_rows
    from recpress_kernels.fm_interaction.op import fm_interaction
    from recpress_kernels.formats.packed import pack, pack_stack, unpack
    from recpress_kernels.formats.sparse24 import Sparse24
    from recpress_kernels.int8_cross.op import int8_cross, int8_cross_packed
    from recpress_kernels.int8_linear.op import int8_linear
    from recpress_kernels.int8_linear.packed import int8_linear_packed
    from recpress_kernels.int8_mlp.choice import choose_stack
    from recpress_kernels.int8_mlp.op import int8_mlp, int8_mlp_packed
    from recpress_kernels.int8_sparse24_linear.fragments import int8_sparse24_linear_fragments
    from recpress_kernels.int8_sparse24_linear.op import int8_sparse24_linear
    from recpress_kernels.map_ids.op import IdMap, map_ids
    from recpress_kernels.sparse24_linear.fragments import sparse24_linear_fragments
    from recpress_kernels.sparse24_linear.op import sparse24_linear
    from recpress_kernels.weight_only_linear.op import weight_only_linear

__all__ = [
    "IdMap",
    "IndexBoundsError",
    "KernelInputError",
    "RecpressError",
    "RowTables",
    "Sparse24",
    "Support",
    "bags_of_padded",
    "choose_stack",
    "dot_interaction",
    "embedding_bag_rows",
    "fm_interaction",
    "int8_cross",
    "int8_cross_packed",
    "int8_linear",
    "int8_linear_packed",
    "int8_mlp",
    "int8_mlp_packed",
    "int8_sparse24_linear",
    "int8_sparse24_linear_fragments",
    "look_up_rows",
    "map_ids",
    "pack",
    "pack_stack",
    "sparse24_linear",
    "sparse24_linear_fragments",
    "unpack",
    "weight_only_linear",
]
