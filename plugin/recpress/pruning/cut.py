"""Take slots out of a model for real, and prove that it computes what it did with their numbers at zero."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from recpress.errors import CalibrationError, PruningError
from recpress.pruning.chains import selected
from recpress.pruning.coordinates import Slots
from recpress.pruning.narrowed import NarrowedAttention, NarrowedLayerNorm
from recpress.quantize.capture import Inputs, call

TOLERANCE = 1e-4
"""Of the largest output: sums of fewer terms are rounded otherwise, and a wrong model is off by far more."""


def outputs(model: nn.Module, examples: Sequence[Inputs]) -> list[Tensor]:
    """All tensors of floats that ``model`` gives for ``examples``, float32.

    Raises:
        CalibrationError: it gives none.
    """
    with torch.no_grad():
        found = [out for inputs in examples for out in pytree.tree_leaves(call(model, inputs))]
    found = [out.float() for out in found if isinstance(out, Tensor) and out.is_floating_point()]
    if not found:
        raise CalibrationError("the model gives no floats for the calibration inputs, so that nothing can be compared")
    return found


@contextmanager
def zeroed(slots: Iterable[Slots]) -> Iterator[None]:
    """The numbers of ``slots`` at zero, and as they were afterwards."""
    held = [(s, s.tensor.detach().index_select(s.axis, s.places.to(s.tensor.device))) for s in slots]
    try:
        for s, _ in held:
            s.tensor.data.index_fill_(s.axis, s.places.to(s.tensor.device), 0)
        yield
    finally:
        for s, numbers in held:
            s.tensor.data.index_copy_(s.axis, s.places.to(s.tensor.device), numbers)


def ablation(model: nn.Module, candidates: Sequence[list[Slots]], examples: Sequence[Inputs]) -> Tensor:
    """``[1, candidates]``: the sum of squared differences that each makes to the model's outputs when it is zero."""
    truth = outputs(model, examples)
    found = []
    for slots in candidates:
        with zeroed(slots):
            now = outputs(model, examples)
        found.append(sum(float((a - b).double().square().sum()) for a, b in zip(truth, now, strict=True)))
    scores = torch.tensor([found])
    if not torch.isfinite(scores).all():
        raise PruningError("the model's outputs are not finite; look for NaN in its weights and in calibration")
    return scores


def narrowed(model: nn.Module, slots: Iterable[Slots], what: str) -> dict[str, str]:
    """What each parameter that holds ``slots`` loses of ``what``, by its name, before it is cut."""
    found: dict[int, list[str]] = {}
    for s in slots:
        size = s.tensor.shape[s.axis]
        kind = "numbers" if s.tensor.dim() == 1 else ("rows", "columns")[s.axis]
        found.setdefault(id(s.tensor), []).append(f"{size - len(s.places)} of {size} {kind}")
    return {
        name: f"{' and '.join(found[id(parameter)])} stay ({what})"
        for name, parameter in model.named_parameters()
        if id(parameter) in found
    }


def cut(
    model: nn.Module,
    slots: Sequence[Slots],
    examples: Sequence[Inputs],
    what: str,
    *,
    heads: Callable[[], dict[nn.Module, int]] = dict,
) -> None:
    """Take ``slots``, at most one of an axis of a tensor, out of ``model`` in place, and prove it on ``examples``.

    Args:
        what: says in errors what is taken out.
        heads: gives the heads that are left of each ``nn.MultiheadAttention``, and may change what else counts them.

    Raises:
        PruningError: the smaller model fails, or computes something else than the model with those numbers at zero.
    """
    with zeroed(slots):
        expected = outputs(model, examples)
    places = {(id(s.tensor), s.axis): s.places for s in slots}
    narrow: dict[int, nn.Parameter | Tensor] = {}
    left = heads()
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for own, tensor in tensors.items():
                if tensor is not None and any((id(tensor), axis) in places for axis in range(tensor.dim())):
                    if id(tensor) not in narrow:
                        narrow[id(tensor)] = _without(tensor, places)
                    tensors[own] = narrow[id(tensor)]
    _fit(model, left)
    _prove(model, expected, examples, what)


def _without(tensor: Tensor, places: dict[tuple[int, int], Tensor]) -> Tensor:
    new = tensor
    for axis in range(tensor.dim()):
        gone = places.get((id(tensor), axis))
        if gone is not None:
            stays = torch.ones(tensor.shape[axis], dtype=torch.bool).index_fill_(0, gone, False).nonzero()[:, 0]
            is_parameter = isinstance(tensor, nn.Parameter)
            new = selected(new, axis, stays) if is_parameter else new.index_select(axis, stays.to(new.device))
    return new


def _fit(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Let each layer say what its weights now are; what cannot is replaced."""
    replaced: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.embedding_dim = module.weight.shape[1]
        elif isinstance(module, nn.BatchNorm1d) and module.weight is not None:
            module.num_features = len(module.weight)
        elif _is_narrower_norm(module):
            replaced[module] = NarrowedLayerNorm(module, module.normalized_shape[0])
        elif type(module) is nn.MultiheadAttention and (module in heads or _width(module) != module.embed_dim):
            replaced[module] = NarrowedAttention(module, heads.get(module, module.num_heads))
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]


def _is_narrower_norm(module: nn.Module) -> bool:
    weight = module.weight if type(module) is nn.LayerNorm else None
    return weight is not None and weight.shape != tuple(module.normalized_shape)


def _width(attention: nn.MultiheadAttention) -> int:
    return len(attention.out_proj.weight)


def _prove(model: nn.Module, expected: list[Tensor], examples: Sequence[Inputs], what: str) -> None:
    hint = (
        "its forward, or a number that it was made with, says how many there are (a view to fixed sizes, an "
        "embedding_dim in a formula, heads counted under a name without 'head'); let it ask the tensors, or leave "
        "these by keep"
    )
    try:
        found = outputs(model, examples)
    except Exception as error:
        raise PruningError(f"without {what} the model fails ({type(error).__name__}: {error}): {hint}") from None
    for truth, now in zip(expected, found, strict=True):
        if truth.shape != now.shape:
            raise PruningError(f"without {what} the model gives {tuple(now.shape)}, not {tuple(truth.shape)}: {hint}")
        bound = TOLERANCE * max(float(truth.abs().max()), torch.finfo(torch.float32).tiny) if truth.numel() else 0.0
        off = float((truth - now).abs().max()) if truth.numel() else 0.0
        if not off <= bound:
            raise PruningError(
                f"without {what} the model is off by {off:.3g} from itself with their numbers at zero, more than "
                f"{bound:.3g}: {hint}"
            )
