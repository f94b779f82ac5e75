"""What a recipe says of a table's ids and rows: rows that are dropped, and what answers for ids out of vocabulary.

Both stand in front of the table, kept or compressed, as one map from ids to rows; the bits of what is looked up do
not change. A row that is dropped costs 4 bytes, its entry in the map, in place of its own.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from recpress import layers
from recpress.errors import CalibrationError, RecipeError, UnsupportedLayerError
from recpress.quantize.capture import Inputs, call
from recpress.recipe import PruneRows, Recipe, TableRule
from recpress.rewrite import Row

_FLOATS, _ROWS = (nn.Embedding, nn.EmbeddingBag), (layers.RowsEmbedding, layers.RowsEmbeddingBag)
_CHUNK_ROWS = 1 << 16
"""Rows that are looked at at a time, so that a large table is never doubled in another dtype."""
Counts = Mapping[str, Tensor]


def count_ids(model: nn.Module, inputs: Iterable[Inputs]) -> dict[str, Tensor]:
    """How often ``inputs`` look up each row of each table of ``model``, for :class:`PruneRows`.

    Args:
        model: it is run on the inputs, in the mode that it is in.
        inputs: what training saw, or as much as tells rows that matter from others; each a tensor, a tuple of
            positional arguments or a mapping of keyword arguments.

    Returns:
        int64 ``[rows]`` for each ``nn.Embedding`` and ``nn.EmbeddingBag``, by each of its names.

    Raises:
        CalibrationError: there are no inputs, or the model fails on one.
    """
    tables = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, _FLOATS)}
    counts = {m: torch.zeros(m.num_embeddings, dtype=torch.int64) for m in tables.values()}

    def saw(module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = (args[0] if args else kwargs["input"]).detach().reshape(-1).cpu()
        inside = ids[(ids >= 0) & (ids < module.num_embeddings)]  # the model itself tells of others
        counts[module] += torch.bincount(inside, minlength=module.num_embeddings)

    hooks = [module.register_forward_pre_hook(saw, with_kwargs=True) for module in counts]
    count = 0
    try:
        with torch.no_grad():
            for given in inputs:
                call(model, given)
                count += 1
    except Exception as error:
        raise CalibrationError(
            f"the model fails on input {count} of those whose ids are counted: {type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise CalibrationError("there are no inputs to count the ids of; give at least one")
    return {name: counts[module] for name, module in tables.items()}


def apply_table_rules(
    model: nn.Module, rows: list[Row], recipe: Recipe, counts: Counts | None = None
) -> tuple[nn.Module, list[Row]]:
    """``model`` with what ``recipe`` says of its tables' ids and rows, and the rows of the report that tell of it.

    Args:
        model: a compressed model, of which the result shares the tensors.
        rows: its report.
        counts: int ``[rows]`` by the names of tables, as :func:`count_ids` gives them; needed where the recipe asks for
            ``min_count``.

    Raises:
        RecipeError: a pattern matches no table, or one without the row that it names, or two collide; a table that
            calibration did not reach, or all of whose rows would go.
        CalibrationError: counts are missing, or those of other tables.
        UnsupportedLayerError: a table to prune holds NaN or infinity.
    """
    if not recipe.oov and not recipe.prune_rows:
        return model, rows
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) in _FLOATS + _ROWS:
            names[module].append(name)
    rules = recipe.table_rules({name: m.num_embeddings for m, aliases in names.items() for name in aliases})
    reports = {row.names[0]: row for row in rows}
    mapped: dict[nn.Module, nn.Module] = {}
    for module, aliases in names.items():
        rule = _rule(aliases, rules)
        if rule is not None:
            table = mapped[module] = _mapped(model, module, aliases, rule, counts, reports)
            if table is module:
                del mapped[module]
    return _with(model, mapped), [reports[row.names[0]] for row in rows]


def _rule(aliases: list[str], rules: dict[str, TableRule]) -> TableRule | None:
    """What is asked of a table, by whichever of its names."""
    found = [rules[name] for name in aliases if name in rules]
    if any(rule != found[0] for rule in found):
        raise RecipeError(
            f"{', '.join(aliases)} are names of one table, and the recipe says different things of them; match them "
            "alike"
        )
    return found[0] if found else None


def _mapped(
    model: nn.Module,
    table: nn.Module,
    aliases: list[str],
    rule: TableRule,
    counts: Counts | None,
    reports: dict[str, Row],
) -> nn.Module:
    """What stands in place of ``table``, whose row in ``reports`` is brought up to date."""
    name = aliases[0]
    row = reports[name]
    if row.status == "unreachable":
        raise RecipeError(
            f"the recipe has a rule for the ids or rows of table {name!r}, which no calibration input ran through; "
            "take the rule away, or give inputs that reach it"
        )
    fewer, remap = table, None
    if rule.prune is not None:
        pruned = _pruned(model, table, aliases, rule, counts)
        if isinstance(pruned, str):
            row = replace(row, reason=f"{row.reason}; not pruned: {pruned}")
        else:
            fewer, remap = pruned
            dropped = table.num_embeddings - fewer.num_embeddings + 1
            how = f"recipe, prune_rows {rule.pattern!r}"
            row = replace(
                row,
                status="compressed",
                scheme=row.scheme if type(table) in _ROWS else f"{row.scheme} rows",
                reason=how if row.status == "kept" else f"{row.reason}; {how}",
                rows_dropped=dropped,
                dropped_answer=rule.prune.dropped,
                bytes_after=sum(t.nbytes for t in (*fewer.parameters(), *fewer.buffers(), remap)),
            )
    reports[name] = replace(row, oov_row=rule.oov_row if rule.oov_row >= 0 else None)
    if remap is None and rule.oov_row < 0:
        return table
    return layers.MappedTable(fewer, table.num_embeddings, rule.oov_row, remap)


def _pruned(
    model: nn.Module, table: nn.Module, aliases: list[str], rule: TableRule, counts: Counts | None
) -> tuple[nn.Module, Tensor] | str:
    """The table without the rows that go and the map int32 ``[rows]`` to it, or why it is left as it is."""
    if reason := _refusal(model, table):
        return reason
    keep = _kept(table, aliases, rule, counts)
    count = len(keep)
    dropped = count - int(keep.sum())
    if dropped == count:
        raise RecipeError(
            f"prune_rows {rule.pattern!r} would drop all {count} rows of table {aliases[0]!r}; ask for less"
        )
    stored = next(iter((*table.parameters(), *table.buffers())))
    if (dropped - 1) * (stored.nbytes // count) <= 4 * count:
        return f"{dropped} of its {count} rows would go, which saves less than the map from ids to rows takes"
    remap = torch.where(keep, keep.cumsum(0) - 1, count - dropped).to(stored.device, torch.int32)
    return _fewer(table, keep, _answer(table, aliases[0], ~keep, rule.prune), remap), remap


def _refusal(model: nn.Module, table: nn.Module) -> str | None:
    """Why the rows of a table cannot go, or None."""
    if table._forward_hooks or table._forward_pre_hooks:
        return "it has forward hooks, which would be lost"
    if getattr(table, "max_norm", None) is not None:
        return "max_norm rescales its rows while the model runs"
    own = {id(t) for t in (*table.parameters(), *table.buffers())}
    for name, module in model.named_modules():
        if module is not table and any(id(t) in own for t in (*module._parameters.values(), *module._buffers.values())):
            return f"its weights are shared with {name}"
    return None


def _kept(table: nn.Module, aliases: list[str], rule: TableRule, counts: Counts | None) -> Tensor:
    """Which rows stay, bool ``[rows]``."""
    prune, count = rule.prune, table.num_embeddings
    keep = torch.ones(count, dtype=torch.bool)
    if prune.min_count:
        keep &= _counts_of(aliases, count, rule, counts) >= prune.min_count
    if prune.min_norm:
        norms = [torch.linalg.vector_norm(values.double(), dim=1) for values in _values(table, aliases[0])]
        keep &= torch.cat(norms) >= prune.min_norm
    for row in (rule.oov_row, -1 if table.padding_idx is None else table.padding_idx):
        if row >= 0:
            keep[row] = True
    return keep


def _counts_of(aliases: list[str], count: int, rule: TableRule, counts: Counts | None) -> Tensor:
    given = next((counts[name] for name in aliases if name in counts), None) if counts is not None else None
    if given is None:
        raise CalibrationError(
            f"prune_rows {rule.pattern!r} keeps rows of table {aliases[0]!r} by how often they were looked up, and "
            "counts do not tell; give counts=recpress.count_ids(model, inputs), the inputs being what training saw"
        )
    if given.shape != (count,) or given.is_floating_point() or given.dtype == torch.bool or bool((given < 0).any()):
        raise CalibrationError(
            f"the counts of table {aliases[0]!r} are {given.dtype} of shape {tuple(given.shape)}; give whole numbers, "
            f"at least 0, of shape [{count}], one for each row"
        )
    return given.cpu()


def _values(table: nn.Module, name: str) -> Iterator[Tensor]:
    """The rows of a table as it answers them, float32, some at a time.

    Raises:
        UnsupportedLayerError: NaN or infinity among them.
    """
    for begin in range(0, table.num_embeddings, _CHUNK_ROWS):
        rows = slice(begin, begin + _CHUNK_ROWS)
        values = (table.values(rows) if type(table) in _ROWS else table.weight.detach()[rows].float()).cpu()
        bad = ~torch.isfinite(values).all(dim=1)
        if bad.any():
            raise UnsupportedLayerError(
                f"row {begin + int(bad.nonzero()[0])} of table {name!r}, which the recipe prunes, holds NaN or "
                "infinity; find where training diverged, or take the table out of prune_rows"
            )
        yield values


def _answer(table: nn.Module, name: str, dropped: Tensor, prune: PruneRows) -> Tensor:
    """What the dropped rows answer, float32 ``[1, dim]``."""
    total = torch.zeros(table.embedding_dim, dtype=torch.float64)
    if prune.dropped == "mean":
        for begin, values in zip(range(0, len(dropped), _CHUNK_ROWS), _values(table, name), strict=True):
            total += values[dropped[begin : begin + len(values)]].double().sum(dim=0)
    return (total / dropped.sum()).float()[None]


def _fewer(table: nn.Module, keep: Tensor, answer: Tensor, remap: Tensor) -> nn.Module:
    """``table`` with the rows that stay, in their order, and ``answer`` behind them."""
    if type(table) in _ROWS:
        return table.fewer(keep, answer)
    weight = torch.cat([table.weight.detach()[keep], answer.to(table.weight)])
    new = copy.deepcopy(table, {id(table.weight): nn.Parameter(weight, requires_grad=table.weight.requires_grad)})
    new.num_embeddings = len(weight)
    new.padding_idx = None if table.padding_idx is None else int(remap[table.padding_idx])
    return new


def _with(model: nn.Module, mapped: dict[nn.Module, nn.Module]) -> nn.Module:
    """``model`` on its own tensors, with the modules of ``mapped`` replaced wherever they are held."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors | {id(module): new for module, new in mapped.items()})
