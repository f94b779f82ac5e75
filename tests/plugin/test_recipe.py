import pytest

from recpress.errors import RecipeError
from recpress.recipe import PRESETS, Recipe, as_recipe

LAYERS = {"bottom.0": "linear", "top.0": "linear", "top.2": "linear", "tables.0": "embedding"}


def test_schemes_follow_the_kind_and_overrides_follow_the_name():
    recipe = Recipe(embedding="keep", overrides={"top.*": "keep", "tables.0": "int8"})
    schemes = {name: scheme for name, (scheme, _) in recipe.schemes(LAYERS).items()}
    assert schemes == {"bottom.0": "int8", "top.0": "keep", "top.2": "keep", "tables.0": "int8"}
    assert recipe.schemes(LAYERS)["top.0"][1] == "recipe, override 'top.*'"


def test_yaml_round_trip(tmp_path):
    prune = {"tables.*": {"min_count": 2, "min_norm": 0.5, "dropped": "zero"}}
    recipe = Recipe(name="mine", linear="keep", overrides={"top.0": "int8"}, oov={"tables.*": 0}, prune_rows=prune)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert as_recipe(path) == recipe == as_recipe(str(path))


def test_presets_are_named_after_themselves_and_are_written_as_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    for name in PRESETS:
        path.write_text(as_recipe(name).to_yaml())
        assert as_recipe(name).name == name and as_recipe(path) == as_recipe(name)


def test_is_frozen():
    with pytest.raises(Exception, match="frozen"):
        Recipe().linear = "keep"


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"liner": "int8"},
            "unknown key 'liner'; allowed are: name, linear, activations, observer, smooth, bias_correction, "
            "rounding, embedding, embedding_search, overrides, oov, prune_rows",
        ),
        ({"linear": "int7"}, "'linear' is 'int7'.*'int8', 'int8-24', 'int8-weights', .* or 'keep'"),
        ({"embedding": "int8-weights"}, "'embedding' is 'int8-weights'.*'int8', 'int4' or 'keep'"),
        ({"embedding_search": "best"}, "'embedding_search' is 'best'.*'greedy' or 'range'"),
        ({"overrides": {"top": "fp8"}}, r"'overrides.top' is 'fp8'"),
        ({"oov": {"a": -1}}, "'oov.a' is -1: .* greater than or equal to 0"),
        ({"oov": {"a": True}}, "'oov.a' is True: .* valid integer"),
        ({"oov": {"a": "mean"}}, "'oov.a' is 'mean': .* valid integer"),
        ({"prune_rows": {"a": {}}}, "neither min_count nor min_norm is above 0"),
        ({"prune_rows": {"a": {"min_norm": float("nan")}}}, "'prune_rows.a.min_norm' is nan"),
        ({"prune_rows": {"a": {"min_count": 1.5}}}, "'prune_rows.a.min_count' is 1.5"),
        ({"prune_rows": {"a": {"min_count": 1, "dropped": "last"}}}, "'prune_rows.a.dropped' is 'last'"),
        (
            {"prune_rows": {"a": {"keep": 1}}},
            "unknown key 'prune_rows.a.keep'; allowed are: min_count, min_norm, dropped",
        ),
    ],
)
def test_refuses_unknown_keys_and_values(given, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**given)


def test_a_pattern_that_matches_nothing_lists_the_layers():
    with pytest.raises(RecipeError, match=r"'tops\.\*' matches no layer; the model's layers are: 'bottom.0', 'top.0'"):
        Recipe(overrides={"tops.*": "keep"}).schemes(LAYERS)


def test_a_scheme_that_the_kind_of_layer_cannot_have_is_refused():
    with pytest.raises(
        RecipeError, match=r"'\*' asks for 'int8-weights' and matches 'tables.0'.*allowed there are int8, int4, keep"
    ):
        Recipe(overrides={"*": "int8-weights"}).schemes(LAYERS)
    with pytest.raises(RecipeError, match="'top.0' asks for 'int4' and matches 'top.0', a layer of kind linear"):
        Recipe(overrides={"top.0": "int4"}).schemes(LAYERS)
    assert Recipe(overrides={"tables.*": "int4"}).schemes(LAYERS)["tables.0"][0] == "int4"
    assert Recipe(overrides={"top.*": "int8-weights"}).schemes(LAYERS)["top.0"][0] == "int8-weights"


def test_patterns_that_collide_are_named():
    with pytest.raises(RecipeError, match=r"'top\.\*' and '\*\.2' both match layer 'top.2'"):
        Recipe(overrides={"top.*": "keep", "*.2": "int8"}).schemes(LAYERS)
    same = Recipe(overrides={"top.*": "keep", "*.2": "keep"}).schemes(LAYERS)
    assert same["top.2"][0] == "keep"


@pytest.mark.parametrize(
    "text, message", [("- int8", "must be a mapping"), ("{", "is not YAML"), ("1: 2", "must be a mapping")]
)
def test_refuses_a_file_of_another_form(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        as_recipe(path)


def test_no_such_preset_or_file(tmp_path):
    with pytest.raises(RecipeError, match="no preset is called 'int3'; there are: int8"):
        as_recipe("int3")
    with pytest.raises(RecipeError, match="cannot be read"):
        as_recipe(tmp_path / "absent.yaml")
