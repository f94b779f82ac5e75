"""Rewrite the single look-ups of a loaded graph: those in columns of one input, in one call.

A layer asks for one row a table as a bag of one index, which takes five nodes: select, reshape, arange, the op, view.
At batch 1 that is 45 us a table, and the look-up itself 0.1 us. Measured on one core of an AMD EPYC, look-ups and the
stack that joins them, 26 tables of 64 numbers, us at batch 1 / 64: a call a table without the four other nodes 139 /
226, one call and a split 38 / 160, one call that writes the joined tensor 11 / 75. So, for all look-ups in columns of
the same tensor:

* where their one use is to be joined along dimension 1, side by side and in order (``stack([x, e_0, e_1, ...], 1)`` or
  ``cat``), one call writes the joined tensor, behind one other tensor where that comes first;
* otherwise one call, split into the tables' parts;
* a look-up whose indices are no column is one call without offsets.

What ids go through before (map_ids) becomes part of the call. Pooled bags are lower_bags.py's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from recpress.artifact.bag_nodes import bag_of, find_join, ids_of, split, through_view
from recpress.artifact.nodes import dtype_of, mutates, shape_of
from recpress_kernels import IdMap, RowTables, look_up_rows

_OPS = torch.ops.aten


@dataclass(frozen=True)
class _LookUp:
    """A bag of one index for each row: the op's node, the table, and the column of ``source`` that holds the indices.

    ``dim`` is the width of the table's rows and ``id_map`` what ids go through before; ``column`` is None where the
    indices are the whole of ``source``, of one dimension.
    """

    node: Node
    table: Tensor
    dim: int
    id_map: IdMap | None
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
        tables = RowTables(
            [g.table for g in group],
            [g.column or 0 for g in group],
            [g.dim for g in group],
            [g.id_map for g in group],
        )
        name = f"row_tables_{i}"
        setattr(module, name, tables)
        if not _join(module, group, name):
            _split(module, group, name, tables)
    return len(look_ups), len(calls)


def _match(module: GraphModule, node: Node) -> _LookUp | None:
    """``node`` as a look-up of one row for each index, or None where the pattern is any other."""
    bag = bag_of(module, node)
    if bag is None or bag.weights is not None:
        return None
    # With offsets 0, 1, 2, ... to their number, bags of one index: their mean is their sum.
    ends = bag.offsets.args if bag.offsets.target is _OPS.arange.default else ()
    if (
        len(ends) != 1
        or not shape_of(node)
        or shape_of(node)[:1] != shape_of(bag.indices)
        or dtype_of(bag.offsets) != dtype_of(bag.indices)
    ):
        return None
    ids, id_map = ids_of(module, bag.indices)
    source, column = _column(ids)
    return _LookUp(node, bag.table, bag.dim, id_map, source, column)


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


def _join(module: GraphModule, group: list[_LookUp], name: str) -> bool:
    """Let the call write what a stack or cat made of the look-ups, where that is all that is done with them."""
    join = find_join([through_view(g.node) for g in group])
    if join is None:
        return False
    front = join.before[0] if len(join.before) == 1 else None
    if front is not None and (dtype_of(front) != torch.float32 or len(shape_of(front)) != 2):
        front = None
    with module.graph.inserting_before(join.node):
        call = _call(module, name, group, front)
    join.put(module, call, with_front=front is not None)
    return True


def _split(module: GraphModule, group: list[_LookUp], name: str, tables: RowTables) -> None:
    with module.graph.inserting_before(group[0].node):
        call = _call(module, name, group, None)
    split(module, call, [look_up.node for look_up in group], tables.dims)


def _call(module: GraphModule, name: str, group: list[_LookUp], front: Node | None) -> Node:
    # Not graph.get_attr, which warns of what is no tensor.
    tables = module.graph.create_node("get_attr", name)
    return module.graph.call_function(look_up_rows, (tables, group[0].source, *([] if front is None else [front])))
