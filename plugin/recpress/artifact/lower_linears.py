"""Stacks of compressed linear layers in a loaded graph, each in one call of the native CPU kernels.

Each chain of ``int8_linear``, ``int8_sparse24_linear``, ``weight_only_linear`` and activations becomes one call on a
packed buffer. 2:4 weights run as 2:4 where a table of measurements has that faster (int8_mlp/choice.py), else dense. A
multiplication by powers of two between layers, as evening out the columns leaves them, goes into the scales and bias of
the layer before, where it changes no bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from recpress.artifact.nodes import is_own, only_user
from recpress_kernels import int8_mlp_packed, pack_stack
from recpress_kernels.formats.sparse24 import Sparse24
from recpress_kernels.int8_mlp.choice import Choice, choose_stack

_OPS = torch.ops.aten
_WEIGHT_ONLY = torch.ops.recpress.weight_only_linear.default
SPARSE24 = torch.ops.recpress.int8_sparse24_linear.default
LINEARS = {torch.ops.recpress.int8_linear.default: 2, _WEIGHT_ONLY: 2, SPARSE24: 3}
"""The ops of compressed linear layers, and the place of the weights' scale among their arguments."""
_ACTIVATIONS = {_OPS.relu.default: "relu", _OPS.sigmoid.default: "sigmoid", _OPS.silu.default: "silu"}


@dataclass(frozen=True)
class _Layer:
    """A linear node, the name of its activation, and what its outputs are then multiplied by."""

    node: Node
    activation: str
    multiplier: Tensor | None = None


@dataclass(frozen=True)
class _Operands:
    weight: Tensor | Sparse24
    scale: Tensor
    bias: Tensor | None
    x_pair: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class _Stack:
    """A chain of layers, and the node that ends it."""

    layers: list[_Layer]
    end: Node


def linears(module: GraphModule) -> list[Node]:
    """The compressed linear layers of ``module``."""
    return [node for node in module.graph.nodes if node.target in LINEARS]


def lower_linears(module: GraphModule) -> tuple[str, list[Choice]]:
    """Rewrite the stacks of ``module`` in place; how many layers are in how many calls now, and how 2:4 ones run."""
    nodes = linears(module)
    stacks = []
    taken: set[Node] = set()
    for node in nodes:
        if node not in taken and _packable(node):
            stack = _follow(module, node)
            taken.update(layer.node for layer in stack.layers)
            stacks.append(stack)
    choices = [choice for i, stack in enumerate(stacks) for choice in _replace(module, stack, f"packed_{i}")]
    left = len(nodes) - len(taken)
    run = sum(choice.sparse24 for choice in choices)
    sparse = f", {run} of {len(choices)} 2:4 layers as 2:4 and the others dense, as measured" if choices else ""
    rest = f", {left} one at a time" if left else ""
    return f"{len(taken)} int8 layers in {len(stacks)} calls{sparse}{rest}", choices


def _packable(node: Node) -> bool:
    """Whether the layer gives floats, without an activation of its own, from the module's own tensors."""
    at = LINEARS[node.target] + 2
    activation, *pairs = node.args[at:] or ("none",)
    own = all(is_own(n) for n in (*node.args[1:at], *pairs))
    return own and not node.kwargs and activation == "none" and all(n is None for n in pairs[2:])


def _follow(module: GraphModule, node: Node) -> _Stack:
    layers = []
    while True:
        end, activation = _with_activation(node)
        before, multiplier = end, None
        after = only_user(end)
        if after is not None and activation in ("none", "relu"):
            multiplier = _powers_of_two(module, after, end)
            if multiplier is not None:
                before, after = after, only_user(after)
        linear = after is not None and after.target in LINEARS
        if not (linear and after.args[0] is before and _packable(after)):
            return _Stack([*layers, _Layer(node, activation)], end)
        layers.append(_Layer(node, activation, multiplier))
        node = after


def _powers_of_two(module: GraphModule, node: Node, given: Node) -> Tensor | None:
    """What ``node`` multiplies ``given`` by, where it is one power of two a column."""
    if node.target is not _OPS.mul.Tensor or node.args[0] is not given:
        return None
    other = node.args[1]
    if not isinstance(other, Node) or other.op != "get_attr":
        return None
    multiplier = module.get_buffer(other.target)
    exact = multiplier.dtype == torch.float32 and multiplier.dim() == 1
    return multiplier if exact and (torch.frexp(multiplier).mantissa == 0.5).all() else None


def _with_activation(node: Node) -> tuple[Node, str]:
    after = only_user(node)
    if after is not None and after.args[:1] == (node,):
        if after.target in _ACTIVATIONS:
            return after, _ACTIVATIONS[after.target]
        if after.target is _OPS.gelu.default:
            return after, "gelu_tanh" if after.kwargs.get("approximate") == "tanh" else "gelu_erf"
    return node, "none"


def _replace(module: GraphModule, stack: _Stack, name: str) -> list[Choice]:
    """Put one call in place of ``stack``; how its layers that are stored as 2:4 run."""
    operands = [_operands(module, layer) for layer in stack.layers]
    weights, choices = choose_stack([operand.weight for operand in operands])
    packed = pack_stack(
        weights,
        [operand.scale for operand in operands],
        [operand.bias for operand in operands],
        [layer.activation for layer in stack.layers],
        keeps_floats=[layer.node.target is _WEIGHT_ONLY for layer in stack.layers],
        x_pairs=[operand.x_pair for operand in operands],
    )
    module.register_buffer(name, packed)
    with module.graph.inserting_before(stack.end):
        buffer = module.graph.get_attr(name)
        out_features = operands[-1].scale.shape[0]
        call = module.graph.call_function(int8_mlp_packed, (stack.layers[0].node.args[0], buffer, out_features))
    call.meta = dict(stack.end.meta)
    stack.end.replace_all_uses_with(call)
    return choices


def _operands(module: GraphModule, layer: _Layer) -> _Operands:
    """The tensors of a layer, with what its outputs are multiplied by in scale and bias."""
    node = layer.node
    at = LINEARS[node.target]
    *weight, scale, bias = (_tensor(module, n) for n in (*node.args[1:], None)[: at + 1])
    if layer.multiplier is not None:
        scale, bias = (None if vector is None else vector * layer.multiplier for vector in (scale, bias))
    pair = tuple(_tensor(module, n) for n in node.args[at + 3 : at + 5])
    stored = stored_sparse(module, node) if node.target is SPARSE24 else weight[0]
    return _Operands(stored, scale, bias, pair if pair and pair[0] is not None else None)


def stored_sparse(module: GraphModule, node: Node) -> Sparse24:
    """The weight of an ``int8_sparse24_linear`` node."""
    x, values, indices = node.args[:3]
    return Sparse24(_tensor(module, values), _tensor(module, indices), int(x.meta["val"].shape[-1]))


def _tensor(module: GraphModule, node: Node | None) -> Tensor | None:
    return None if node is None else module.get_buffer(node.target)
