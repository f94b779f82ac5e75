"""What to do to a model, declared: which scheme each kind of layer gets, and what is left alone.

A recipe is frozen and checked when it is made; it is written to YAML, printed, and stored with the artifact.

>>> Recipe.preset("int8")
>>> Recipe(linear="int8", embedding="keep", overrides={"top.4": "keep"})
>>> Recipe.from_yaml("recipe.yaml")
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from recpress.errors import RecipeError

Scheme = Literal["int8", "int8-24", "int8-weights", "int4", "keep"]
Kind = Literal["linear", "embedding"]
SCHEMES: dict[Kind, tuple[Scheme, ...]] = {
    "linear": ("int8", "int8-24", "int8-weights", "keep"),
    "embedding": ("int8", "int4", "keep"),
}
"""What each kind of layer can be."""


class Recipe(BaseModel):
    """Schemes by kind of layer, with overrides by name.

    Attributes:
        linear: scheme of every ``nn.Linear``. ``"int8"``: weights int8 with a scale an output channel,
            activations quantised to 7 bits a row at a time while the model runs. ``"int8-24"``: the same on weights
            that are 2:4 already, at most two of each four inputs not zero, stored so; others are kept.
            ``"int8-weights"``: int8 weights, activations as they are (W8A16): the bytes of int8 without what 7-bit
            activations cost, and less speed.
        activations: how the inputs of ``"int8"`` and ``"int8-24"`` layers are quantised. ``"row"``: each row by its own
            range, as it comes. ``"static"``: all rows by one range, found on calibration inputs, which it needs;
            outliers beyond it are clipped.
        observer: how ``"static"`` finds the range (quantize/observers.py). Of three DLRMs on MovieLens-100K "entropy"
            kept most of the AUC, at least 99.998 %, and "percentile" least, at least 99.945 %.
        smooth: with calibration inputs, even out the columns of an ``"int8"`` layer's inputs where that lessens its
            error (SmoothQuant, its alpha searched; quantize/smooth.py).
        embedding: scheme of every ``nn.Embedding`` and ``nn.EmbeddingBag``. ``"int8"`` and ``"int4"``: rows of codes
            of 8 or 4 bits with a float16 scale and bias in the row; 0.27 and 0.141 of float32's bytes at dim 64.
        embedding_search: how the range of an ``"int4"`` row is chosen. ``"greedy"``: narrowed while that lowers the
            row's squared error (Guan et al. 2019, arXiv 1911.02079); 10 million rows of 64 values take 95 s on a
            core. ``"range"``: all of its values, as int8 rows have it; under 1 s, and more error.
        overrides: scheme by the layer's name or a pattern over names (``*``, ``?``, ``[...]``), such as
            ``{"top.4": "keep"}``; a layer that two patterns with different schemes match is an error.
        name: what the report calls this recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "custom"
    linear: Literal["int8", "int8-24", "int8-weights", "keep"] = "int8"
    activations: Literal["row", "static"] = "row"
    observer: Literal["entropy", "mse", "percentile", "moving-average", "min-max"] = "entropy"
    smooth: bool = True
    embedding: Literal["int8", "int4", "keep"] = "int8"
    embedding_search: Literal["greedy", "range"] = "greedy"
    overrides: dict[str, Scheme] = {}

    def __init__(self, **given: object) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise RecipeError(_explain(error)) from None

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
        by: dict[str, str] = {}
        for pattern, scheme in self.overrides.items():
            matched = [name for name in layers if fnmatchcase(name, pattern)]
            if not matched:
                known = ", ".join(map(repr, layers)) or "none"
                raise RecipeError(f"override {pattern!r} matches no layer; the model's layers are: {known}")
            for name in matched:
                if scheme not in SCHEMES[layers[name]]:
                    raise RecipeError(
                        f"override {pattern!r} asks for {scheme!r} and matches {name!r}, a layer of kind "
                        f"{layers[name]}; allowed there are {', '.join(SCHEMES[layers[name]])}: make it narrower"
                    )
                if name in by and chosen[name][0] != scheme:
                    raise RecipeError(
                        f"overrides {by[name]!r} and {pattern!r} both match layer {name!r} and ask for "
                        f"{chosen[name][0]!r} and {scheme!r}; make one of them narrower"
                    )
                by[name] = pattern
                chosen[name] = (scheme, f"recipe, override {pattern!r}")
        return chosen


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}; allowed are: {', '.join(Recipe.model_fields)}")
        else:
            lines.append(f"{where!r} is {item['input']!r}: {item['msg']}")
    return "recipe: " + "; ".join(lines)


PRESETS = {
    "int8": Recipe(name="int8"),
    "int8-static": Recipe(name="int8-static", activations="static"),
    "int8-tables": Recipe(name="int8-tables", linear="keep"),
    "int8-linear": Recipe(name="int8-linear", embedding="keep"),
    "int8-weights": Recipe(name="int8-weights", linear="int8-weights"),
    "int8-tables4": Recipe(name="int8-tables4", embedding="int4"),
    "tables4": Recipe(name="tables4", linear="keep", embedding="int4"),
}


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe as it is, by the name of a preset, or from a YAML file where the text ends in .yaml or .yml."""
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe).endswith((".yaml", ".yml")):
        return Recipe.from_yaml(recipe)
    return Recipe.preset(str(recipe))
