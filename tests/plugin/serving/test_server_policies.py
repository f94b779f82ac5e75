"""The real server: ids out of vocabulary are answered where a table has a policy for them, and refused elsewhere."""

import numpy as np
import pytest
from support.small import small_inputs, small_model

import recpress
from recpress.errors import RequestError
from recpress.serving.client import Client
from recpress.serving.probe import replay_golden
from recpress.serving.server import Server

pytestmark = pytest.mark.server
ANY = [-1, 40, 2**31, 2**32 + 3, -(2**31) - 1, 2**63 - 1, -(2**63)]


def test_any_id_is_answered_by_the_row_of_the_policy_and_others_are_refused(tmp_path):
    recipe = recpress.Recipe(oov={"tables.0": 3}, prune_rows={"bag": {"min_norm": 3.0}})
    compressed = recpress.compress(small_model(), recipe)
    recpress.export(compressed, tmp_path / "a", example_inputs=small_inputs(16), input_names=("dense", "sparse"))
    recpress.package(tmp_path / "a", tmp_path / "repo", name="mapped")
    dense, sparse = (t.numpy() for t in small_inputs(len(ANY)))
    known, strange = sparse.copy(), sparse.copy()
    known[:, 0], strange[:, 0] = 3, ANY
    with Server(tmp_path / "repo") as running:
        for protocol in ("grpc", "http"):
            with Client(running.url(protocol), protocol=protocol) as client:
                assert replay_golden(client, "mapped", tmp_path / "a", batch=7).ok
                want, got = (client.score("mapped", {"dense": dense, "sparse": ids}) for ids in (known, strange))
                assert np.array_equal(want["output"], got["output"])
                for column, high in ((1, 6), (2, 299)):
                    for value in (-1, high + 1, 2**40):
                        bad = strange.copy()
                        bad[4, column] = value
                        told = f"'sparse', row 4, column {column} is {value}; allowed are 0 to {high}"
                        with pytest.raises(RequestError, match=told):
                            client.score("mapped", {"dense": dense, "sparse": bad})
