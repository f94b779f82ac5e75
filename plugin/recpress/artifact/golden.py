"""Golden rows: made inputs whose scores travel with the model, so that a server can prove itself before it serves.

The rows are drawn a column at a time within the manifest's bounds, never taken from users.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from recpress.artifact import ragged
from recpress.artifact.lower_linears import LINEARS
from recpress.artifact.manifest import DTYPES, Golden, InputSpec, RaggedSpec
from recpress.errors import ExportError
from recpress_kernels.formats.rows import split_rows_int8

ROWS = 64
BATCHES = (1, 7, ROWS)
OUTLIERS = 8
"""One row of this many may exceed the tight bound."""
STEP = 2.0**-10
"""A step of a float16 scale, relative: what a change of a weight's scales must at least be to be seen."""

_OOV_ROWS = 8
"""One row of this many has ids out of vocabulary, where they are answered."""
_MARGIN = 4.0
_FLOOR = 1e-6
_NUDGES = 8
_ULPS = 4
Score = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


def draw_rows(
    inputs: tuple[InputSpec, ...], bags: RaggedSpec | None = None, *, rows: int = ROWS, seed: int = 0
) -> ragged.Rows:
    """``rows`` made rows for each input, uniform in each column's range; the first two are its ends.

    Of a column that takes any id one row in eight has one from outside, the ends of its dtype among them. With bags
    last their lengths and values.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = tuple(_draw(spec, rows, generator) for spec in inputs)
    return drawn if bags is None else drawn + ragged.draw(bags, rows, generator)


def _draw(spec: InputSpec, rows: int, generator: torch.Generator) -> Tensor:
    low = torch.tensor([_pick(t, x) for t, x in zip(spec.table_low, spec.low, strict=True)], dtype=torch.float64)
    high = torch.tensor([_pick(t, x) for t, x in zip(spec.table_high, spec.high, strict=True)], dtype=torch.float64)
    unit = torch.rand(rows, low.numel(), generator=generator, dtype=torch.float64)
    if DTYPES[spec.dtype].is_floating_point:
        drawn = low + (high - low) * unit
    else:
        drawn = torch.minimum(low + torch.floor((high - low + 1) * unit), high)
    drawn[0], drawn[1] = low, high
    drawn = drawn.to(DTYPES[spec.dtype])
    for column, any_id in enumerate(spec.any_id):
        if any_id:
            ends = torch.iinfo(drawn.dtype)
            outside = torch.tensor([spec.table_high[column] + 1, ends.min, spec.table_low[column] - 1, ends.max])
            for i, row in enumerate(range(2, rows, _OOV_ROWS)):
                drawn[row, column] = outside[(i + column) % len(outside)]
    return drawn.reshape(rows, *spec.shape)


def _pick(table: int | None, example: float) -> float:
    return example if table is None else float(table)


def in_batches(score: Score, inputs: ragged.Rows, batch: int, bags: RaggedSpec | None = None) -> tuple[Tensor, ...]:
    """Scores of all rows, computed ``batch`` rows at a time."""
    parts = [score(ragged.part(bags, inputs, slice(i, i + batch))) for i in range(0, inputs[0].shape[0], batch)]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


@dataclass(frozen=True)
class Verdict:
    """How scores compare with expected ones: ``worst`` difference, and ``beyond``, the rows that exceed ``atol``."""

    rows: int
    worst: float
    beyond: int
    ok: bool

    def __str__(self) -> str:
        return f"{self.beyond} of {self.rows} rows beyond the tolerance, by up to {self.worst:.3g}"


def judge(scores: tuple[Tensor, ...], expected: tuple[Tensor, ...], golden: Golden) -> Verdict:
    """Whether ``scores`` are ``expected``, both ``[rows, ...]`` by output, within the bounds of ``golden``."""
    return judge_rows(deviations(scores, expected), golden)


def judge_rows(rows: Tensor, golden: Golden) -> Verdict:
    """The verdict on the largest difference of each row, ``[rows]``, as :func:`deviations` gives them."""
    worst = float(rows.max()) if rows.numel() else 0.0
    beyond = int((rows > golden.atol).sum())
    return Verdict(len(rows), worst, beyond, worst <= golden.outlier_atol and beyond <= len(rows) // OUTLIERS)


def deviations(scores: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Tensor:
    """The largest absolute difference of each row over all outputs, float64 ``[rows]``.

    Infinity where a value is not finite, or where the form of an output differs.
    """
    worst = torch.zeros(expected[0].shape[0], dtype=torch.float64)
    for got, want in zip(scores, expected, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            return torch.full_like(worst, torch.inf)
        difference = (got.double() - want.double()).abs().reshape(len(worst), -1)
        difference = torch.where(torch.isfinite(difference), difference, torch.inf)
        worst = torch.maximum(worst, difference.amax(dim=1))
    return worst


def measure(
    module: torch.fx.GraphModule, inputs: ragged.Rows, bags: RaggedSpec | None = None
) -> tuple[tuple[Tensor, ...], Golden]:
    """Score the golden rows and set the tolerance from how far equal computations lie apart.

    Float operations differ in their last bits by batch size and by device. Most rows follow with their last bits;
    but now and then such a difference moves an activation over a rounding boundary to the next of its 127 steps,
    and that row's score moves a thousand times as far. A changed weight, in turn, moves most rows. So there are
    two bounds. The rows are scored in batches of 1, 7 and 64, and again with the inputs of every int8 layer moved
    by a few units in the last place: ``outlier_atol`` is four times the largest difference of any row, and
    ``atol`` four times the largest when the most different eighth of the rows is left out. Then the scales of
    each weight are changed by 2^-10, and weights of which that is not noticed are named in ``blind``.

    Args:
        module: the exported graph; its weights are changed on the way and put back.
        inputs: the golden rows.
        bags: the model's bags, whose lengths and values come last in the rows.

    Raises:
        ExportError: a score is not finite.
    """

    def score(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(module(*ragged.arguments(bags, rows))))

    expected = in_batches(score, inputs, ROWS, bags)
    if not torch.isfinite(deviations(expected, expected)).all():
        raise ExportError("the model's scores of made rows within its inputs' range are not finite; check its weights")
    equal = [in_batches(score, inputs, batch, bags) for batch in BATCHES]
    whole = ragged.arguments(bags, inputs)
    equal += [tuple(tree_leaves(_Nudged(module, seed).run(*whole))) for seed in range(_NUDGES)]
    spreads = [deviations(other, expected).sort().values for other in equal]
    floor = _FLOOR * max(1.0, *(float(t.double().abs().max()) for t in expected))
    atol = max(floor, _MARGIN * max(float(s[ROWS - ROWS // OUTLIERS - 1]) for s in spreads))
    outlier_atol = max(atol, _MARGIN * max(float(s[-1]) for s in spreads))
    golden = Golden(rows=ROWS, atol=atol, outlier_atol=outlier_atol, blind=())
    blind = tuple(name for name in _change_scales(module) if judge(score(inputs), expected, golden).ok)
    return expected, golden.model_copy(update={"blind": blind})


class _Nudged(torch.fx.Interpreter):
    """Runs a graph with the inputs of its compressed layers moved by a few units in the last place."""

    def __init__(self, module: torch.fx.GraphModule, seed: int) -> None:
        super().__init__(module)
        self.generator = torch.Generator().manual_seed(seed)

    def call_function(self, target, args, kwargs):
        if target in LINEARS:
            x = args[0]
            ulps = torch.randint(-_ULPS, _ULPS + 1, x.shape, generator=self.generator)
            args = ((x * (1 + ulps * torch.finfo(x.dtype).eps)).to(x.dtype), *args[1:])
        return super().call_function(target, args, kwargs)


def _change_scales(module: torch.fx.GraphModule) -> Iterator[str]:
    """Name each compressed weight in turn, its scales larger by 2^-10 while the caller holds the name."""
    for name, table in _compressed_weights(module).items():
        tensor = module.get_buffer(name)
        saved = tensor.clone()
        if table:
            _, scale, _ = split_rows_int8(tensor)
            tensor[:, -4:-2] = (scale * (1 + STEP))[:, None].view(torch.uint8)
        else:
            tensor.mul_(1 + STEP)
        try:
            yield name
        finally:
            tensor.copy_(saved)


def _compressed_weights(module: torch.fx.GraphModule) -> dict[str, bool]:
    """Names of the compressed layers' scales and of the quantised tables in the graph, and whether it is a table."""
    found: dict[str, bool] = {}
    for node in module.graph.nodes:
        if node.target in LINEARS:
            found[node.args[LINEARS[node.target]].target] = False
        elif node.target is torch.ops.recpress.embedding_bag_rows.default:
            found.update((table.target, True) for table in node.args[0])
    return found
