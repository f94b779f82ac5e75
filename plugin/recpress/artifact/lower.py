"""Rewrite a loaded graph for the device at hand.

The artifact holds canonical weights and one op a layer. On a CPU each chain of ``int8_linear``, ``weight_only_linear``
and activations becomes one call on a buffer that the native kernels read, look-ups become one call, and so do the dot
products of all pairs of vectors; graph nodes that do nothing go too: at batch 1 a recommender costs its calls. On a GPU
rows of weights are padded to whole vectors.
"""

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from recpress.artifact.lower_interactions import lower_crosses, lower_interactions
from recpress.artifact.lower_tables import lower_tables
from recpress.artifact.nodes import only_user
from recpress_kernels import int8_mlp_packed, native, pack_stack

_OPS = torch.ops.aten
LINEARS = {
    torch.ops.recpress.int8_linear.default: False,
    torch.ops.recpress.weight_only_linear.default: True,
}
"""The ops of compressed linear layers, and whether their inputs stay float."""
_ACTIVATIONS = {_OPS.relu.default: "relu", _OPS.sigmoid.default: "sigmoid", _OPS.silu.default: "silu"}
_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class _Stack:
    """A chain of layers: each linear node with the name of its activation, and the node that ends it."""

    layers: list[tuple[Node, str]]
    end: Node


def lower(module: GraphModule) -> str:
    """Rewrite ``module`` in place for the CPU; a sentence on what runs its int8 layers and look-ups now.

    Without native kernels the graph is left as it is.
    """
    linears = _linears(module)
    status = native.status()
    if not status.ok:
        return f"{len(linears)} int8 layers through torch's float32 matmul, slower: {status.reason}"
    drop_identities(module)
    stacks = []
    taken: set[Node] = set()
    for node in linears:
        if node not in taken and _packable(node):
            stack = _follow(node)
            taken.update(layer for layer, _ in stack.layers)
            stacks.append(stack)
    for i, stack in enumerate(stacks):
        _replace(module, stack, f"packed_{i}")
    triangles = lower_interactions(module)  # before the tables, whose join takes away what is known of shapes
    crosses = lower_crosses(module)
    look_ups, calls = lower_tables(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    left = len(linears) - len(taken)
    rest = f", {left} one at a time" if left else ""
    looked = f"; {look_ups} look-ups in {calls} call" + "s" * (calls > 1) if look_ups else ""
    crossed = f", {crosses} of them cross layers" if crosses else ""
    dots = f"; {triangles} triangles of dot products in a call each" if triangles else ""
    return f"{len(taken)} int8 layers in {len(stacks)} calls of {status.reason}{rest}{crossed}{dots}{looked}"


def lower_to_gpu(module: GraphModule) -> str:
    """Pad the weights' rows in place so that a GPU reads them in whole vectors; a sentence on what runs the layers."""
    from recpress_kernels.int8_linear.cuda import pad_rows  # triton exists on Linux alone

    linears = _linears(module)
    for weight in {node.args[1] for node in linears}:
        if weight.op == "get_attr":
            owner, _, name = weight.target.rpartition(".")
            setattr(module.get_submodule(owner), name, pad_rows(module.get_buffer(weight.target)))
    return f"{len(linears)} int8 layers through Triton-language kernels"


def _linears(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.target in LINEARS]


def drop_identities(module: GraphModule) -> None:
    """Remove dropout that is off and slices that take everything, but for those that are an output."""
    for node in module.graph.nodes:
        if any(user.op == "output" for user in node.users):
            continue
        off = node.target is _OPS.dropout.default and len(node.args) > 2 and node.args[2] is False
        whole = node.target is _OPS.slice.Tensor and node.args[2:] in ((), (0, _INT64_MAX), (None, None))
        if off or whole:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _packable(node: Node) -> bool:
    """Whether the layer is dynamic and its operands are the module's own tensors."""
    return not node.kwargs and len(node.args) <= 4 and all(n is None or n.op == "get_attr" for n in node.args[1:])


def _follow(node: Node) -> _Stack:
    layers = []
    while True:
        end, activation = _with_activation(node)
        layers.append((node, activation))
        after = only_user(end)
        linear = after is not None and after.target in LINEARS
        if not (linear and after.args[0] is end and _packable(after)):
            return _Stack(layers, end)
        node = after


def _with_activation(node: Node) -> tuple[Node, str]:
    after = only_user(node)
    if after is not None and after.args[:1] == (node,):
        if after.target in _ACTIVATIONS:
            return after, _ACTIVATIONS[after.target]
        if after.target is _OPS.gelu.default:
            return after, "gelu_tanh" if after.kwargs.get("approximate") == "tanh" else "gelu_erf"
    return node, "none"


def _replace(module: GraphModule, stack: _Stack, name: str) -> None:
    operands: list[list] = [[], [], []]
    for node, _ in stack.layers:
        for column, given in zip(operands, (*node.args[1:], None)[:3], strict=True):
            column.append(None if given is None else module.get_buffer(given.target))
    activations = [activation for _, activation in stack.layers]
    keeps_floats = [LINEARS[node.target] for node, _ in stack.layers]
    module.register_buffer(name, pack_stack(*operands, activations, keeps_floats=keeps_floats))
    with module.graph.inserting_before(stack.end):
        packed = module.graph.get_attr(name)
        out_features = operands[0][-1].shape[0]
        call = module.graph.call_function(int8_mlp_packed, (stack.layers[0][0].args[0], packed, out_features))
    call.meta = dict(stack.end.meta)
    stack.end.replace_all_uses_with(call)
