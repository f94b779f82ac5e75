"""Take whole heads out of attentions: their rows of queries, keys and values, and their columns of what follows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx, nn

from recpress.errors import PruningError
from recpress.pruning.coordinates import Slots, joined
from recpress.pruning.cut import ablation, cut, narrowed
from recpress.pruning.follow import Attention, Follower, follow
from recpress.pruning.patterns import keep_share
from recpress.pruning.rows import PruneRow, accounted
from recpress.pruning.spec import PruneSpec
from recpress.quantize.capture import Inputs, capture

_MIXED = "it meets numbers that do not go with its head"


class HeadFollower(Follower):
    """Follows heads instead of single numbers: what is multiplied as matrices goes together, one matrix of a batch.

    What a head gives need not be zero for its numbers at zero: the columns behind it, which go with it, are.
    """

    def _not_zero(self, node: fx.Node, _value: Tensor) -> Tensor | None:
        return self._labels[node.args[0]]

    def _shifted(self, labels: Tensor) -> Tensor:
        return labels

    def _boxed(self, labels: Tensor) -> Tensor:
        return labels

    def _reduced(self, labels: Tensor, dims: list[int] | None, keepdim: bool, why: str | None) -> Tensor | None:
        return super()._reduced(labels, dims, keepdim, why or "it is summed over")

    def _softmax(self, node: fx.Node, _value: Tensor) -> Tensor | None:
        labels, dim = self._labels[node.args[0]], node.args[1]
        self.coordinates.pin(labels[(labels != labels.narrow(dim, 0, 1)).expand(labels.shape)], "softmax runs over it")
        if labels.dim() > 2:
            self._attend(node, labels[..., 0, 0])
        return labels

    def _matrices(self, node: fx.Node, value: Tensor) -> Tensor | None:
        one, other = (self._of(given) for given in node.args[-2:])
        if min(one.dim(), other.dim()) < 3:
            return self._unknown(node, value)
        return self._whole(self._whole(one), self._whole(other)).expand(value.shape)

    def _attention(self, node: fx.Node, value: Tensor) -> Tensor | None:
        given = [self._of(part) for part in node.args[:3]]
        if len({part.shape[:-2] for part in given}) > 1 or node.kwargs.get("enable_gqa"):
            return self._unknown(node, value)
        query, key, values = (self._whole(part) for part in given)
        labels = self._whole(self._whole(query, key), values)
        self._attend(node, labels[..., 0, 0])
        return labels.expand(value.shape)

    def _whole(self, labels: Tensor, other: Tensor | None = None) -> Tensor:
        """One label ``[..., 1, 1]`` of all that is in each matrix, and of the other's beside it."""
        if other is not None:
            return self._meet(labels, other)
        one = labels.amax(dim=(-2, -1), keepdim=True)
        self._meet(labels, one)
        return one

    def _attend(self, node: fx.Node, labels: Tensor) -> None:
        owners = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
        heads = list(dict.fromkeys(labels.reshape(-1).tolist()))
        self.attentions.append(Attention(owners[-1][0], torch.tensor(heads)))


@dataclass(frozen=True)
class _Found:
    """An attention by its module's name, with the slots of each of its heads."""

    name: str
    heads: list[list[Slots]]


def remove(model: nn.Module, spec: PruneSpec, calibration: Iterable[Inputs]) -> Iterator[PruneRow]:
    """Remove heads of attentions of ``model``, which is in eval mode, in place; a row for each parameter.

    An ``nn.MultiheadAttention`` becomes a :class:`NarrowedAttention`, which is not followed another time. In other
    modules the whole number that counts their heads, an attribute with "head" in its name, is set to how many are left.
    The model then computes what it did with the heads' numbers at zero, which is proved on the calibration inputs.

    Raises:
        PruningError: there is no attention whose heads can go, torch.export cannot follow the model, a ranking leaves
            none of an attention, or the smaller model does not compute the same.
        CalibrationError: calibration is empty, or the model fails on it.
    """
    examples = capture(model, calibration).examples
    found, why = _attentions(follow(model, examples[0], HeadFollower), spec.keep)
    if not found:
        reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in why.items())
        raise PruningError(f"no head of attention of this model can be removed: {reasons or 'it has no attention'}")
    scores = {a.name: _scores(a, model, spec, examples) for a in found}
    stays = keep_share(scores, {name: torch.zeros_like(s) for name, s in scores.items()}, spec.sparsity, spec.ranking)
    left, going = {}, []
    for attention in found:
        stay = stays[attention.name][0]
        left[attention.name] = (len(stay), int(stay.sum()))
        if not stay.any():
            raise PruningError(f"sparsity {spec.sparsity} leaves none of the {len(stay)} heads of {attention.name!r}")
        going += [slots for slots, stays in zip(attention.heads, stay.tolist(), strict=True) if not stays]
    before = {name: parameter.numel() for name, parameter in model.named_parameters()}
    slots = joined(going)
    reasons = narrowed(model, slots, f"heads of attention, by {spec.by}")
    for name, reason in why.items():
        owned = [own for own, _ in model.named_parameters() if own.startswith(f"{name}.")]
        reasons = dict.fromkeys(owned, reason) | reasons
    if slots:
        cut(model, slots, examples, f"{len(going)} heads of attention", heads=_recounted(model, left))
    return accounted(model, before, reasons, "it is of no head of an attention that lost some")


def _attentions(followed: Follower, keep: tuple[str, ...]) -> tuple[list[_Found], dict[str, str]]:
    """The attentions whose heads can go, and why others stay, by their modules' names."""
    names = [attention.module for attention in followed.attentions]
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(map(repr, names)) or "none"
            raise PruningError(f"keep {pattern!r} matches no attention; the model's are: {known}")
    groups = followed.coordinates.groups()
    found, why = [], {}
    for attention in followed.attentions:
        roots = torch.tensor(list(dict.fromkeys(followed.coordinates.roots(attention.heads).tolist())))
        reason = _reason(attention, roots, followed, names, keep)
        if reason:
            why[attention.module] = reason
        else:
            found.append(_Found(attention.module, [groups[root] for root in roots.tolist()]))
    return found, why


def _reason(
    attention: Attention, roots: Tensor, followed: Follower, names: list[str], keep: tuple[str, ...]
) -> str | None:
    """Why no head of ``attention`` can go, or None."""
    pattern = next((pattern for pattern in keep if fnmatchcase(attention.module, pattern)), None)
    if pattern is not None:
        return f"keep {pattern!r}"
    if names.count(attention.module) > 1:
        return "it attends more than once"
    if len(roots) < 2:
        return "it has one head, or its heads share keys"
    if not (roots > 0).all():
        return "its heads come from no layer's outputs of their own"
    return next((why for root in roots.tolist() if (why := followed.coordinates.why(root))), None)


def _scores(attention: _Found, model: nn.Module, spec: PruneSpec, examples: tuple[Inputs, ...]) -> Tensor:
    if spec.by == "ablation":
        return ablation(model, attention.heads, examples)
    norms = [
        torch.stack([s.tensor.detach().index_select(s.axis, s.places.to(s.tensor.device)).float().norm() for s in head])
        for head in attention.heads
    ]
    return torch.stack([norm.norm() for norm in norms])[None]


def _recounted(model: nn.Module, left: dict[str, tuple[int, int]]) -> Callable[[], dict[nn.Module, int]]:
    """Sets what counts heads to those that are left, and gives those of ``nn.MultiheadAttention``."""

    def recount() -> dict[nn.Module, int]:
        found = {}
        for name, (heads, now) in left.items():
            module = model.get_submodule(name)
            if isinstance(module, nn.MultiheadAttention):
                found[module] = now
            else:
                _recount(model, name, heads, now)
        return found

    return recount


def _recount(model: nn.Module, name: str, heads: int, now: int) -> None:
    """Set what counts the heads in the module of that ``name``, or else in the nearest one around it that counts them.

    A forward that asks the tensors needs none.
    """
    parts = name.split(".")
    for end in range(len(parts), -1, -1):
        own = vars(model.get_submodule(".".join(parts[:end])))
        counts = [key for key, value in own.items() if "head" in key and type(value) is int and value == heads]
        counts = [key for key in counts if not key.endswith(("dim", "size"))]
        if counts:
            own.update(dict.fromkeys(counts, now))
            return
