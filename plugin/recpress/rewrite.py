"""Walk a model's modules, replace those that the recipe compresses, and account for every parameter."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from recpress import layers
from recpress.errors import CalibrationError, KernelInputError, UnsupportedLayerError
from recpress.pruning.rows import PruneRow
from recpress.quantize import adaround, bias, smooth
from recpress.quantize.capture import Captured
from recpress.quantize.observers import calibrate
from recpress.quantize.shares import error_shares
from recpress.recipe import Recipe, Scheme
from recpress_kernels.formats.int8 import QMAX

Status = Literal["compressed", "kept", "unreachable"]
_CHUNK_ROWS = 1 << 11
"""Rows of a table that are compared at a time: they stay in the cache, and take a tenth of the time of 65,536."""
_KINDS = {nn.Linear: "linear", nn.Embedding: "embedding", nn.EmbeddingBag: "embedding"}


@dataclass(frozen=True)
class Row:
    """What became of one module that owns parameters or buffers.

    ``names`` are all names the module has in the model; ``parameters`` counts elements and ``bytes_before``
    and ``bytes_after`` the parameters and buffers, a tensor that several modules share at the first of them.
    ``sqnr_db`` is the signal of a compressed layer over its error, 10 log10 of the ratio of mean squares: of a table's
    values, and of a linear layer's outputs on its calibration inputs, None without them. ``error_share`` is the
    share of the model's error that comes from this layer (quantize/shares.py), None without calibration inputs.

    ``pruned`` says what pruning took of its parameters, empty where nothing; ``parameters`` and ``bytes_before`` are of
    before.

    Of tables: ``oov_row`` is the row that answers for ids out of vocabulary, None where they are an error;
    ``rows_dropped`` rows went, and one stands for them all, their mean or zero as ``dropped_answer`` says.
    """

    names: tuple[str, ...]
    layer: str
    status: Status
    scheme: str
    reason: str
    parameters: int
    bytes_before: int
    bytes_after: int
    sqnr_db: float | None = None
    error_share: float | None = None
    oov_row: int | None = None
    rows_dropped: int = 0
    dropped_answer: Literal["", "mean", "zero"] = ""
    pruned: str = ""


@dataclass(frozen=True)
class Judged:
    """What a recipe makes of a model: each module's names, what becomes of it and why, and the schemes by name."""

    names: dict[nn.Module, tuple[str, ...]]
    verdicts: dict[nn.Module, tuple[Status, str]]
    schemes: dict[str, tuple[Scheme, str]]

    def compressed(self) -> list[tuple[nn.Module, str, Scheme]]:
        """The modules to be compressed, each with its first name and its scheme."""
        found = [(m, self.names[m][0]) for m, (status, _) in self.verdicts.items() if status == "compressed"]
        return [(module, name, self.schemes[name][0]) for module, name in found]


def rewrite(model: nn.Module, recipe: Recipe, *, captured: Captured | None = None) -> tuple[nn.Module, list[Row]]:
    """A compressed copy of ``model`` in eval mode, and a row for each module that owns tensors.

    Args:
        model: left as it is; no tensor of the copy is shared with it.
        recipe: what to do.
        captured: what calibration ran through, or None where there was none. A layer that it did not reach is left
            alone.

    Raises:
        RecipeError: an override matches nothing, or two collide.
        CalibrationError: the recipe asks for what is found on calibration inputs, and nothing was captured.
        UnsupportedLayerError: the model cannot be copied, or a layer's weights cannot be quantised.
    """
    judged = judge(model, recipe, captured)
    replaced = {
        id(module): _compress(module, name, scheme, recipe, captured) for module, name, scheme in judged.compressed()
    }
    shares = {} if captured is None else error_shares(model, replaced, captured.examples)
    return copy_with(model, replaced), account(judged, replaced, captured, shares)


def judge(model: nn.Module, recipe: Recipe, captured: Captured | None) -> Judged:
    """What ``recipe`` makes of each module of ``model``; arguments and errors as :func:`rewrite` has them."""
    if captured is None:
        _need_no_calibration(recipe)
    names = _names(model)
    schemes = recipe.schemes(
        {name: _KINDS[type(m)] for m, aliases in names.items() if type(m) in _KINDS for name in aliases}
    )
    owners = _owners(names)
    verdicts = {module: _verdict(module, aliases, schemes, owners, captured) for module, aliases in names.items()}
    return Judged(names, verdicts, schemes)


def _need_no_calibration(recipe: Recipe) -> None:
    asked = {
        "activations: static": recipe.activations == "static",
        "bias_correction: true": recipe.bias_correction is True,
        "rounding: adaround": recipe.rounding == "adaround",
    }
    if wanted := [field for field, is_asked in asked.items() if is_asked]:
        raise CalibrationError(
            f"recipe {recipe.name} has {', '.join(wanted)}, which is found on calibration inputs; give "
            "calibration=[...], or leave it away"
        )


def _names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every module with all names it is reached by, in the model's order."""
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    return {module: tuple(aliases) for module, aliases in names.items()}


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for tensors in (module._parameters, module._buffers):
        yield from ((name, t) for name, t in tensors.items() if t is not None)


def _owners(names: dict[nn.Module, tuple[str, ...]]) -> dict[int, list[str]]:
    """The full names under which each tensor hangs in different modules, by id."""
    owners: dict[int, list[str]] = defaultdict(list)
    for module, aliases in names.items():
        for name, tensor in _tensors(module):
            owners[id(tensor)].append(f"{aliases[0]}.{name}".lstrip("."))
    return owners


def _verdict(
    module: nn.Module,
    aliases: tuple[str, ...],
    schemes: dict[str, tuple[str, str]],
    owners: dict[int, list[str]],
    captured: Captured | None,
) -> tuple[Status, str]:
    """What to do with a module, and why."""
    if isinstance(module, layers.COMPRESSED):
        return "kept", "it is compressed already"
    if type(module) not in _KINDS:
        base = next((kind.__name__ for kind in _KINDS if isinstance(module, kind)), None)
        note = f", a subclass of {base} whose forward may differ" if base else ""
        return "kept", f"{type(module).__name__} has no compressed form{note}"
    asked = {schemes[name] for name in aliases}
    keep = next((source for scheme, source in sorted(asked) if scheme == "keep"), None)
    if keep:
        return "kept", keep
    if len({scheme for scheme, _ in asked}) > 1:
        wanted = " and ".join(f"{scheme} ({source})" for scheme, source in sorted(asked))
        return "kept", f"its names {', '.join(aliases)} are asked to be {wanted}"
    shared = sorted({other for _, t in _tensors(module) for other in owners[id(t)]} - _own_names(module, aliases))
    if shared:
        return "kept", f"its weights are shared with {', '.join(shared)}; compressing them would break the tie"
    if captured is not None and id(module) not in captured.reached:
        return "unreachable", "no calibration input ran through it"
    refusal = layers.refusal(module, next(scheme for scheme, _ in asked))
    return ("kept", refusal) if refusal else ("compressed", next(source for _, source in asked))


def _own_names(module: nn.Module, aliases: tuple[str, ...]) -> set[str]:
    return {f"{aliases[0]}.{name}".lstrip(".") for name, _ in _tensors(module)}


def inputs_of(module: nn.Module, scheme: Scheme, recipe: Recipe, captured: Captured | None) -> layers.Inputs | None:
    """What calibration tells of an int8 layer's inputs: what evens out their columns, and their range."""
    if captured is None or scheme not in ("int8", "int8-24") or id(module) not in captured.inputs:
        return None
    x, observer = captured.inputs[id(module)], recipe.observer if recipe.activations == "static" else None
    found = smooth.search(module, x, observer) if recipe.smooth else None
    multiplier = None if found is None else found.multiplier
    # Zeros alone tell no range: each row then has its own.
    known = observer is not None and bool((x != 0).any())
    pair = calibrate(x if multiplier is None else x * multiplier, observer) if known else ()
    return layers.Inputs(multiplier, *pair)


def _sqnr_db(module: nn.Module, new: nn.Module | None, captured: Captured | None) -> float | None:
    if new is not None and _KINDS[type(module)] == "embedding":
        return _table_sqnr_db(module.weight.detach(), new)
    if captured is None or new is None or id(module) not in captured.inputs:
        return None
    inputs = captured.inputs[id(module)]
    with torch.no_grad():
        truth = module(inputs).double()
        error = (new(inputs).double() - truth).square().mean()
    return float(10 * torch.log10(truth.square().mean() / error)) if error > 0 else None


def _table_sqnr_db(table: Tensor, new: nn.Module) -> float | None:
    signal = error = torch.zeros((), dtype=torch.float64)
    for begin in range(0, len(table), _CHUNK_ROWS):
        rows = slice(begin, begin + _CHUNK_ROWS)
        truth = table[rows].double()
        signal = signal + truth.square().sum()
        error = error + (new.values(rows).double() - truth).square().sum()
    return float(10 * torch.log10(signal / error)) if error > 0 else None


def _compress(module: nn.Module, name: str, scheme: Scheme, recipe: Recipe, captured: Captured | None) -> nn.Module:
    x = None if captured is None else captured.inputs.get(id(module))
    try:
        inputs = inputs_of(module, scheme, recipe, captured)
        rounding = None if x is None or recipe.rounding == "nearest" else _rounding(x, inputs)
        new = layers.compressed(module, scheme, inputs, rounding=rounding, search=recipe.embedding_search)
    except KernelInputError as error:
        raise UnsupportedLayerError(
            f"layer {name!r} ({type(module).__name__}): {error}; or keep it by an override {{{name!r}: 'keep'}}"
        ) from None
    if x is not None and recipe.bias_correction:
        new.bias = bias.corrected(new, module, x)
    return new


def _rounding(x: Tensor, inputs: layers.Inputs | None) -> layers.Rounding:
    seen = x if inputs is None or inputs.multiplier is None else x * inputs.multiplier
    return lambda weight, scale: adaround.learn(weight, scale[:, None], QMAX, seen)


def account(
    judged: Judged,
    replaced: dict[int, nn.Module],
    captured: Captured | None,
    shares: Mapping[int, float] = MappingProxyType({}),
) -> list[Row]:
    """A row for each module that owns tensors, with what stands in its place in ``replaced``, by its id.

    ``shares`` are those of the model's error, by id as well.
    """
    rows = []
    for module, (parameters, before) in sizes(judged.names).items():
        own, aliases = list(_tensors(module)), judged.names[module]
        status, reason = judged.verdicts[module]
        new = replaced.get(id(module))
        after = before if new is None else sum(t.nbytes for _, t in _tensors(new))
        scheme = new.scheme if new is not None else str(own[0][1].dtype).removeprefix("torch.")
        errors = _sqnr_db(module, new, captured), shares.get(id(module))
        rows.append(Row(aliases, type(module).__name__, status, scheme, reason, parameters, before, after, *errors))
    return rows


def before_pruning(rows: Iterable[Row], model: nn.Module, pruning: Iterable[PruneRow]) -> list[Row]:
    """``rows`` of what pruning left of ``model``, with the sizes that its modules had and what was taken of each."""
    had = sizes(_names(model))
    own = {name: had[module] for name, module in model.named_modules(remove_duplicate=False) if module in had}
    sized = []
    for row in rows:
        parameters, before = own[row.names[0]]
        sized.append(replace(row, parameters=parameters, bytes_before=before))
    return with_taken(sized, pruning)


def with_taken(rows: Iterable[Row], pruning: Iterable[PruneRow]) -> list[Row]:
    """``rows``, which have the sizes of before, with what pruning took of each."""
    taken: dict[str, list[PruneRow]] = defaultdict(list)
    for row in pruning:
        if row.status == "pruned":
            taken[row.name.rpartition(".")[0]].append(row)
    of = lambda row: [r for name in row.names for r in taken[name]]  # noqa: E731
    return [replace(row, pruned=_taken(of(row), row.parameters)) for row in rows]


def _taken(pruned: list[PruneRow], parameters: int) -> str:
    """What went of a module of that many parameters, empty where nothing did."""
    removed, zeros = sum(row.before - row.after for row in pruned), sum(row.zeros for row in pruned)
    counts = ((removed, "removed"), (zeros, "zero"))
    return ", ".join(f"{count:,} of {parameters:,} parameters {how}" for count, how in counts if count)


def sizes(modules: Iterable[nn.Module]) -> dict[nn.Module, tuple[int, int]]:
    """Parameters and bytes of each module that owns tensors; one that several share is counted at the first of them."""
    seen: set[int] = set()
    found = {}
    for module in modules:
        own = list(_tensors(module))
        first = [t for _, t in own if not (id(t) in seen or seen.add(id(t)))]
        if own:
            parameters = sum(t.numel() for t in first if isinstance(t, nn.Parameter))
            found[module] = (parameters, sum(t.nbytes for t in first))
    return found


def copy_with(model: nn.Module, replaced: dict[int, nn.Module]) -> nn.Module:
    """A deep copy of ``model`` in which the modules of ``replaced``, by id, stand replaced wherever they are held.

    deepcopy asks its memo first, so the replaced modules' weights are never copied.
    """
    try:
        new = copy.deepcopy(model, dict(replaced))
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be copied ({error}); take out what copy.deepcopy refuses"
        ) from None
    return new.eval()
