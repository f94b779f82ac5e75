"""Decisions that are the same on all processes that train one model together (torchrun, DistributedDataParallel).

Replicas stay the same only where every process masks the same weights: what one process alone has seen, its own
calibration rows say, must not decide. Without a process group, or with one process, nothing here does anything.
"""

import torch
from torch import Tensor, distributed, nn

from recpress.errors import PruningError
from recpress.pruning import masks


def several() -> bool:
    """Whether this is one of several processes of a group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def root_of_squares(
    scores: dict[str, Tensor], shapes: dict[str, torch.Size], device: torch.device
) -> dict[str, Tensor]:
    """Of wanda's scores of each process, those of all processes' rows together: ``sqrt(sum over processes of s^2)``.

    Args:
        scores: float32 by layer; a layer that no row of this process reached has none.
        shapes: those of all layers that can have scores, the same on every process.

    Returns:
        Scores of the layers that a row of any process reached.
    """
    reached = torch.tensor([name in scores for name in shapes], dtype=torch.int32, device=device)
    distributed.all_reduce(reached)
    found = {}
    for (name, shape), count in zip(shapes.items(), reached.tolist(), strict=True):
        if count:
            squares = scores[name].square() if name in scores else torch.zeros(shape, device=device)
            distributed.all_reduce(squares)
            found[name] = squares.sqrt()
    return found


def of_the_first(keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """The bool masks of rank 0, on every process; their names and shapes are the same everywhere."""
    flat = torch.cat([k.reshape(-1) for k in keep.values()]).to(torch.uint8)
    distributed.broadcast(flat, 0)
    parts = flat.bool().split([k.numel() for k in keep.values()])
    return {name: part.view(k.shape) for (name, k), part in zip(keep.items(), parts, strict=True)}


def share(model: nn.Module) -> nn.Module:
    """Give every process the parameters and masks of rank 0, in place; returns the model. All processes must call it.

    For a model that each process pruned by itself with recpress.prune, on calibration rows of its own say.

    Raises:
        PruningError: parameters differ in name or shape, as where units were removed; raised on every process.
    """
    if not several():
        return model
    parameters = dict(model.named_parameters())
    mine = [(name, tuple(p.shape), isinstance(p, masks.MaskedParameter)) for name, p in parameters.items()]
    everyone: list = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    for rank, other in enumerate(everyone):
        if [entry[:2] for entry in other] != [entry[:2] for entry in everyone[0]]:
            raise PruningError(
                f"the model of rank {rank} has other parameters than that of rank 0: "
                f"{_first_difference(everyone[0], other)}; prune on rank 0 alone and load its model everywhere"
            )
    for name, _, masked in everyone[0]:
        parameter = parameters[name]
        distributed.broadcast(parameter.data, 0)
        if masked:
            keep = getattr(parameter, "mask", torch.ones_like(parameter, dtype=torch.bool))
            masks.mask(parameter, of_the_first({name: keep.to(parameter.device)})[name])
        elif isinstance(parameter, masks.MaskedParameter):
            masks.unmask(parameter)
    return model


def _first_difference(first: list[tuple], other: list[tuple]) -> str:
    told = [[f"{name} {list(shape)}" for name, shape, _ in entries] for entries in (first, other)]
    return next((f"{b}, not {a}" for a, b in zip(*told, strict=False) if a != b), f"{len(other)}, not {len(first)}")
