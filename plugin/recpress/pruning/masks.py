"""Masks that keep pruned weights at zero, on the parameters themselves.

A masked parameter is the same tensor under the same name, in place: optimisers that hold it go on, a checkpoint has the
keys of the dense model and zeros where the mask is, and whoever takes the parameter over, a fake-quantised layer say,
takes the mask with it. After each step of any ``torch.optim`` optimiser the masked values are set to zero again,
whatever momentum or weight decay made of them; values that are copied in, as ``load_state_dict`` does, are masked too.
``copy.deepcopy`` and pickle keep the mask.

``load_state_dict(assign=True)`` puts other parameters in place, without masks: give them by :func:`apply`. What goes
through none of these, ``parameter.data.add_(...)`` say, is masked at the next step, or by :func:`enforce`.

Under DistributedDataParallel each process holds the masks of its own replica; ranks.py says how they stay the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from recpress.errors import PruningError


class MaskedParameter(nn.Parameter):
    """A parameter that is zero wherever ``mask``, a bool tensor of its shape, is False."""

    mask: Tensor

    def enforce(self) -> None:
        """Set what the mask takes out to zero."""
        if self.mask.device != self.device:  # module.to() moves the parameter alone
            self.mask = self.mask.to(self.device)
        self.data.masked_fill_(~self.mask, 0)

    def copy_(self, other: Tensor, non_blocking: bool = False) -> Tensor:
        """``Tensor.copy_``, and the mask after it."""
        super().copy_(other, non_blocking)
        self.enforce()
        return self

    def __deepcopy__(self, memo: dict) -> "MaskedParameter":
        if id(self) not in memo:
            memo[id(self)] = _masked(self.data.clone(), self.mask.clone(), self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, _protocol: int) -> tuple:
        return _masked, (self.data, self.mask, self.requires_grad)


def mask(parameter: nn.Parameter, keep: Tensor) -> None:
    """Mask ``parameter`` in place by ``keep``, bool of its shape; a mask that it has already is replaced.

    Raises:
        PruningError: another shape or dtype, or a parameter of a class of its own.
    """
    if type(parameter) not in (nn.Parameter, MaskedParameter):
        raise PruningError(f"a {type(parameter).__name__} cannot be masked; give a torch.nn.Parameter")
    if keep.dtype != torch.bool or keep.shape != parameter.shape:
        raise PruningError(
            f"the mask is {keep.dtype} of shape {tuple(keep.shape)}; give torch.bool of shape {tuple(parameter.shape)}"
        )
    parameter.mask = keep.to(parameter.device)
    parameter.__class__ = MaskedParameter
    parameter.enforce()


def narrow(parameter: nn.Parameter, keep: Tensor) -> None:
    """As :func:`mask`, and what is masked already stays masked.

    Raises:
        PruningError: as there.
    """
    held = getattr(parameter, "mask", None)
    mask(parameter, keep if held is None else keep.to(held.device) & held)


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The mask of each masked parameter of ``model`` by its name: what to keep beside a checkpoint."""
    return {name: p.mask for name, p in model.named_parameters() if isinstance(p, MaskedParameter)}


def apply(model: nn.Module, found: Mapping[str, Tensor]) -> nn.Module:
    """Mask parameters of ``model`` by name, in place, as :func:`masks` gives it; returns the model.

    Raises:
        PruningError: a name that the model does not have, or what :func:`mask` says.
    """
    parameters = dict(model.named_parameters())
    for name, keep in found.items():
        if name not in parameters:
            raise PruningError(f"mask {name!r} fits no parameter; the model's are: {', '.join(parameters)}")
        mask(parameters[name], keep)
    return model


def enforce(model: nn.Module) -> None:
    """Set everything that is masked in ``model`` to zero: for training without ``torch.optim``."""
    for parameter in model.parameters():
        if isinstance(parameter, MaskedParameter):
            parameter.enforce()


def finish(model: nn.Module) -> nn.Module:
    """Make the masked parameters of ``model`` plain ones, in place, with zeros where the mask was; returns the model.

    From then on nothing keeps the zeros.
    """
    for parameter in model.parameters():
        if isinstance(parameter, MaskedParameter):
            unmask(parameter)
    return model


def unmask(parameter: MaskedParameter) -> None:
    """As :func:`finish`, of one parameter."""
    parameter.enforce()
    del parameter.mask
    parameter.__class__ = nn.Parameter


def _masked(data: Tensor, keep: Tensor, requires_grad: bool) -> MaskedParameter:
    parameter = nn.Parameter(data, requires_grad)
    mask(parameter, keep)
    return parameter


def _after_step(optimizer: Optimizer, _args: tuple, _kwargs: dict) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, MaskedParameter):
                parameter.enforce()


register_optimizer_step_post_hook(_after_step)
