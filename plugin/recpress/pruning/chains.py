"""Hidden units whose place can be changed: a linear layer whose outputs go, one by one, to one other and nowhere else.

What torch.fx traces of the model's forward decides. A layer that is called twice, has two names, shares its weight, has
hooks, or whose outputs are seen by anything but element-wise activations and that one layer, is in no chain.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from recpress.errors import PruningError
from recpress.pruning import masks, targets

_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout),
)
_FUNCTIONS = (
    *(torch.relu, torch.sigmoid, torch.tanh, functional.relu, functional.leaky_relu, functional.elu, functional.gelu),
    *(functional.silu, functional.mish, functional.hardswish, functional.softplus, functional.dropout),
)
_METHODS = ("relu", "sigmoid", "tanh")


@dataclass(frozen=True)
class Chain:
    """``first`` gives units ``[rows, units]``, which go through activations alone to ``last``; with their names."""

    first_name: str
    first: nn.Linear
    last_name: str
    last: nn.Linear


def find(model: nn.Module) -> list[Chain]:
    """The chains of ``model``, in the order in which they are called.

    Raises:
        PruningError: torch.fx cannot follow the model's forward.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever the user's forward raises when it is given a proxy
        raise PruningError(
            f"torch.fx cannot follow the forward of {type(model).__name__} ({type(error).__name__}: {error}), so that "
            "it is not certain where a layer's outputs go; take out what depends on values, or prune single weights"
        ) from None
    names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    sole = {target.module for target in targets.find(model, (), None)[0] if type(target.module) is nn.Linear}
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(modules[node.target] for node in graph.nodes if node.op == "call_module")
    own = {m for m in sole if names[m] == calls[m] == 1 and not (m._forward_hooks or m._forward_pre_hooks)}
    found = []
    for node in graph.nodes:
        if node.op == "call_module" and modules[node.target] in own:
            last = _follow(node, modules)
            if last is not None and modules[last.target] in own:
                found.append(Chain(node.target, modules[node.target], last.target, modules[last.target]))
    return found


def select(chain: Chain, units: Tensor) -> None:
    """Let the units of ``chain`` be those at ``units``, int64, in that order; in place, masks included."""
    chain.first.weight = selected(chain.first.weight, 0, units)
    if chain.first.bias is not None:
        chain.first.bias = selected(chain.first.bias, 0, units)
    chain.last.weight = selected(chain.last.weight, 1, units)
    chain.first.out_features = chain.last.in_features = len(units)


def _follow(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The call of the module that alone takes what ``node`` gives, through element-wise activations."""
    while len(node.users) == 1:
        (after,) = node.users
        if after.args[:1] != (node,) or any(node in given for given in (after.args[1:], after.kwargs.values())):
            return None
        if not _elementwise(after, modules):
            linear = after.op == "call_module" and type(modules[after.target]) is nn.Linear
            return after if linear else None
        node = after
    return None


def _elementwise(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[node.target]
        return type(module) in _MODULES and not (module._forward_hooks or module._forward_pre_hooks)
    known: tuple[Callable | str, ...] = _FUNCTIONS if node.op == "call_function" else _METHODS
    return node.op in ("call_function", "call_method") and node.target in known


def selected(parameter: nn.Parameter, dim: int, places: Tensor) -> nn.Parameter:
    """A parameter of those ``places``, int64, of ``parameter`` along ``dim``, with their mask."""
    places = places.to(parameter.device)
    new = nn.Parameter(parameter.detach().index_select(dim, places), parameter.requires_grad)
    if isinstance(parameter, masks.MaskedParameter):
        masks.mask(new, parameter.mask.to(parameter.device).index_select(dim, places))
    return new
