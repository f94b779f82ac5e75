"""What to do to a model, declared: which scheme each kind of layer gets, and what is left alone.

A recipe is frozen and checked when it is made; it is written to YAML, printed, and stored with the artifact.

>>> Recipe.preset("int8")
>>> Recipe(linear="int8", embedding="keep", overrides={"top.4": "keep"})
>>> Recipe.from_yaml("recipe.yaml")
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recpress.errors import PruningError, RecipeError
from recpress.pruning.spec import PruneSpec

LinearScheme = Literal["int8", "int8-24", "int8-weights", "clustered-16", "clustered-256", "keep"]
Scheme = Literal["int8", "int8-24", "int8-weights", "clustered-16", "clustered-256", "int4", "keep"]
Kind = Literal["linear", "embedding"]
SCHEMES: dict[Kind, tuple[Scheme, ...]] = {
    "linear": ("int8", "int8-24", "int8-weights", "clustered-16", "clustered-256", "keep"),
    "embedding": ("int8", "int4", "keep"),
}
"""What each kind of layer can be."""


class PruneRows(BaseModel):
    """Which rows of a table are dropped, and what they answer then.

    A row stays where it meets both bounds. Of the rows that are dropped one is stored, which all of them answer.

    Attributes:
        min_count: how often a row must have been looked up, by the counts that compress is given; 1 keeps what
            training touched. 0: not asked.
        min_norm: the least Euclidean norm of a row as it is answered, quantised or not. 0: not asked.
        dropped: ``"mean"``: the mean of the dropped rows, which of all single answers has the least squared error, and
            for rows that training never touched is near the middle of what they were initialised with. ``"zero"``: a
            row of zeros, which says nothing to a dot product or a sum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_count: Annotated[int, Field(ge=0, strict=True)] = 0
    min_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    dropped: Literal["mean", "zero"] = "mean"

    @model_validator(mode="after")
    def _asks_for_something(self) -> "PruneRows":
        if not self.min_count and not self.min_norm:
            raise ValueError("neither min_count nor min_norm is above 0, so that no row would go; give one of them")
        return self


@dataclass(frozen=True)
class TableRule:
    """What a recipe says of a table's ids and rows; ``oov_row`` -1: an id outside is an error."""

    oov_row: int = -1
    prune: PruneRows | None = None
    pattern: str = field(default="", compare=False)
    """The pattern that asks for pruning."""


class Recipe(BaseModel):
    """Schemes by kind of layer, with overrides by name.

    Attributes:
        linear: scheme of every ``nn.Linear``. ``"int8"``: weights int8 with a scale an output channel,
            activations quantised to 7 bits a row at a time while the model runs. ``"int8-24"``: the same on weights
            that are 2:4 already, at most two of each four inputs not zero, stored so; others are kept.
            ``"int8-weights"``: int8 weights, activations as they are (W8A16): the bytes of int8 without what 7-bit
            activations cost, and less speed. ``"clustered-16"`` and ``"clustered-256"``: weights that share as many
            values, found by k-means (quantize/cluster.py), stored as codes of 4 or 8 bits; loaded they are float32
            again, so that an artifact is smaller and nothing is faster.
        activations: how the inputs of ``"int8"`` and ``"int8-24"`` layers are quantised. ``"row"``: each row by its own
            range, as it comes. ``"static"``: all rows by one range, found on calibration inputs, which it needs;
            outliers beyond it are clipped. A layer that calibration gives zeros alone is quantised a row at a time.
        observer: how ``"static"`` finds the range (quantize/observers.py). Of three DLRMs on MovieLens-100K "entropy"
            kept most of the AUC, at least 99.998 %, and "percentile" least, at least 99.945 %.
        smooth: with calibration inputs, even out the columns of an ``"int8"`` layer's inputs where that lessens its
            error (SmoothQuant, its alpha searched; quantize/smooth.py).
        bias_correction: with calibration inputs, which it needs, a linear layer's bias takes up what quantisation takes
            from its outputs on average (quantize/bias.py). Off: on three DLRMs on MovieLens-100K AUC, logloss and mean
            prediction of ``"row"`` stayed as they were (the AUC kept went from 100.001 to 100.004 %), and with
            ``"static"`` it lost 0.01 to 0.03 % of the AUC each time (``recpress bench ptq``).
        rounding: ``"nearest"``, or with calibration inputs, which it needs, ``"adaround"``: each weight up or down by
            the layer's error on them (quantize/adaround.py). To the nearest, because int8 gains nothing that the same
            rows show: the logits' error goes from 0.0161 to 0.0159, as it is of the 7-bit activations; by the weights
            alone from 0.0090 to 0.0082, and of 4 bits from 0.126 to 0.098.
        embedding: scheme of every ``nn.Embedding`` and ``nn.EmbeddingBag``. ``"int8"`` and ``"int4"``: rows of codes
            of 8 or 4 bits with a float16 scale and bias in the row; 0.27 and 0.141 of float32's bytes at dim 64.
        embedding_search: how the range of an ``"int4"`` row is chosen. ``"greedy"``: narrowed while that lowers the
            row's squared error (Guan et al. 2019, arXiv 1911.02079); 10 million rows of 64 values take 29 s on a
            core. ``"range"``: all of its values, as int8 rows have it; under 1 s, and more error.
        overrides: scheme by the layer's name or a pattern over names (``*``, ``?``, ``[...]``), such as
            ``{"top.4": "keep"}``; a layer that two patterns with different schemes match is an error.
        oov: by the table's name or a pattern, the row that answers for an id out of vocabulary, any number outside the
            table: ``{"tables.*": 0}``. Of tables that no pattern matches such an id is an error.
        prune_rows: by the table's name or a pattern, which rows are dropped: ``{"tables.*": {"min_count": 1}}``, see
            :class:`PruneRows`. The rows that stay keep their bits and their ids; a table of int32 leads from ids to
            rows, 4 bytes an id. The row of ``oov`` and the ``padding_idx`` always stay.
        prune: what is taken out first, a :class:`recpress.PruneSpec`, its attributes or a pattern such as ``"2:4"``:
            weights by magnitude, wanda or sparsegpt, units by activation or weight-norm; wanda, sparsegpt and
            activation need calibration inputs, and so do dimensions of tables and heads of attention. Gradient, taylor
            and movement are for recpress.finetune, gradually. Units, dimensions and heads are removed, so that layers
            are smaller. Weights that go are zeros: ``"int8-24"`` stores 2:4 in less and computes it faster, any other
            layer keeps its bytes and its time. Fine-tuning then distils from the dense original, and the masks hold.
            None: none.
        name: what the report calls this recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "custom"
    linear: LinearScheme = "int8"
    activations: Literal["row", "static"] = "row"
    observer: Literal["entropy", "mse", "percentile", "moving-average", "min-max"] = "entropy"
    smooth: bool = True
    bias_correction: bool = False
    rounding: Literal["nearest", "adaround"] = "nearest"
    embedding: Literal["int8", "int4", "keep"] = "int8"
    embedding_search: Literal["greedy", "range"] = "greedy"
    overrides: dict[str, Scheme] = {}
    oov: dict[str, Annotated[int, Field(ge=0, strict=True)]] = {}
    prune_rows: dict[str, PruneRows] = {}
    prune: PruneSpec | None = None

    def __init__(self, **given: object) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise RecipeError(_explain(error)) from None
        except PruningError as error:
            raise RecipeError(f"recipe: 'prune': {error}") from None

    @field_validator("prune", mode="before")
    @classmethod
    def _by_pattern(cls, given: object) -> object:
        return {"pattern": given} if isinstance(given, str) else given

    @field_validator("prune")
    @classmethod
    def _says_how_much(cls, prune: PruneSpec | None) -> PruneSpec | None:
        if prune is not None and prune.share is None and prune.threshold is None:
            raise ValueError(f"pattern {prune.pattern!r} does not say how much goes; give sparsity")
        return prune

    @staticmethod
    def preset(name: str) -> "Recipe":
        """The recipe of that name among :data:`PRESETS`."""
        if name not in PRESETS:
            raise RecipeError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
        return PRESETS[name]

    @staticmethod
    def from_yaml(path: str | Path) -> "Recipe":
        """Read a recipe from a YAML file with the attributes above as keys."""
        path = Path(path)
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} is not YAML: {error}") from None
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise RecipeError(f"recipe {path} must be a mapping with the keys: {', '.join(Recipe.model_fields)}")
        return Recipe(**given)

    def to_yaml(self) -> str:
        """The recipe as YAML text that :meth:`from_yaml` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)

    def schemes(self, layers: dict[str, Kind]) -> dict[str, tuple[Scheme, str]]:
        """The scheme of each layer by name, and what in this recipe decides it.

        Args:
            layers: kind of each layer by name.

        Raises:
            RecipeError: a pattern matches no layer or one that cannot be what it asks for, or two patterns ask one
                layer for different schemes.
        """
        chosen = {name: (getattr(self, kind), f"recipe, {kind}") for name, kind in layers.items()}
        for name, (pattern, scheme) in _by_name("override", self.overrides, layers, "layer").items():
            if scheme not in SCHEMES[layers[name]]:
                raise RecipeError(
                    f"override {pattern!r} asks for {scheme!r} and matches {name!r}, a layer of kind "
                    f"{layers[name]}; allowed there are {', '.join(SCHEMES[layers[name]])}: make it narrower"
                )
            chosen[name] = (scheme, f"recipe, override {pattern!r}")
        return chosen

    def table_rules(self, rows: dict[str, int]) -> dict[str, TableRule]:
        """What this recipe says of each table that it says something of, by name.

        Args:
            rows: number of rows of each table by name.

        Raises:
            RecipeError: a pattern matches no table, or one without the row that it names, or two patterns ask for
                different things of one table.
        """
        oov = _by_name("oov", self.oov, rows, "table")
        prune = _by_name("prune_rows", self.prune_rows, rows, "table")
        for name, (pattern, row) in oov.items():
            if row >= rows[name]:
                raise RecipeError(
                    f"oov {pattern!r} answers with row {row} and matches table {name!r}, which has {rows[name]} rows; "
                    f"allowed are 0 to {rows[name] - 1}"
                )
        none = ("", None)
        return {
            name: TableRule(oov.get(name, ("", -1))[1], prune.get(name, none)[1], prune.get(name, none)[0])
            for name in rows
            if name in oov or name in prune
        }


def _by_name(what: str, patterns: dict, names: Iterable[str], kind: str) -> dict[str, tuple]:
    """The pattern that matches a name and its value, by name.

    Raises:
        RecipeError: a pattern matches no name, or two with different values match one.
    """
    found: dict[str, tuple] = {}
    for pattern, value in patterns.items():
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            known = ", ".join(map(repr, names)) or "none"
            raise RecipeError(f"{what} {pattern!r} matches no {kind}; the model's {kind}s are: {known}")
        for name in matched:
            if name in found and found[name][1] != value:
                raise RecipeError(
                    f"{what} {found[name][0]!r} and {pattern!r} both match {kind} {name!r} and ask for "
                    f"{found[name][1]!r} and {value!r}; make one of them narrower"
                )
            found[name] = (pattern, value)
    return found


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = PruneRows if item["loc"][0] == "prune_rows" else Recipe
            lines.append(f"unknown key {where!r}; allowed are: {', '.join(known.model_fields)}")
        else:
            lines.append(f"{where!r} is {item['input']!r}: {item['msg']}")
    return "recipe: " + "; ".join(lines)


_HALF_OF_UNITS = PruneSpec(pattern="units", sparsity=0.5)
_TWO_OF_FOUR = PruneSpec(permute="auto")
_INT8_24 = {"linear": "int8-24", "prune": _TWO_OF_FOUR}
PRESETS = {
    "int8": Recipe(name="int8"),
    "int8-static": Recipe(name="int8-static", activations="static"),
    "int8-tables": Recipe(name="int8-tables", linear="keep"),
    "int8-linear": Recipe(name="int8-linear", embedding="keep"),
    "int8-weights": Recipe(name="int8-weights", linear="int8-weights"),
    "int8-tables4": Recipe(name="int8-tables4", embedding="int4"),
    "tables4": Recipe(name="tables4", linear="keep", embedding="int4"),
    "prune-24": Recipe(name="prune-24", linear="keep", embedding="keep", prune=_TWO_OF_FOUR),
    "prune-24-int8": Recipe(name="prune-24-int8", **_INT8_24),
    "prune-24-int8-tables4": Recipe(name="prune-24-int8-tables4", embedding="int4", **_INT8_24),
    "structured-50": Recipe(name="structured-50", linear="keep", embedding="keep", prune=_HALF_OF_UNITS),
    "structured-50-int8": Recipe(name="structured-50-int8", prune=_HALF_OF_UNITS),
    "structured-50-int8-tables4": Recipe(name="structured-50-int8-tables4", embedding="int4", prune=_HALF_OF_UNITS),
    "magnitude-70": Recipe(
        name="magnitude-70",
        linear="keep",
        embedding="keep",
        prune=PruneSpec(pattern="unstructured", sparsity=0.7),
    ),
}
"""Recipes by name.

``prune-24`` and ``magnitude-70`` quantise nothing: zeros in float32 layers, of which no layer here makes less bytes or
time; they are what is fine-tuned before quantising, or for a runtime of your own.
"""


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe as it is, by the name of a preset, or from a YAML file where the text ends in .yaml or .yml."""
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe).endswith((".yaml", ".yml")):
        return Recipe.from_yaml(recipe)
    return Recipe.preset(str(recipe))
