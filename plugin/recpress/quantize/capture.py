"""Run a model on calibration inputs and keep what its linear layers were given."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from recpress.errors import CalibrationError

Inputs = Tensor | tuple | list | Mapping
ROWS = 4096
"""Rows kept of a layer's inputs, the first that come."""


@dataclass(frozen=True)
class Captured:
    """Ids of the modules that ran, and the inputs ``[rows, in]`` of each ``nn.Linear`` among them, by its id."""

    reached: frozenset[int]
    inputs: dict[int, Tensor] = field(default_factory=dict)


def capture(model: nn.Module, calibration: Iterable[Inputs]) -> Captured:
    """Run ``model``, in the mode that it is in, on each of the calibration inputs.

    Args:
        calibration: inputs, each a tensor, a tuple of positional arguments or a mapping of keyword arguments.

    Raises:
        CalibrationError: there are none, the model fails on one, or a layer is given NaN or infinity.
    """
    reached: set[int] = set()
    kept: dict[int, list[Tensor]] = {}

    def saw(module: nn.Module, given: tuple) -> None:
        reached.add(id(module))
        if type(module) is nn.Linear and given and given[0].shape[-1]:
            parts = kept.setdefault(id(module), [])
            room = ROWS - sum(len(part) for part in parts)
            if room > 0:
                parts.append(given[0].detach().reshape(-1, given[0].shape[-1])[:room].clone())

    hooks = [module.register_forward_pre_hook(saw) for module in model.modules()]
    count = 0
    try:
        with torch.no_grad():
            for inputs in calibration:
                _call(model, inputs, count)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise CalibrationError("calibration holds no inputs; give at least one, or None to go without")
    inputs = {module: torch.cat(parts) for module, parts in kept.items()}
    _check_finite(model, inputs)
    return Captured(frozenset(reached), inputs)


def call(model: nn.Module, inputs: Inputs) -> object:
    """What ``model`` makes of ``inputs``: a tensor, a tuple of positional arguments or a mapping of keyword ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _check_finite(model: nn.Module, inputs: dict[int, Tensor]) -> None:
    for name, module in model.named_modules():
        given = inputs.get(id(module))
        if given is not None and not torch.isfinite(given).all():
            row, column = (int(i) for i in (~torch.isfinite(given)).nonzero()[0])
            raise CalibrationError(
                f"calibration gives layer {name!r} {given[row, column]} in row {row}, column {column}; give "
                "inputs that are finite and that the model answers with finite numbers"
            )


def _call(model: nn.Module, inputs: Inputs, position: int) -> None:
    try:
        call(model, inputs)
    except Exception as error:
        raise CalibrationError(
            f"the model fails on calibration input {position}: {type(error).__name__}: {error}; give tensors, "
            "tuples of positional arguments or mappings of keyword arguments that it takes"
        ) from error
