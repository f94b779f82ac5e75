"""Rewrite a loaded graph for the CPU at hand.

The artifact holds canonical weights and one op a layer. On a CPU stacks of linear layers become one call each
(lower_linears.py), and so do look-ups (lower_tables.py), pooled bags (lower_bags.py) and the dot products of all pairs
of vectors (lower_interactions.py); graph nodes that do nothing go: at batch 1 a recommender costs its calls. For a GPU
see lower_gpu.py.
"""

import torch
from torch.fx import GraphModule

from recpress.artifact.lower_bags import lower_bags
from recpress.artifact.lower_interactions import lower_crosses, lower_interactions
from recpress.artifact.lower_linears import linears, lower_linears
from recpress.artifact.lower_tables import lower_tables
from recpress_kernels import native
from recpress_kernels.int8_mlp.choice import Choice

_OPS = torch.ops.aten
_INT64_MAX = (1 << 63) - 1


def lower(module: GraphModule) -> tuple[str, list[Choice]]:
    """Rewrite ``module`` in place for the CPU; what runs its layers and look-ups now, and in which form 2:4 layers do.

    Without native kernels the graph is left as it is.
    """
    status = native.status()
    if not status.ok:
        return f"{len(linears(module))} int8 layers through torch's float32 matmul, slower: {status.reason}", []
    drop_identities(module)
    layers, choices = lower_linears(module)
    triangles = lower_interactions(module)  # before the tables, whose join takes away what is known of shapes
    crosses = lower_crosses(module)
    look_ups = lower_tables(module)
    module.graph.eliminate_dead_code()  # look-ups that a call stands for are no bags any more
    bags = lower_bags(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return f"{layers}{told(crosses, triangles, look_ups, bags)}; {status.reason}", choices


def told(crosses: int, triangles: int, look_ups: tuple[int, int], bags: tuple[int, int] = (0, 0)) -> str:
    """What has become fewer calls, behind what is said of the layers; pairs are how many, and in how many calls."""
    crossed = f", {crosses} of them cross layers" if crosses else ""
    dots = f"; {triangles} triangles of dot products in a call each" if triangles else ""
    looked = f"; {_counted('look-up', look_ups)}" if look_ups[0] else ""
    pooled = f"; {_counted('bag layer', bags)}" if bags[0] else ""
    return f"{crossed}{dots}{looked}{pooled}"


def _counted(what: str, found: tuple[int, int]) -> str:
    count, calls = found
    return f"{count} {what}{'s' * (count > 1)} in {calls} call{'s' * (calls > 1)}"


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
