"""Rewrite the interactions in a loaded graph: triangles of dot products, and cross layers.

DLRM multiplies a row's V vectors with each other, takes the lower triangle of the products, and joins it behind the
bottom MLP's output. As V - 1 slices that is 52 small nodes for 26 tables. The forms that are known, for ``dots =
bmm(v, v.transpose(1, 2))`` or ``matmul`` of float32:

* ``cat([x, dots[:, 1, :1], dots[:, 2, :2], ...], 1)``, with or without x, or from ``dots[:, 0, :1]`` with the products
  of each vector with itself;
* ``dots[:, i, j]`` by constant i and j that are those of ``torch.tril_indices``, alone or in ``cat([x, ...], 1)``.

Anything else is left as it is: other uses of the products, a triangle that is not whole, another order.

A cross layer of DCN-v2 is ``x0 * y + x`` of float32 ``[B, K]``, in any order or as ``addcmul``, around layers ``y`` of
x that are used for nothing else. On a CPU they are a call of int8_mlp_packed, and it becomes one of int8_cross_packed;
on a GPU one int8_linear, or two for a low rank, and it becomes int8_cross.
"""

from operator import getitem

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from recpress.artifact.nodes import attribute_of, dtype_of, mutates, only_user, shape_of
from recpress_kernels import dot_interaction, int8_cross, int8_cross_packed, int8_mlp_packed

_OPS = torch.ops.aten
_INT8_LINEAR = torch.ops.recpress.int8_linear.default
_INT64_MAX = (1 << 63) - 1
_OF_CONSTANTS = (
    *(_OPS.select.int, _OPS.unbind.int, _OPS.tril_indices.default, getitem),
    *(_OPS.lift_fresh_copy.default, _OPS.detach.default, _OPS.detach_.default),
)
"""What a constant index may go through."""


def lower_interactions(module: GraphModule, *, most: int | None = None) -> int:
    """Rewrite the triangles of dot products, of at most ``most`` vectors, in place; how many there were."""
    nodes = list(module.graph.nodes)
    if any(mutates(node) and _constant(module, node) is None for node in nodes):
        return 0
    products = [node for node in nodes if node.target in (_OPS.bmm.default, _OPS.matmul.default)]
    return sum(_triangle(module, node, most) for node in products)


def lower_crosses(module: GraphModule) -> int:
    """Rewrite the cross layers around packed stacks, or around single layers, in place; how many there were."""
    if any(mutates(node) for node in module.graph.nodes):
        return 0
    return sum(_cross_of(module, node) for node in list(module.graph.nodes))


def _cross_of(module: GraphModule, y: Node) -> bool:
    if y.target is int8_mlp_packed:
        x, packed, _ = y.args
        return _cross(module, y, x, int8_cross_packed, (packed,))
    if not _is_plain(y):
        return False
    x, *layer = y.args[:4]
    if _cross(module, y, x, int8_cross, layer):
        return True
    if not _is_plain(x) or only_user(x) is not y or (len(x.args) > 3 and x.args[3] is not None):
        return False
    low = {"low": x.args[1], "low_scale": x.args[2]}
    return _cross(module, y, x.args[0], int8_cross, layer, low)


def _is_plain(node: Node) -> bool:
    """Whether ``node`` is an int8_linear without activation, whose input is quantised as it comes."""
    rest = node.args[4:]
    return node.target is _INT8_LINEAR and not node.kwargs and all(given in ("none", None) for given in rest)


def _cross(module: GraphModule, y: Node, x: Node, target, operands, named: dict | None = None) -> bool:
    """Put ``target(x0, x, *operands, **named)`` in place of ``x0 * y + x``, where that is what is done with y."""
    end, factors = only_user(y), None
    if end is not None and end.target is _OPS.mul.Tensor:
        product, factors, end = end, list(end.args), only_user(end)
        added = end is not None and end.target is _OPS.add.Tensor and not end.kwargs and set(end.args) == {product, x}
        end = end if added and len(end.args) == 2 else None
    elif end is not None and end.target is _OPS.addcmul.default and not end.kwargs and end.args[0] is x:
        factors = list(end.args[1:])
    if end is None or factors is None or factors.count(y) != 1:
        return False
    factors.remove(y)
    one = factors[0]
    alike = isinstance(one, Node) and shape_of(one) == shape_of(x) == shape_of(y) and len(shape_of(x)) == 2
    if not alike or not dtype_of(one) == dtype_of(x) == dtype_of(y) == torch.float32:
        return False
    with module.graph.inserting_before(end):
        call = module.graph.call_function(target, (one, x, *operands), named)
    call.meta = dict(end.meta)
    end.replace_all_uses_with(call)
    _erase(module, end)
    return True


def _triangle(module: GraphModule, product: Node, most: int | None) -> bool:
    vectors = _squared(product)
    if vectors is None:
        return False
    count = int(shape_of(vectors)[1])
    if most is not None and count > most:
        return False
    found = _from_slices(product, count) or _from_index(module, product, count)
    if found is None:
        return False
    out, front, own = found
    if front is not None and not (dtype_of(front) == torch.float32 and shape_of(front)[:-1] == shape_of(vectors)[:1]):
        return False
    with module.graph.inserting_before(out):
        call = module.graph.call_function(dot_interaction, (vectors, front, own))
    call.meta = dict(out.meta)
    out.replace_all_uses_with(call)
    _erase(module, out)
    return True


def _squared(product: Node) -> Node | None:
    """v where ``product`` is v times its own transpose: float32 ``[B, V, D]`` of known V and D."""
    if len(product.args) != 2 or product.kwargs:
        return None
    vectors, other = product.args
    turned = other.target is _OPS.mT.default
    if other.target is _OPS.transpose.int:
        turned = {dim % 3 for dim in other.args[1:]} == {1, 2}
    shape = shape_of(vectors)
    known = len(shape) == 3 and all(size.isdecimal() for size in shape[1:]) and dtype_of(vectors) == torch.float32
    return vectors if known and turned and other.args[0] is vectors else None


def _from_slices(product: Node, count: int) -> tuple[Node, Node | None, bool] | None:
    """The cat of all slices in their order, what stands before them in it, and whether they hold the diagonal."""
    slices: list[tuple[int, Node]] = []
    for select in product.users:
        if select.target is not _OPS.select.int or select.args[1] % 3 != 1 or not isinstance(select.args[2], int):
            return None
        slices.append((select.args[2] % count, select))
    own = len(slices) == count
    if [i for i, _ in slices] != list(range(0 if own else 1, count)):
        return None
    parts = [_front_of(select, i + own, count) for i, select in slices]
    join = only_user(parts[0]) if parts and parts[0] is not None else None
    if join is None or any(part is None or only_user(part) is not join for part in parts):
        return None
    joined = _joined(join)
    if joined[-len(parts) :] != parts or len(joined) > len(parts) + 1:
        return None
    return join, joined[0] if len(joined) > len(parts) else None, own


def _front_of(select: Node, length: int, count: int) -> Node | None:
    """The first ``length`` of ``count`` numbers of ``select``, where that is all that is done with them."""
    after = only_user(select)
    if after is not None and after.target is _OPS.slice.Tensor and len(after.args) in (4, 5):
        _, dim, begin, end, *step = after.args
        whole = length == count and end == _INT64_MAX
        return (
            after if dim in (1, -1) and begin in (0, None) and (end == length or whole) and step in ([], [1]) else None
        )
    return select if length == count else None  # the slice that takes everything is gone


def _from_index(module: GraphModule, product: Node, count: int) -> tuple[Node, Node | None, bool] | None:
    """The index by constants, or the cat of something and it, and whether it holds the diagonal."""
    index = only_user(product)
    if (
        index is None
        or index.target is not _OPS.index.Tensor
        or len(index.args[1]) != 3
        or index.args[1][0] is not None
    ):
        return None
    given = [_constant(module, node) for node in index.args[1][1:]]
    for own in (False, True):
        wanted = torch.tril_indices(count, count, 0 if own else -1)
        if all(_same(one, other) for one, other in zip(given, wanted, strict=True)):
            join = only_user(index)
            joined = _joined(join) if join is not None else []
            if len(joined) == 2 and joined[1] is index and joined[0] is not index:
                return join, joined[0], own
            return index, None, own
    return None


def _same(given: object, wanted: Tensor) -> bool:
    return isinstance(given, Tensor) and given.dtype == torch.int64 and torch.equal(given, wanted)


def _joined(join: Node) -> list[Node]:
    """The parts of a cat along the last of two dimensions, or nothing."""
    along_rows = join.target is _OPS.cat.default and join.args[1:] in ((1,), (-1,)) and len(shape_of(join)) == 2
    return list(join.args[0]) if along_rows else []


def _constant(module: GraphModule, node: object) -> object:
    """What ``node`` comes to where only constants go into it, else None."""
    if not isinstance(node, Node):
        return node
    if node.op == "get_attr":
        return attribute_of(module, node.target)
    if node.target not in _OF_CONSTANTS:
        return None
    operands = [_constant(module, arg) for arg in node.args]
    if any(operand is None for operand in operands):
        return None
    target = _OPS.detach.default if node.target is _OPS.detach_.default else node.target
    return target(*operands, **node.kwargs)


def _erase(module: GraphModule, node: Node) -> None:
    """Erase ``node`` and what only it needed, but for inputs: detach_ would otherwise stay, since it may write."""
    before = node.all_input_nodes
    module.graph.erase_node(node)
    for other in before:
        if not other.users and other.op not in ("placeholder", "get_attr"):
            _erase(module, other)
