"""Which columns of a model's inputs index which tables: found by running the exported graph once.

Each column of the integer inputs is fed a random 62-bit code of its own. What only moves data (select, slice,
reshape, concatenate, transpose) hands the codes on unchanged to the look-ups, and adding a constant offset, as
models with one table for all fields do, changes them by little; anything else leaves no code to recognise, and the
column stays unbounded. The look-ups themselves are answered with row 0.
"""

import contextlib

import torch
from torch import Tensor
from torch.export import ExportedProgram

_BATCH = 2
_NEAR = 1 << 40


class _Tracer(torch.fx.Interpreter):
    """Runs a graph on codes and notes, for each look-up, the codes that reach it and the table's rows."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: list[tuple[Tensor, int]] = []

    def call_function(self, target, args, kwargs):
        ops = torch.ops
        if target is ops.recpress.embedding_bag_rows.default:
            tables, indices, offsets = args[:3]
            batch = (offsets.numel() - 1) // len(tables)
            for t, table in enumerate(tables):
                self.seen.append((indices[int(offsets[t * batch]) : int(offsets[(t + 1) * batch])], table.shape[0]))
            args = (tables, torch.zeros_like(indices), *args[2:])
        elif target in (
            ops.aten.embedding.default,
            ops.aten.embedding_bag.default,
            ops.aten.embedding_bag.padding_idx,
        ):
            self.seen.append((args[1], args[0].shape[0]))
            args = (args[0], torch.zeros_like(args[1]), *args[2:])
        return super().call_function(target, args, kwargs)


def table_bounds(program: ExportedProgram, examples: tuple[Tensor, ...]) -> list[dict[int, tuple[int, int]]]:
    """For each input, the allowed range, both ends in, of each column that indexes a table.

    Args:
        program: the exported model.
        examples: tensors of the inputs' dtypes and shapes, batch first.

    Returns:
        A dict for each input, from the column of the flattened row to ``(low, high)``. A column that reaches
        several tables gets what all of them allow; one that reaches none, or through arithmetic, is left out.
    """
    generator = torch.Generator().manual_seed(0)
    codes: list[tuple[int, int, int]] = []
    inputs = []
    for position, example in enumerate(examples):
        columns = example[0].numel()
        if example.dtype not in (torch.int64, torch.int32):
            inputs.append(example[:_BATCH].clone())
            continue
        top = 62 if example.dtype == torch.int64 else 30
        drawn = torch.randint(1 << (top - 1), 1 << top, (columns,), generator=generator)
        codes += [(int(code), position, column) for column, code in enumerate(drawn)]
        inputs.append(drawn.to(example.dtype).expand(_BATCH, columns).reshape(_BATCH, *example.shape[1:]).clone())
    tracer = _Tracer(program.module())
    # Whatever a model does with nonsense for ids, what was seen until then stands.
    with torch.no_grad(), contextlib.suppress(Exception):
        tracer.run(*inputs)
    return _collect(tracer.seen, codes, len(examples))


def _collect(
    seen: list[tuple[Tensor, int]], codes: list[tuple[int, int, int]], count: int
) -> list[dict[int, tuple[int, int]]]:
    bounds: list[dict[int, tuple[int, int]]] = [{} for _ in range(count)]
    if not codes:
        return bounds
    known = torch.tensor([code for code, _, _ in codes], dtype=torch.int64)
    for values, rows in seen:
        for value in values.reshape(-1).long().unique().tolist():
            distance = value - known
            nearest = int(distance.abs().argmin())
            offset = int(distance[nearest])
            if abs(offset) >= min(_NEAR, rows + 1):
                continue
            _, position, column = codes[nearest]
            low, high = bounds[position].get(column, (-(1 << 63), (1 << 63) - 1))
            bounds[position][column] = (max(low, -offset), min(high, rows - 1 - offset))
    return bounds
