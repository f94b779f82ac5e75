"""Take whole dimensions out of embedding tables, and out of everything that consumes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from recpress.errors import PruningError
from recpress.pruning.coordinates import Slots, joined
from recpress.pruning.cut import ablation, cut, narrowed
from recpress.pruning.follow import Follower, follow
from recpress.pruning.patterns import keep_share
from recpress.pruning.rows import PruneRow, accounted
from recpress.pruning.spec import PruneSpec
from recpress.quantize.capture import Inputs, capture


@dataclass(frozen=True)
class Candidate:
    """Slots that go together or not at all, of them columns of the tables of these names."""

    slots: list[Slots]
    tables: frozenset[str]


def remove(model: nn.Module, spec: PruneSpec, calibration: Iterable[Inputs]) -> Iterator[PruneRow]:
    """Remove dimensions of tables of ``model``, which is in eval mode, in place; a row for each parameter.

    Tables whose rows are added, multiplied or compared number by number lose the same dimensions; those that are only
    laid side by side lose dimensions of their own. The model then computes what it did with those columns, and all that
    is tied to them, at zero, which is proved on the calibration inputs.

    Raises:
        PruningError: no table can lose dimensions, torch.export cannot follow the model, a ranking leaves none of a
            table, or the smaller model does not compute the same.
        CalibrationError: calibration is empty, or the model fails on it.
    """
    examples = capture(model, calibration).examples
    followed = follow(model, examples[0])
    names = _names(model, followed)
    kept = _kept(names, spec.keep)
    families, why = _families(followed, names, kept)
    if not families:
        raise PruningError(f"no dimension of this model's tables can be removed: {_explained(why)}")
    scores = _scores(model, families, names, spec, examples)
    stays = keep_share(scores, {name: torch.zeros_like(s) for name, s in scores.items()}, spec.sparsity, spec.ranking)
    going = [
        candidate
        for name, family in families.items()
        for candidate, stay in zip(family, stays[name][0].tolist(), strict=True)
        if not stay
    ]
    slots = joined(candidate.slots for candidate in going)
    _check_left(slots, names, spec)
    before = {name: parameter.numel() for name, parameter in model.named_parameters()}
    why |= narrowed(model, slots, f"dimensions of tables, by {spec.by}")
    if slots:
        cut(model, slots, examples, f"{len(going)} dimensions of its tables")
    return accounted(model, before, why, "no dimension of a table is tied to it")


def _names(model: nn.Module, followed: Follower) -> dict[int, str]:
    """The name of each table's weight that was looked up, by its id."""
    return {id(p): name for name, p in model.named_parameters() if id(p) in followed.tables}


def _kept(names: dict[int, str], patterns: tuple[str, ...]) -> dict[str, str]:
    """The pattern that keeps a table, by the name of its weight."""
    found: dict[str, str] = {}
    for pattern in patterns:
        matched = [name for name in names.values() if fnmatchcase(name.removesuffix(".weight"), pattern)]
        if not matched:
            known = ", ".join(repr(name.removesuffix(".weight")) for name in names.values()) or "none"
            raise PruningError(f"keep {pattern!r} matches no table that the model looks up; there are: {known}")
        found |= dict.fromkeys(matched, pattern)
    return found


def _families(
    followed: Follower, names: dict[int, str], kept: dict[str, str]
) -> tuple[dict[str, list[Candidate]], dict[str, str]]:
    """Tables that share dimensions with what can go of them, by the name of the first; and why others stay, by name."""
    candidates, why = [], {}
    for root, slots in followed.coordinates.groups().items():
        columns = [s for s in slots if id(s.tensor) in names and s.axis == 1]
        tables = frozenset(names[id(s.tensor)] for s in columns)
        reason = next((f"keep {kept[name]!r}" for name in sorted(tables) if name in kept), None)
        reason = reason or followed.coordinates.why(root)
        whole = next((s for s in columns if len(s.places) == s.tensor.shape[1]), None)
        if whole is not None:
            size = whole.tensor.shape[1]
            reason = reason or ("it has one dimension" if size == 1 else f"its {size} dimensions are all tied together")
        if reason:
            why |= dict.fromkeys(tables, reason)
        elif tables:
            candidates.append(Candidate(slots, tables))
    found: list[tuple[set[str], list[Candidate]]] = []
    for candidate in candidates:
        same = [family for family in found if family[0] & candidate.tables]
        found = [family for family in found if not family[0] & candidate.tables]
        members = [member for family in same for member in family[1]]
        found.append((set(candidate.tables).union(*(family[0] for family in same)), [*members, candidate]))
    return {min(tables): members for tables, members in found}, why


def _scores(
    model: nn.Module,
    families: dict[str, list[Candidate]],
    tables: dict[int, str],
    spec: PruneSpec,
    examples: list[Inputs],
) -> dict[str, Tensor]:
    if spec.by == "weight-norm":
        return {name: torch.stack([_norm(c, tables) for c in family])[None] for name, family in families.items()}
    return {name: ablation(model, [c.slots for c in family], examples) for name, family in families.items()}


def _norm(candidate: Candidate, tables: dict[int, str]) -> Tensor:
    """The Euclidean norm of the columns of tables."""
    columns = [s for s in candidate.slots if s.axis == 1 and id(s.tensor) in tables]
    return torch.stack([s.tensor.detach()[:, s.places].float().norm() for s in columns]).norm()


def _check_left(slots: list[Slots], names: dict[int, str], spec: PruneSpec) -> None:
    for s in slots:
        if len(s.places) == s.tensor.shape[s.axis]:
            name = names.get(id(s.tensor), "a parameter that is tied to a table")
            raise PruningError(
                f"sparsity {spec.sparsity} leaves nothing of {name!r}, of {len(s.places)} dimensions; give less"
            )


def _explained(why: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in why.items()) or "it looks up none of its own parameters"
