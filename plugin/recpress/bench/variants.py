"""The ways to compress a model that the benchmark of quality compares, and the least bytes that their formats allow."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from recpress.finetuning import finetune
from recpress.layers import Int8Linear
from recpress.pipeline import Compressed, compress
from recpress.recipe import Recipe, as_recipe
from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.formats.rows import row_bytes

SCALE_BYTES = 4
KINDS = {nn.Linear: "linear", nn.Embedding: "embedding", nn.EmbeddingBag: "embedding"}


class Inputs(Protocol):
    """Where a variant takes rows from."""

    def calibration(self) -> list[tuple[Tensor, ...]]:
        """Inputs like those that the model will score."""

    def tuning(self) -> dict[str, object]:
        """``train``, ``valid`` and what else recpress.finetune is to be given, to distil a model of these rows."""


@dataclass(frozen=True)
class Variant:
    """A ``recipe``, with calibration inputs or without, its weights of ``weight_bits``; ``tuned``: distilled after."""

    recipe: Recipe
    calibrated: bool = True
    weight_bits: int = 8
    tuned: bool = False

    def apply(self, model: nn.Module, rows: Inputs) -> Compressed:
        """``model`` compressed so; it is not changed."""
        calibration = rows.calibration() if self.calibrated else None
        if self.tuned:
            return finetune(model, self.recipe, **rows.tuning(), calibration=calibration, control=False, progress=False)
        made = compress(model, self.recipe, calibration=calibration)
        if self.weight_bits == 7:
            _weights_of_7_bits(model, made.model)
        return made


VARIANTS = {
    "int8": Variant(Recipe.preset("int8")),
    "int8-uncalibrated": Variant(Recipe.preset("int8"), calibrated=False),
    "int8-static": Variant(Recipe.preset("int8-static")),
    "int8-7bit": Variant(Recipe.preset("int8"), weight_bits=7),
    "int8-tables4": Variant(Recipe.preset("int8-tables4")),
    "int8-qat": Variant(Recipe.preset("int8"), tuned=True),
    "int8-tables4-qat": Variant(Recipe.preset("int8-tables4"), tuned=True),
}
POST_TRAINING = tuple(name for name, way in VARIANTS.items() if not way.tuned)


def variant(name: str) -> Variant:
    """One of :data:`VARIANTS`, or a preset or YAML file with calibration inputs; RecipeError where it is none."""
    return VARIANTS.get(name) or Variant(as_recipe(name))


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
