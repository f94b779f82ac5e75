"""Which parameters of a model can be pruned, and why the others cannot."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from recpress.errors import PruningError
from recpress.pruning.masks import MaskedParameter


@dataclass(frozen=True)
class Target:
    """A linear layer by its first name, and its weight ``[out, in]``."""

    name: str
    module: nn.Linear

    @property
    def weight(self) -> nn.Parameter:
        return self.module.weight


@dataclass(frozen=True)
class Skip:
    """A parameter by its name that is not pruned, and why."""

    name: str
    reason: str


def find(model: nn.Module, keep: tuple[str, ...], group: int | None) -> tuple[list[Target], list[Skip]]:
    """The linear layers of ``model`` whose weights can be pruned, and all other parameters.

    Args:
        keep: patterns over layers' names that stay dense.
        group: inputs in a group of an n:m pattern, of which a layer needs at least one; None for other patterns.

    Raises:
        PruningError: a pattern of ``keep`` matches no linear layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(map(repr, names)) or "none"
            raise PruningError(f"keep {pattern!r} matches no linear layer; the model's are: {known}")
    homes = _homes(model)
    targets, skips, seen = [], [], set()
    for layer, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            reason = _reason(layer, own, module, parameter, homes[id(parameter)], keep, group)
            if reason is None:
                targets.append(Target(layer, module))
            else:
                skips.append(Skip(f"{layer}.{own}".lstrip("."), reason))
    return targets, skips


def _homes(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, one a module that holds it, by its id."""
    homes: dict[int, list[str]] = {}
    for layer, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                homes.setdefault(id(parameter), []).append(f"{layer}.{own}".lstrip("."))
    return homes


def _reason(
    layer: str,
    own: str,
    module: nn.Module,
    parameter: nn.Parameter,
    homes: list[str],
    keep: tuple[str, ...],
    group: int | None,
) -> str | None:
    """Why the parameter ``own`` of ``module`` stays as it is, or None."""
    if not isinstance(module, nn.Linear) or own != "weight":
        return f"it is the {own} of a {type(module).__name__}; weights of linear layers are pruned"
    pattern = next((pattern for pattern in keep if fnmatchcase(layer, pattern)), None)
    if pattern is not None:
        return f"keep {pattern!r}"
    if len(homes) > 1:
        return f"it is shared by {', '.join(homes)}; pruning it would change all of them"
    if type(parameter) not in (nn.Parameter, MaskedParameter):
        return f"it is a {type(parameter).__name__}, which masks do not know"
    if not parameter.dtype.is_floating_point:
        return f"it is {parameter.dtype}; floats are pruned"
    n, k = parameter.shape
    if group is not None and k < group:
        return f"it has {k} inputs, fewer than the {group} of a group"
    return "it has no elements" if not n * k else None


def check_finite(targets: list[Target]) -> None:
    """Refuse weights that have no order.

    Raises:
        PruningError: one holds NaN or infinity.
    """
    for target in targets:
        weight: Tensor = target.weight.detach()
        if not weight.isfinite().all():
            row, column = (int(i) for i in (~weight.isfinite()).nonzero()[0])
            raise PruningError(f"layer {target.name!r} has the weight {weight[row, column]} at [{row}, {column}]")
