"""Batch norms that a linear layer can take into its weights.

With a batch norm's running mean mu and variance v, and its own weight g and bias b, the layer after it is left away::

    r = g / sqrt(v + eps)        W' = r[:, None] * W        bias' = r * (bias - mu) + b

which is the same in eval mode, and lets the quantised weights hold what is served (B. Jacob et al. 2018, arXiv
1712.05877, section 3.2). Its statistics are those of training, and frozen from then on.
"""

from itertools import pairwise

import torch
from torch import fx, nn


def foldable(model: nn.Module) -> dict[nn.Linear, nn.BatchNorm1d]:
    """The linear layers of ``model`` whose outputs go to one batch norm and nowhere else, with that batch norm.

    Found in the graph that torch.fx traces; where it cannot follow the model's forward, in each ``nn.Sequential`` of
    it. A module with two names or called twice, or with hooks, is left alone.
    """
    if not any(type(module) is nn.BatchNorm1d for module in model.modules()):
        return {}
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # whatever the user's forward raises when it is given a proxy
        pairs = _in_sequentials(model)
    else:
        pairs = _in_graph(model, graph)
    names: dict[nn.Module, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        names[module] = names.get(module, 0) + 1
    return {linear: norm for linear, norm in pairs if names[linear] == names[norm] == 1 and _fits(linear, norm)}


def fold(linear: nn.Linear, norm: nn.BatchNorm1d) -> None:
    """Take ``norm``, in eval mode, into ``linear`` in place."""
    with torch.no_grad():
        # In float64: the fold should add no more than one rounding to what is quantised.
        ratio = torch.rsqrt(norm.running_var.double() + norm.eps)
        ratio = ratio if norm.weight is None else ratio * norm.weight
        bias = 0.0 if linear.bias is None else linear.bias.double()
        bias = (bias - norm.running_mean) * ratio + (0.0 if norm.bias is None else norm.bias)
        dtype = linear.weight.dtype
        linear.weight.copy_(linear.weight.double() * ratio[:, None])
        if linear.bias is None:
            linear.bias = nn.Parameter(bias.to(dtype), requires_grad=linear.weight.requires_grad)
        else:
            linear.bias.copy_(bias)


def _fits(linear: nn.Linear, norm: nn.BatchNorm1d) -> bool:
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, norm._forward_hooks, norm._forward_pre_hooks)
    return norm.running_mean is not None and norm.num_features == linear.out_features and not any(hooks)


def _in_sequentials(model: nn.Module) -> list[tuple[nn.Linear, nn.BatchNorm1d]]:
    found = []
    for module in model.modules():
        if type(module) is nn.Sequential:
            children = list(module)
            found += [
                pair for pair in pairwise(children) if type(pair[0]) is nn.Linear and type(pair[1]) is nn.BatchNorm1d
            ]
    return found


def _in_graph(model: nn.Module, graph: fx.Graph) -> list[tuple[nn.Linear, nn.BatchNorm1d]]:
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(model.get_submodule(node.target), []).append(node)
    found = []
    for norm, nodes in calls.items():
        if type(norm) is not nn.BatchNorm1d or len(nodes) != 1:
            continue
        source = nodes[0].args[0] if nodes[0].args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        linear = model.get_submodule(source.target)
        if type(linear) is nn.Linear and len(calls[linear]) == 1:
            found.append((linear, norm))
    return found
