"""Take whole hidden units out of a model, so that its layers are smaller: nothing is stored or computed for them."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from recpress.errors import PruningError
from recpress.pruning import chains, targets
from recpress.pruning.chains import Chain
from recpress.pruning.patterns import keep_share
from recpress.pruning.rows import PruneRow
from recpress.pruning.spec import PruneSpec
from recpress.quantize.capture import capture

_ELSEWHERE = "its units are seen by more than activations and one linear layer, or are the model's outputs"


def remove(model: nn.Module, spec: PruneSpec, calibration: Iterable[object] | None) -> Iterator[PruneRow]:
    """Remove units of ``model`` in place; a row for each parameter.

    A unit that goes takes its row of weights, its bias, and its column in the layer behind with it: the model computes
    what it would with the unit's outputs at zero.

    Raises:
        PruningError: no layer of the model has units that can go, or a ranking leaves none of a layer.
    """
    layers, skips = targets.find(model, spec.keep, None)
    found = {target.name for target in layers}
    taken = [chain for chain in chains.find(model) if chain.first_name in found]
    if not taken:
        raise PruningError(f"no units of this model can be removed: of each layer {_ELSEWHERE}, or keep names it")
    scores = _scores(taken, spec, model, calibration)
    for name, s in scores.items():
        if not torch.isfinite(s).all():
            raise PruningError(f"layer {name!r} has units whose scores are not finite; look for NaN in its weights")
    stays = keep_share(scores, {name: torch.zeros_like(s) for name, s in scores.items()}, spec.sparsity, spec.ranking)
    before = {name: parameter.numel() for name, parameter in model.named_parameters()}
    reasons = {skip.name: skip.reason for skip in skips if not skip.name.endswith(".bias")}
    for chain in taken:
        units = stays[chain.first_name][0].nonzero()[:, 0]
        if not len(units):
            raise PruningError(f"sparsity {spec.sparsity} leaves no unit of layer {chain.first_name!r}; give less")
        note = f"{len(units)} of {chain.first.out_features} units of {chain.first_name!r} stay, by {spec.by}"
        for name in (f"{chain.first_name}.weight", f"{chain.first_name}.bias", f"{chain.last_name}.weight"):
            reasons[name] = f"{reasons[name]}; {note}" if name in reasons else note
        chains.select(chain, units)
    return _rows(model, before, reasons)


def _scores(
    taken: list[Chain], spec: PruneSpec, model: nn.Module, calibration: Iterable[object] | None
) -> dict[str, Tensor]:
    """Scores ``[1, units]`` by the name of the layer that gives them."""
    if spec.by == "weight-norm":
        return {chain.first_name: chain.first.weight.detach().float().norm(dim=1)[None] for chain in taken}
    inputs = capture(model, calibration).inputs
    scores = {}
    for chain in taken:
        if id(chain.last) not in inputs:
            raise PruningError(f"no calibration input ran through layer {chain.last_name!r}; give ones that do")
        outgoing = chain.last.weight.detach().float().norm(dim=0)
        scores[chain.first_name] = (inputs[id(chain.last)].float().norm(dim=0) * outgoing)[None]
    return scores


def _rows(model: nn.Module, before: dict[str, int], reasons: dict[str, str]) -> Iterator[PruneRow]:
    for name, parameter in model.named_parameters():
        after, zeros = parameter.numel(), int((parameter == 0).sum())
        status = "pruned" if after < before[name] else "kept"
        reason = reasons.get(name) or ("no unit of its layer went" if name.endswith("bias") else _ELSEWHERE)
        yield PruneRow(name, status, reason, before[name], after, zeros)
