"""The ways to compress a model that the benchmark of quality compares, and the least bytes that their formats allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from recpress.bench.promises import INT4, INT8, PRUNED, Bounds
from recpress.errors import TrainingError
from recpress.finetuning import finetune
from recpress.layers import Int8Linear
from recpress.pipeline import Report, compress
from recpress.pruning.rows import PruneRow
from recpress.pruning.spec import PruneSpec
from recpress.quantize.cluster import LEVELS, stored_bytes
from recpress.recipe import Recipe, as_recipe
from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.formats.rows import row_bytes

SCALE_BYTES = 4
KINDS = {nn.Linear: "linear", nn.Embedding: "embedding", nn.EmbeddingBag: "embedding"}
OVER_LEAST = 1.02
"""For what calibration adds, and layers that are kept."""


class Inputs(Protocol):
    """Where a variant takes rows from."""

    def calibration(self) -> list[tuple[Tensor, ...]]:
        """Inputs like those that the model will score."""

    def tuning(self, steps: int | None) -> dict[str, object]:
        """``train``, ``valid`` and what else recpress.finetune is to be given, to distil a model of these rows.

        ``steps``: of the optimiser, at most; None: as many as suit the rows.
        """


@dataclass(frozen=True)
class Made:
    """A compressed model, what the pipeline reports of it, the optimiser's steps that it took, what was pruned, and
    the original after the same training, where that was asked for."""

    model: nn.Module
    report: Report
    steps: int = 0
    pruning: tuple[PruneRow, ...] = ()
    control: nn.Module | None = None


@dataclass(frozen=True)
class Variant:
    """A ``recipe``, with calibration inputs or without, its weights of ``weight_bits``, and what is promised of it.

    ``tuned``: distilled while it is compressed, within the share of the original's steps that ``bounds`` promise, if
    they do; ``gradual``: pruned meanwhile; with a ``control``, the original distilled so. ``after``: the variant on
    whose model the recipe is applied. ``against``: the variant with which it is compared besides the original.
    """

    recipe: Recipe
    calibrated: bool = True
    weight_bits: int = 8
    tuned: bool = False
    gradual: bool = False
    control: bool = False
    after: str = ""
    against: str = ""
    bounds: Bounds = INT8

    def apply(self, model: nn.Module, rows: Inputs, steps: int, earlier: Mapping[str, Made]) -> Made:
        """``model``, whose training took ``steps``, compressed so; it is not changed. ``earlier``: what was made of it.

        Raises:
            PruningError: the recipe's pruning does not fit the model.
            TrainingError: the share of ``steps`` that is promised is none.
        """
        calibration = rows.calibration() if self.calibrated else None
        if self.tuned:
            options = rows.tuning(_budget(steps, self.bounds.steps) if self.bounds.steps else None)
            options |= {"calibration": calibration, "control": self.control, "progress": False}
            options |= {"gradual": self.gradual}
            made = finetune(model, self.recipe, **options)
            return Made(made.model, made.report, made.report.training.run.steps, made.report.pruning, made.control)
        first = earlier[self.after] if self.after else Made(model, None)
        made = compress(first.model, self.recipe, calibration=calibration)
        if self.weight_bits == 7:
            _weights_of_7_bits(model, made.model)
        return Made(made.model, made.report, first.steps, first.pruning or made.report.pruning)


_STORED = replace(PRUNED, over_least=OVER_LEAST)
_SPARSE = Recipe(
    name="sparse-70",
    linear="keep",
    embedding="keep",
    prune=PruneSpec(pattern="unstructured", sparsity=0.72, ranking="global"),
)
"""72 % of the weights, since biases stay and 70 % of all parameters are to go."""
VARIANTS = {
    "int8": Variant(Recipe.preset("int8")),
    "int8-uncalibrated": Variant(Recipe.preset("int8"), calibrated=False),
    "int8-static": Variant(Recipe.preset("int8-static")),
    "int8-7bit": Variant(Recipe.preset("int8"), weight_bits=7),
    "int8-tables4": Variant(Recipe.preset("int8-tables4"), bounds=INT4),
    "int8-qat": Variant(Recipe.preset("int8"), tuned=True),
    "int8-tables4-qat": Variant(Recipe.preset("int8-tables4"), tuned=True, bounds=INT4),
}
POST_TRAINING = tuple(name for name, way in VARIANTS.items() if not way.tuned)
PRUNING = {
    "prune-24": Variant(Recipe.preset("prune-24"), tuned=True, control=True, bounds=PRUNED),
    "prune-24-then-int8": Variant(Recipe(linear="int8-24"), after="prune-24", bounds=_STORED),
    "prune-24-int8": Variant(Recipe.preset("prune-24-int8"), tuned=True, against="prune-24-then-int8", bounds=_STORED),
    "prune-24-then-tables4": Variant(Recipe(linear="int8-24", embedding="int4"), after="prune-24", bounds=_STORED),
    "prune-24-int8-tables4": Variant(
        Recipe.preset("prune-24-int8-tables4"),
        tuned=True,
        against="prune-24-then-tables4",
        bounds=_STORED,
    ),
    "sparse-70": Variant(_SPARSE, tuned=True, bounds=replace(PRUNED, gone=0.7)),
    "structured-50": Variant(Recipe.preset("structured-50"), tuned=True, bounds=replace(PRUNED, steps=0.6)),
}
VARIANTS |= PRUNING
VARIANTS |= {
    "prune-24-int8-gradual": replace(PRUNING["prune-24-int8"], gradual=True, against="prune-24-int8"),
    "sparse-70-gradual": replace(PRUNING["sparse-70"], gradual=True, against="sparse-70"),
    "clustered-16": Variant(Recipe(name="clustered-16", linear="clustered-16")),
    "clustered-16-qat": Variant(Recipe(name="clustered-16", linear="clustered-16"), tuned=True),
    "clustered-256": Variant(Recipe(name="clustered-256", linear="clustered-256")),
    "dimensions-50": Variant(
        Recipe(name="dimensions-50", prune=PruneSpec(pattern="dimensions", sparsity=0.5)), tuned=True
    ),
}


def _budget(steps: int, share: float) -> int:
    if steps * share < 1:
        raise TrainingError(
            f"the original took {steps} steps of the optimiser, of which a share of {share} is none; train it for "
            "longer, on more rows or in smaller batches"
        )
    return int(steps * share)


def variant(name: str) -> Variant:
    """One of :data:`VARIANTS`, or a preset or YAML file with calibration inputs; RecipeError where it is none."""
    if name in VARIANTS:
        return VARIANTS[name]
    recipe = as_recipe(name)
    return Variant(recipe, bounds=INT4 if recipe.embedding == "int4" else INT8)


def gone(model: nn.Module, pruning: Sequence[PruneRow]) -> float:
    """The share of the parameters of the linear layers of ``model`` that pruning took: zero, or removed."""
    dense = {
        f"{name}.{own}": p.numel()
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
        for own, p in m.named_parameters(recurse=False)
    }
    left = sum(row.after - row.zeros for row in pruning if row.name in dense) if pruning else sum(dense.values())
    return 1 - left / sum(dense.values())


def least_bytes(model: nn.Module, recipe: Recipe) -> int:
    """Bytes of ``model`` where every linear layer and table that gains by it is in its format as ``recipe`` has it.

    What calibration adds is left out, and so is what is kept for a reason that the recipe does not tell.
    """
    layers = {name: kind for name, m in model.named_modules() for of, kind in KINDS.items() if isinstance(m, of)}
    schemes = recipe.schemes(layers)
    saved = 0
    for name, kind in layers.items():
        weight, scheme = model.get_submodule(name).weight, schemes[name][0]
        rows, columns = weight.shape
        if scheme in LEVELS:
            saved += max(weight.nbytes - stored_bytes(rows, columns, LEVELS[scheme]), 0)
            continue
        if scheme == "int8-24":
            row = -(-columns // 4) * 2 + -(-columns // 8) + SCALE_BYTES
        else:
            row = columns + SCALE_BYTES if kind == "linear" else row_bytes(columns, 4 if scheme == "int4" else 8)
        if scheme != "keep":
            saved += max(weight.nbytes - rows * row, 0)
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers())) - saved


def _weights_of_7_bits(original: nn.Module, compressed: nn.Module) -> None:
    """Quantise the weights of ``compressed`` anew, to codes of -63 to 63."""
    for name, layer in compressed.named_modules():
        if type(layer) is Int8Linear:
            dense = original.get_submodule(name).weight.detach()
            dense = dense if layer.multiplier is None else dense / layer.multiplier
            layer.weight, layer.weight_scale = quantize_per_channel(dense, weight_bits=7)
