"""Rewrite the pooled bags of a loaded graph for the CPU: those of one batch in one call.

Each bag layer of a graph is a call of the op on one table, and three to eight nodes around it that make its offsets.
All bags of one batch, pooling and dtype of indices, all with weights or all without, become one call of ``pool_bags``:

* where bags are rows of ids ``[B, L]``, the call knows their offsets from L;
* otherwise it takes each table's offsets, which it checks as each table's own call would;
* where their one use is to be joined along dimension 1, side by side, the call's result stands for them there;
* bags whose operands come from other bags of the group are a call each.
"""

from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from recpress.artifact.bag_nodes import Bag, bag_of, find_join, ids_of, split
from recpress.artifact.nodes import dtype_of, mutates, only_user, shape_of
from recpress_kernels import RowTables
from recpress_kernels.embedding_bag_rows.joined import pool_bags

_OPS = torch.ops.aten


@dataclass(frozen=True)
class _Group:
    """What the bags of one call have in common; ``join`` is the stack or cat that takes the result, or None."""

    batch: str
    pooling: str
    dtype: torch.dtype
    weighted: bool
    fixed: bool
    join: Node | None


def lower_bags(module: GraphModule) -> tuple[int, int]:
    """Rewrite the bags of ``module`` in place; how many there were, and in how many calls they are made now."""
    bags = [found for node in module.graph.nodes if node.users and (found := bag_of(module, node))]
    bags = [bag for bag in bags if shape_of(bag.node) and dtype_of(bag.offsets) == dtype_of(bag.indices) is not None]
    if any(mutates(node) for node in module.graph.nodes):
        return len(bags), len(bags)
    calls = 0
    for group in _groups(bags):
        # Asked when its turn comes: operands may come from a group that is one call by now.
        for part in [group] if _independent(group) else [[bag] for bag in group]:
            _place(module, part, f"bag_tables_{calls}")
            calls += 1
    return len(bags), calls


def _groups(bags: list[Bag]) -> list[list[Bag]]:
    """The bags that can be one call: those that a call can stand for in one join, and others."""
    groups: dict[_Group, list[Bag]] = {}
    for bag in bags:
        groups.setdefault(_group(bag), []).append(bag)
    found: dict[_Group, list[Bag]] = {}
    for key, group in groups.items():
        joined = key.join is not None and find_join([bag.node for bag in group]) is not None
        found.setdefault(key if joined else replace(key, join=None), []).extend(group)
    return list(found.values())


def _group(bag: Bag) -> _Group:
    join = only_user(bag.node)
    joined = join is not None and join.target in (_OPS.cat.default, _OPS.stack.default)
    return _Group(
        shape_of(bag.node)[0],
        bag.pooling,
        dtype_of(bag.indices),
        bag.weights is not None,
        _length(bag) is not None,
        join if joined else None,
    )


def _length(bag: Bag) -> int | None:
    """L where the bags are the rows of ids ``[B, L]``, or None."""
    if bag.offsets.target is not _OPS.mul.Tensor or bag.indices.target is not _OPS.reshape.default:
        return None
    steps, length = bag.offsets.args
    shape = shape_of(bag.indices.args[0])
    is_range = isinstance(steps, Node) and steps.target is _OPS.arange.default and len(steps.args) == 1
    rows = len(shape) == 2 and shape[0] == shape_of(bag.node)[0] and list(bag.indices.args[1]) == [-1]
    return length if is_range and rows and length != 0 and shape[1] == str(length) else None


def _independent(group: list[Bag]) -> bool:
    """Whether no bag's operands come from another bag of the group."""
    own, seen = {bag.node for bag in group}, set()
    waiting = [operand for bag in group for operand in (bag.indices, bag.offsets, bag.weights) if operand is not None]
    while waiting:
        node = waiting.pop()
        if node in own:
            return False
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return True


def _place(module: GraphModule, group: list[Bag], name: str) -> None:
    """Put one call in place of the bags of ``group``."""
    ids = [ids_of(module, bag.indices) for bag in group]
    tables = RowTables([bag.table for bag in group], None, [bag.dim for bag in group], [m for _, m in ids])
    setattr(module, name, tables)
    lengths = [_length(bag) for bag in group]
    bags = [bag.offsets for bag in group] if None in lengths else lengths
    weights = None if group[0].weights is None else [bag.weights for bag in group]
    join = find_join([bag.node for bag in group])
    before = join.node if join is not None else _first_use(module, group)
    operands = ([node for node, _ in ids], bags, group[0].pooling, weights)
    _move_up(module, [node for node in (*operands[0], *bags, *(weights or ())) if isinstance(node, Node)], before)
    with module.graph.inserting_before(before):
        # Not graph.get_attr, which warns of what is no tensor.
        call = module.graph.call_function(pool_bags, (module.graph.create_node("get_attr", name), *operands))
    if join is not None:
        join.put(module, call)
    else:
        split(module, call, [bag.node for bag in group], tables.dims)


def _first_use(module: GraphModule, group: list[Bag]) -> Node:
    users = {user for bag in group for user in bag.node.users}
    return next(node for node in module.graph.nodes if node in users)


def _move_up(module: GraphModule, nodes: list[Node], before: Node) -> None:
    """Move what ``nodes`` need, and come after ``before``, in front of it; nothing of it needs ``before``."""
    place = {node: i for i, node in enumerate(module.graph.nodes)}
    late, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if place[node] > place[before] and node not in late:
            late.add(node)
            waiting += node.all_input_nodes
    for node in sorted(late, key=place.__getitem__):
        before.prepend(node)
