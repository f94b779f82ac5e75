"""The small recommender, compressed and written as an artifact once for all tests."""

import pytest
from support.small import small_inputs, small_model

import recpress


@pytest.fixture(scope="session")
def compressed():
    return recpress.compress(small_model(), "int8", evaluate=lambda m: {"mean": m(*small_inputs(50)).mean()})


@pytest.fixture(scope="session")
def artifact(tmp_path_factory, compressed):
    """The artifact's folder; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    names = ("dense", "sparse")
    recpress.export(compressed, folder, example_inputs=small_inputs(32), input_names=names, output_names=("logit",))
    return folder
