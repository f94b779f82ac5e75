"""Which layers the error of a compressed model comes from: each compressed alone, on some of the calibration rows.

With f the model, f_l the model in which layer l alone is compressed, and x the rows, over all numbers of the outputs::

    e_l = mean (f_l(x) - f(x))^2            share_l = e_l / sum over layers of e

It is the error of the outputs, as no labels are given; it takes a forward of the model a layer. Errors of layers
together are about their sum where they are small and fall independently, so that shares say what an override
``keep`` of a layer would give back.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from recpress.quantize.capture import Inputs, call


def error_shares(model: nn.Module, replaced: dict[int, nn.Module], examples: Sequence[Inputs]) -> dict[int, float]:
    """The share of each module of ``model`` in whose place one stands in ``replaced``, both by id.

    Empty where ``examples`` are, where no layer changes the outputs, and where these are not finite.
    """
    with torch.no_grad():
        truth = [_numbers(call(model, inputs)) for inputs in examples]
        errors = {
            id(module): _error_with(module, replaced[id(module)], model, examples, truth)
            for module in model.modules()
            if id(module) in replaced
        }
    total = sum(errors.values())
    return {which: error / total for which, error in errors.items()} if 0 < total < float("inf") else {}


def _error_with(
    module: nn.Module, new: nn.Module, model: nn.Module, examples: Sequence[Inputs], truth: list[Tensor]
) -> float:
    hook = module.register_forward_hook(lambda _module, given, named, _out: new(*given, **named), with_kwargs=True)
    try:
        found = [_numbers(call(model, inputs)) for inputs in examples]
    finally:
        hook.remove()
    return sum(float((a - b).square().sum()) for a, b in zip(found, truth, strict=True))


def _numbers(out: object) -> Tensor:
    """All floats of a model's output, float64 ``[n]``."""
    parts = [part.reshape(-1).double() for part in _tensors(out) if part.is_floating_point()]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _tensors(out: object) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, dict | tuple | list):
        for part in out.values() if isinstance(out, dict) else out:
            yield from _tensors(part)
