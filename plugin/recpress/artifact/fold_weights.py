"""Weights that a loaded graph computes from its own tensors alone, computed once: clustered weights are decoded so."""

import torch
from torch.fx import GraphModule, Node

from recpress.artifact.nodes import attribute_of, is_own, mutates

_LINEAR = torch.ops.aten.linear.default
_CHECK = torch.ops.aten._assert_tensor_metadata.default
"""What export puts beside a cast; it would keep what is cast."""


def fold_weights(module: GraphModule) -> int:
    """Put tensors in place of the computed weights of linear layers of ``module``, in place; how many there were."""
    folded = [
        node
        for node in module.graph.nodes
        if node.target is _LINEAR and not is_own(node.args[1]) and _constant(node.args[1])
    ]
    for count, node in enumerate(folded):
        name = f"folded_{count}"
        module.register_buffer(name, _value(module, node.args[1]))
        with module.graph.inserting_before(node):
            weight = module.graph.get_attr(name)
        weight.meta = dict(node.args[1].meta)
        node.replace_input_with(node.args[1], weight)
    for node in list(module.graph.nodes) if folded else ():
        if node.target is _CHECK and _constant(node.args[0]):
            module.graph.erase_node(node)
    if folded:
        module.graph.eliminate_dead_code()
        module.recompile()
    return len(folded)


def _constant(node: Node) -> bool:
    """Whether ``node`` depends on the module's own tensors alone."""
    if node.op == "call_function" and not mutates(node):
        return bool(node.all_input_nodes) and all(map(_constant, node.all_input_nodes))
    return node.op == "get_attr"


def _value(module: GraphModule, node: Node) -> torch.Tensor:
    if node.op == "get_attr":
        return attribute_of(module, node.target)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda given: _value(module, given))
    with torch.no_grad():
        return node.target(*args, **kwargs)
