"""Questions about the nodes of a traced graph, as the rewrites of this folder ask them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node


def only_user(node: Node) -> Node | None:
    """The node that uses ``node``, where there is one alone."""
    return next(iter(node.users)) if len(node.users) == 1 else None


@dataclass(frozen=True)
class Traced:
    """What a stored graph tells of a tensor: its sizes, those that vary by their symbols, and its dtype."""

    shape: tuple[int | str, ...]
    dtype: torch.dtype


def shape_of(node: Node) -> tuple[str, ...]:
    """The sizes as traced, symbols by their names; empty where the graph does not tell."""
    value = node.meta.get("val")
    return tuple(str(size) for size in value.shape) if isinstance(value, Tensor | Traced) else ()


def dtype_of(node: Node) -> torch.dtype | None:
    """The dtype as traced; None where the graph does not tell."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor | Traced) else None


def mutates(node: Node) -> bool:
    """Whether ``node`` may write in place: what is read before it and after it may differ."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def is_own(node: object) -> bool:
    """Whether an argument is one of the module's own tensors, or none."""
    return node is None or (isinstance(node, Node) and node.op == "get_attr")


def attribute_of(module: GraphModule, name: str) -> Tensor:
    """The module's tensor of this dotted name."""
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute)
