"""A recipe that is gentler where a compressed model's error comes from."""

from recpress.recipe import Kind, Recipe, Scheme
from recpress.rewrite import Row

_KINDS: dict[str, Kind] = {"Linear": "linear", "Embedding": "embedding", "EmbeddingBag": "embedding"}
GENTLER: dict[Kind, dict[Scheme, Scheme]] = {
    "linear": {"int8-24": "int8", "int8": "int8-weights"},
    "embedding": {"int4": "int8"},
}
"""The scheme of less error in a layer's place; of others it is kept."""


def step_back(recipe: Recipe, rows: tuple[Row, ...]) -> Recipe | None:
    """``recipe`` with the next gentler scheme for the layer of most error, and that in its name; None: there is none.

    Args:
        rows: of a report that was made with calibration inputs: what each layer's share of the error is.
    """
    kinds = {name: _KINDS[row.layer] for row in rows if row.layer in _KINDS for name in row.names}
    schemes = {name: scheme for name, (scheme, _) in recipe.schemes(kinds).items()}
    able = [row for row in rows if row.status == "compressed" and row.error_share]
    if not able:
        return None
    worst = max(able, key=lambda row: row.error_share)
    kind, now = kinds[worst.names[0]], schemes[worst.names[0]]
    gentler = GENTLER[kind].get(now, "keep")
    schemes |= dict.fromkeys(worst.names, gentler)
    overrides = {name: scheme for name, scheme in schemes.items() if scheme != getattr(recipe, kinds[name])}
    # Names rather than the patterns they came from, which would collide with the new ones.
    told = f"{worst.names[0]} {gentler}" if gentler != "keep" else f"{worst.names[0]} kept"
    changed = {"overrides": overrides, "name": f"{recipe.name}, {told}"}
    return Recipe(**{**recipe.model_dump(), **changed})
