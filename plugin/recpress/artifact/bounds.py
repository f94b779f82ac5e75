"""Which columns of a model's inputs index which tables: found by running the exported graph once.

Each column of the integer inputs is fed a random 62-bit code of its own. What only moves data (select, slice,
reshape, concatenate, transpose) hands the codes on unchanged to the look-ups, and adding a constant offset, as
models with one table for all fields do, changes them by little; anything else leaves no code to recognise, and the
column stays unbounded. The look-ups themselves are answered with row 0. What goes through map_ids is noted there, as
the table's range, and that any id will do where the map has a row for those outside.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram

BATCH = 2
"""Rows that the graph is run on."""
_NEAR = 1 << 40


class _Tracer(torch.fx.Interpreter):
    """Runs a graph on codes and notes, for each look-up, the codes that reach it, its rows, and if it takes any id."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: list[tuple[Tensor, int, bool]] = []

    def call_function(self, target, args, kwargs):
        ops = torch.ops
        if target is ops.recpress.map_ids.default:
            ids, rows, *rest = args
            oov_row = rest[0] if rest else kwargs.get("oov_row", -1)
            self.seen.append((ids, rows, oov_row >= 0))
            return torch.zeros_like(ids)
        if target is ops.recpress.embedding_bag_rows.default:
            tables, indices, offsets = args[:3]
            batch = (offsets.numel() - 1) // len(tables)
            for t, table in enumerate(tables):
                self.seen.append(
                    (indices[int(offsets[t * batch]) : int(offsets[(t + 1) * batch])], table.shape[0], False)
                )
            args = (tables, torch.zeros_like(indices), *args[2:])
        elif target in (
            ops.aten.embedding.default,
            ops.aten.embedding_bag.default,
            ops.aten.embedding_bag.padding_idx,
        ):
            self.seen.append((args[1], args[0].shape[0], False))
            args = (args[0], torch.zeros_like(args[1]), *args[2:])
        return super().call_function(target, args, kwargs)


@dataclass(frozen=True)
class Bound:
    """The range, both ends in, of a column that indexes tables; ``any_id``: what lies outside is answered too."""

    low: int
    high: int
    any_id: bool = False


def table_bounds(
    program: ExportedProgram, examples: tuple[Tensor, ...], given: Mapping[int, Tensor] | None = None
) -> list[dict[int, Bound]]:
    """For each input, the range of each column that indexes a table.

    Args:
        program: the exported model.
        examples: tensors of the inputs' dtypes and shapes, batch first.
        given: what to run it on, by position, ``[BATCH, ...]``, where that is no matter of codes.

    Returns:
        A dict for each input, from the column of the flattened row. A column that reaches several tables gets what
        all of them have, of those that do not take any id where there are some; one that reaches none, or through
        arithmetic, is left out.
    """
    generator = torch.Generator().manual_seed(0)
    codes: list[tuple[int, int, int]] = []
    inputs = []
    for position, example in enumerate(examples):
        columns = example.shape[1:].numel()
        if given is not None and position in given:
            inputs.append(given[position].to(example.dtype))
            continue
        if example.dtype not in (torch.int64, torch.int32):
            inputs.append(example[:BATCH].clone())
            continue
        top = 62 if example.dtype == torch.int64 else 30
        drawn = torch.randint(1 << (top - 1), 1 << top, (columns,), generator=generator)
        codes += [(int(code), position, column) for column, code in enumerate(drawn)]
        inputs.append(drawn.to(example.dtype).expand(BATCH, columns).reshape(BATCH, *example.shape[1:]).clone())
    tracer = _Tracer(program.module())
    # Whatever a model does with nonsense for ids, what was seen until then stands.
    with torch.no_grad(), contextlib.suppress(Exception):
        tracer.run(*inputs)
    return _collect(tracer.seen, codes, len(examples))


def _collect(
    seen: list[tuple[Tensor, int, bool]], codes: list[tuple[int, int, int]], count: int
) -> list[dict[int, Bound]]:
    bounds: list[dict[int, Bound]] = [{} for _ in range(count)]
    if not codes:
        return bounds
    known = torch.tensor([code for code, _, _ in codes], dtype=torch.int64)
    for values, rows, any_id in sorted(seen, key=lambda look_up: look_up[2]):
        for value in values.reshape(-1).long().unique().tolist():
            distance = value - known
            nearest = int(distance.abs().argmin())
            offset = int(distance[nearest])
            if abs(offset) >= min(_NEAR, rows + 1):
                continue
            _, position, column = codes[nearest]
            found, before = Bound(-offset, rows - 1 - offset, any_id), bounds[position].get(column)
            if before is None or before.any_id == any_id:
                bounds[position][column] = found if before is None else _both(before, found)
    return bounds


def _both(a: Bound, b: Bound) -> Bound:
    return Bound(max(a.low, b.low), min(a.high, b.high), a.any_id)
