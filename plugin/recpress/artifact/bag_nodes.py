"""Bags of one table in a traced graph: what they are looked up by, and where their results go."""

from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from recpress.artifact.nodes import attribute_of, is_own, only_user, shape_of
from recpress_kernels import IdMap, KernelInputError, RowTables

_OPS = torch.ops.aten
_ANY_STRIDES = {_OPS.cat.default, _OPS.stack.default, _OPS.add.Tensor, _OPS.sub.Tensor, _OPS.mul.Tensor}
"""What gives the same bits, and a contiguous tensor, for a table's part as for a call of its own."""


@dataclass(frozen=True)
class Bag:
    """A node of embedding_bag_rows on one table of the module, with the width of its rows and its operands."""

    node: Node
    table: Tensor
    dim: int
    indices: Node
    offsets: Node
    pooling: str
    weights: Node | None


def bag_of(module: GraphModule, node: Node) -> Bag | None:
    """``node`` as pooled bags of one table, or None where it is anything else."""
    if node.target is not torch.ops.recpress.embedding_bag_rows.default or len(node.args) < 3:
        return None
    tables, indices, offsets = node.args[:3]
    given = dict(zip(("pooling", "per_sample_weights", "dims"), node.args[3:], strict=False)) | node.kwargs
    if len(tables) != 1 or tables[0].op != "get_attr" or given.get("pooling") == "none":
        return None
    table = attribute_of(module, tables[0].target)
    try:
        dim = RowTables([table], None, given.get("dims")).width
    except KernelInputError:
        return None
    return Bag(node, table, dim, indices, offsets, given.get("pooling", "sum"), given.get("per_sample_weights"))


def ids_of(module: GraphModule, indices: Node) -> tuple[Node, IdMap | None]:
    """What ``indices`` are before map_ids, of one dimension as they are, and the map; or themselves and None."""
    reshaped = indices.target is _OPS.reshape.default and list(indices.args[1]) == [-1]
    node = indices.args[0] if reshaped else indices
    if node.target is not torch.ops.recpress.map_ids.default:
        return indices, None
    ids, rows, *rest = node.args
    oov_row, remap = (*rest, None)[:2] if rest else (-1, None)
    if node.kwargs or not is_own(remap):
        return indices, None
    if len(shape_of(ids)) != 1:
        with module.graph.inserting_before(node):
            flat = module.graph.call_function(_OPS.reshape.default, (ids, [-1]))
        flat.meta = dict(indices.meta)
        ids = flat
    return ids, IdMap(rows, oov_row, None if remap is None else attribute_of(module, remap.target))


@dataclass(frozen=True)
class Join:
    """A stack or cat along dimension 1 of some results side by side, with the other parts ``before`` and ``after``."""

    node: Node
    before: list[Node]
    after: list[Node]
    count: int

    def put(self, module: GraphModule, call: Node, *, with_front: bool = False) -> None:
        """Let ``call``, which has the results side by side in one, and the front before them if so, stand for them."""
        before = [] if with_front else self.before
        parts = [*before, call, *self.after]
        with module.graph.inserting_before(self.node):
            out = call if len(parts) == 1 else module.graph.call_function(_OPS.cat.default, (parts, 1))
            if self.node.target is _OPS.stack.default:
                count = len(self.before) + self.count + len(self.after)
                out = module.graph.call_function(_OPS.view.default, (out, [-1, count, self.node.meta["val"].shape[2]]))
        out.meta = dict(self.node.meta)
        self.node.replace_all_uses_with(out)


def find_join(outs: list[Node]) -> Join | None:
    """Where ``outs`` ``[B, D]`` are joined along dimension 1, side by side and in order, and used for nothing else."""
    join = only_user(outs[0])
    if join is None or join.target not in (_OPS.stack.default, _OPS.cat.default) or join.args[1:] != (1,):
        return None
    parts = list(join.args[0])
    at = parts.index(outs[0])
    if parts[at : at + len(outs)] != outs or any(only_user(o) is not join or parts.count(o) > 1 for o in outs):
        return None
    if join.target is _OPS.stack.default and len(shape_of(join)) != 3:
        return None
    return Join(join, parts[:at], parts[at + len(outs) :], len(outs))


def split(module: GraphModule, call: Node, nodes: list[Node], widths: list[int]) -> None:
    """Put the parts of ``call``, which has the results of ``nodes`` side by side, in their places."""
    parts = call
    if len(nodes) > 1:
        with module.graph.inserting_after(call):
            parts = module.graph.call_function(_OPS.split_with_sizes.default, (call, widths, 1))
    last = parts
    for place, node in enumerate(nodes):
        out, part = through_view(node), call
        if len(nodes) > 1:
            with module.graph.inserting_after(last):
                part = last = module.graph.call_function(getitem, (parts, place))
            if not all(user.target in _ANY_STRIDES for user in out.users):
                with module.graph.inserting_after(last):
                    part = last = module.graph.call_function(_OPS.contiguous.default, (part,))
        part.meta = dict(node.meta)
        out.replace_all_uses_with(part)


def through_view(node: Node) -> Node:
    """``node``, or the view that is its only use and changes nothing."""
    after = only_user(node)
    if after is not None and after.target is _OPS.view.default and shape_of(after) == shape_of(node) != ():
        return after
    return node
