"""Rewrite the single look-ups of a loaded graph for the CPU: those in columns of one input, in one call.

A layer asks for one row a table as a bag of one index, which takes five nodes: select, reshape, arange, the op, view.
At batch 1 that is 45 us a table, and the look-up itself 0.1 us. Measured on one core of an AMD EPYC, look-ups and the
stack that joins them, 26 tables of 64 numbers, us at batch 1 / 64: a call a table without the four other nodes 139 /
226, one call and a split 38 / 160, one call that writes the joined tensor 11 / 75. So, for all look-ups in columns of
the same tensor:

* where their one use is to be joined along dimension 1, in order, behind at most one other tensor (``stack([x, e_0,
  e_1, ...], 1)`` or ``cat``), one call writes the joined tensor;
* otherwise one call, split into the tables' parts;
* a look-up whose indices are no column is one call without offsets.
"""

from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from recpress.artifact.nodes import attribute_of, dtype_of, mutates, only_user, shape_of
from recpress_kernels import KernelInputError, RowTables, look_up_rows

_OPS = torch.ops.aten
_ANY_STRIDES = {_OPS.cat.default, _OPS.stack.default, _OPS.add.Tensor, _OPS.sub.Tensor, _OPS.mul.Tensor}
"""What gives the same bits, and a contiguous tensor, for a table's part as for a look-up of its own."""


@dataclass(frozen=True)
class _LookUp:
    """A bag of one index for each row: the op's node, the table, and the column of ``source`` that holds the indices.

    ``dim`` is the width of the table's rows; ``column`` is None where the indices are the whole of ``source``, of one
    dimension.
    """

    node: Node
    table: Tensor
    dim: int
    source: Node
    column: int | None


def lower_tables(module: GraphModule) -> tuple[int, int]:
    """Rewrite the look-ups of ``module`` in place; how many there were, and in how many calls they are made now."""
    look_ups = [found for node in module.graph.nodes if (found := _match(module, node))]
    # What is written in place could change between the place of a look-up and that of the one call.
    if any(mutates(node) for node in module.graph.nodes):
        return len(look_ups), len(look_ups)
    groups: dict[Node, list[_LookUp]] = {}
    alone = []
    for look_up in look_ups:
        if look_up.column is None:
            alone.append([look_up])
        else:
            groups.setdefault(look_up.source, []).append(look_up)
    calls = [*groups.values(), *alone]
    for i, group in enumerate(calls):
        tables = RowTables([g.table for g in group], [g.column or 0 for g in group], [g.dim for g in group])
        name = f"row_tables_{i}"
        setattr(module, name, tables)
        if not _join(module, group, name, tables):
            _split(module, group, name, tables)
    return len(look_ups), len(calls)


def _match(module: GraphModule, node: Node) -> _LookUp | None:
    """``node`` as a look-up of one row for each index, or None where the pattern is any other."""
    if node.target is not torch.ops.recpress.embedding_bag_rows.default or len(node.args) < 3:
        return None
    tables, indices, offsets = node.args[:3]
    given = {**dict(zip(("weights", "dims"), node.args[4:], strict=False)), **node.kwargs}
    dims = given.pop("dims", None)
    if len(tables) != 1 or tables[0].op != "get_attr" or any(v is not None for v in given.values()):
        return None
    # With offsets 0, 1, 2, ... to their number, bags of one index: their mean is their sum.
    ends = offsets.args if offsets.target is _OPS.arange.default else ()
    if (
        len(ends) != 1
        or not shape_of(node)
        or shape_of(node)[:1] != shape_of(indices)
        or dtype_of(offsets) != dtype_of(indices)
    ):
        return None
    table = attribute_of(module, tables[0].target)
    try:
        dim = RowTables([table], None, dims).width
    except KernelInputError:
        return None
    source, column = _column(indices)
    return _LookUp(node, table, dim, source, column)


def _column(indices: Node) -> tuple[Node, int | None]:
    """The matrix and the column in it that ``indices`` are, or ``indices`` itself and None."""
    flat = indices
    if flat.target is _OPS.reshape.default and list(flat.args[1]) == [-1] and len(shape_of(flat.args[0])) == 1:
        flat = flat.args[0]
    if flat.target is _OPS.select.int and flat.args[1] in (1, -1):
        matrix, _, column = flat.args
        shape = shape_of(matrix)
        if len(shape) == 2 and isinstance(column, int) and shape[1].isdecimal():
            return matrix, column % int(shape[1])
    return indices, None


def _join(module: GraphModule, group: list[_LookUp], name: str, tables: RowTables) -> bool:
    """Let the call write what a stack or cat made of the look-ups, where that is all that is done with them."""
    outs = [_through_view(g.node) for g in group]
    join = only_user(outs[0])
    if join is None or join.target not in (_OPS.stack.default, _OPS.cat.default) or join.args[1:] != (1,):
        return False
    parts = list(join.args[0])
    if parts[-len(outs) :] != outs or any(only_user(out) is not join for out in outs) or len(parts) > len(outs) + 1:
        return False
    front = parts[0] if len(parts) > len(outs) else None
    stacked = join.target is _OPS.stack.default
    if front is not None and (front in outs or dtype_of(front) != torch.float32 or len(shape_of(front)) != 2):
        return False
    with module.graph.inserting_before(join):
        call = _call(module, name, group, front)
        if stacked:
            call = module.graph.call_function(_OPS.view.default, (call, [-1, len(parts), tables.dims[0]]))
    join.replace_all_uses_with(call)
    return True


def _split(module: GraphModule, group: list[_LookUp], name: str, tables: RowTables) -> None:
    with module.graph.inserting_before(group[0].node):
        call = _call(module, name, group, None)
        if len(group) > 1:
            call = module.graph.call_function(_OPS.split_with_sizes.default, (call, tables.dims, 1))
    for place, look_up in enumerate(group):
        with module.graph.inserting_before(look_up.node):
            part = module.graph.call_function(getitem, (call, place)) if len(group) > 1 else call
            out = _through_view(look_up.node)
            if len(group) > 1 and not all(user.target in _ANY_STRIDES for user in out.users):
                part = module.graph.call_function(_OPS.contiguous.default, (part,))
        part.meta = dict(look_up.node.meta)
        out.replace_all_uses_with(part)


def _call(module: GraphModule, name: str, group: list[_LookUp], front: Node | None) -> Node:
    # Not graph.get_attr, which warns of what is no tensor.
    tables = module.graph.create_node("get_attr", name)
    return module.graph.call_function(look_up_rows, (tables, group[0].source, *([] if front is None else [front])))


def _through_view(node: Node) -> Node:
    """``node``, or the view that is its only use and changes nothing."""
    after = only_user(node)
    if after is not None and after.target is _OPS.view.default and shape_of(after) == shape_of(node) != ():
        return after
    return node
