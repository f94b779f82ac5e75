"""Run a model on calibration inputs and keep what its linear layers were given."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from recpress.errors import CalibrationError
from recpress.quantize.fake import FakeClusteredLinear, FakeLinear

Inputs = Tensor | tuple | list | Mapping
ROWS = 4096
"""Rows kept of a layer's inputs, the first that come."""
EXAMPLE_ROWS = 1024
"""Inputs of the model are kept until they have as many rows."""
LARGEST = torch.finfo(torch.float32).max / 2
"""Of a layer's inputs, so that the width of their range is a float32."""
_LINEAR = (nn.Linear, FakeLinear, FakeClusteredLinear)
"""Not other subclasses, whose forward may do something else to their input."""


@dataclass(frozen=True)
class Captured:
    """Ids of the modules that ran, and the inputs ``[rows, in]`` of each ``nn.Linear`` among them, fake-quantised ones
    too, by its id.

    ``examples`` are the first of the model's own inputs.
    """

    reached: frozenset[int]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    examples: tuple[Inputs, ...] = ()


def capture(model: nn.Module, calibration: Iterable[Inputs]) -> Captured:
    """Run ``model``, in the mode that it is in, on each of the calibration inputs.

    Args:
        calibration: inputs, each a tensor, a tuple of positional arguments or a mapping of keyword arguments.

    Raises:
        CalibrationError: there are none or none with rows, the model fails on one, or a linear layer is given NaN,
            infinity or a number beyond half of float32's largest.
    """
    if isinstance(calibration, Tensor | Mapping):
        raise CalibrationError(f"calibration is one {type(calibration).__name__}; give a list of inputs, such as [it]")
    reached: set[int] = set()
    kept: dict[int, list[Tensor]] = {}

    def saw(module: nn.Module, given: tuple, named: dict) -> None:
        tensors = [part for part in (*given, *named.values()) if isinstance(part, Tensor)]
        if tensors and not any(part.numel() for part in tensors):
            return
        reached.add(id(module))
        if type(module) in _LINEAR:
            parts = kept.setdefault(id(module), [])
            room = ROWS - sum(len(part) for part in parts)
            if room > 0:
                parts.append(tensors[0].detach().reshape(-1, tensors[0].shape[-1])[:room].clone())

    hooks = [module.register_forward_pre_hook(saw, with_kwargs=True) for module in model.modules()]
    count = rows = 0
    examples: list[Inputs] = []
    try:
        with torch.no_grad():
            for inputs in calibration:
                _call(model, inputs, count)
                count += 1
                if rows < EXAMPLE_ROWS:
                    examples.append(inputs)
                    rows += _rows(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise CalibrationError("calibration holds no inputs; give at least one, or None to go without")
    if not rows:
        raise CalibrationError("calibration inputs hold no rows; give some thousand, or None to go without")
    inputs = {module: torch.cat(parts) for module, parts in kept.items()}
    _check_finite(model, inputs)
    return Captured(frozenset(reached), inputs, tuple(examples))


def call(model: nn.Module, inputs: Inputs) -> object:
    """What ``model`` makes of ``inputs``: a tensor, a tuple of positional arguments or a mapping of keyword ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _rows(inputs: Inputs) -> int:
    """Rows of the first tensor in ``inputs``."""
    parts = [inputs] if isinstance(inputs, Tensor) else inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.dim()), 1)


def _check_finite(model: nn.Module, inputs: dict[int, Tensor]) -> None:
    for name, module in model.named_modules():
        given = inputs.get(id(module))
        if given is not None and not (fine := given.abs() <= LARGEST).all():
            row, column = (int(i) for i in (~fine).nonzero()[0])
            raise CalibrationError(
                f"calibration gives layer {name!r} {given[row, column]} in row {row}, column {column}; give "
                f"inputs that are finite and that the model answers with finite numbers of at most {LARGEST:.1e}"
            )


def _call(model: nn.Module, inputs: Inputs, position: int) -> None:
    try:
        call(model, inputs)
    except Exception as error:
        raise CalibrationError(
            f"the model fails on calibration input {position}: {type(error).__name__}: {error}; give tensors, "
            "tuples of positional arguments or mappings of keyword arguments that it takes"
        ) from error
