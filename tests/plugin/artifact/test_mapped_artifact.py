"""Policies for ids and dropped rows in an artifact: exported, told, in golden rows, and folded into the look-ups."""

import pytest
import torch
from support.small import small_inputs, small_model

import recpress
from recpress.artifact.golden import draw_rows
from recpress.artifact.load import read_golden
from recpress.artifact.manifest import InputSpec, read_manifest
from recpress.errors import IndexBoundsError
from recpress.report.tables import layers_table, print_manifest
from recpress.serving.rows import RowChecker
from recpress_kernels import look_up_rows
from recpress_kernels.embedding_bag_rows.joined import pool_bags

INT64 = torch.iinfo(torch.int64)
ANY = [-1, 40, 2**31, 2**32 + 3, -(2**31) - 1, INT64.max, INT64.min]
MAP, EMBEDDING = torch.ops.recpress.map_ids.default, torch.ops.aten.embedding.default


def calls(module, target):
    return sum(node.target is target for node in module.graph.nodes)


@pytest.fixture(scope="module", params=["int8", "int4", "keep"])
def made(request, tmp_path_factory):
    """The small model with a policy for table 0 and the bag, and the bag's rows of norm 3 and more alone."""
    recipe = recpress.Recipe(
        embedding=request.param, oov={"tables.0": 3, "bag": 299}, prune_rows={"bag": {"min_norm": 3.0}}
    )
    compressed = recpress.compress(small_model(), recipe)
    folder = tmp_path_factory.mktemp("mapped") / "a"
    recpress.export(compressed, folder, example_inputs=small_inputs(16), input_names=("dense", "sparse"))
    return compressed, folder, request.param


def test_the_loaded_graph_scores_any_id_of_a_table_with_a_policy_in_the_calls_there_were(made):
    compressed, folder, scheme = made
    model = recpress.load(folder)
    counts = [calls(model.module, target) for target in (look_up_rows, pool_bags, MAP, EMBEDDING)]
    assert counts == ([0, 0, 2, 2] if scheme == "keep" else [1, 1, 0, 0])
    for rows in (1, 7):
        dense, sparse = small_inputs(rows, seed=3)
        sparse[:, 0] = torch.tensor(ANY[-rows:])
        sparse[:, 3] = torch.tensor(ANY[:rows])
        got = model.score({"dense": dense, "sparse": sparse})["output"]
        torch.testing.assert_close(got, compressed.model(dense, sparse), rtol=0, atol=1e-5)
        known = sparse.clone()
        known[:, 0] = 3
        outside = (known[:, 3] < 0) | (known[:, 3] > 299)
        known[outside, 3] = 299
        assert torch.equal(model.score({"dense": dense, "sparse": known})["output"], got)


@pytest.mark.parametrize("value", [-1, 7, 2**32, INT64.min])
def test_an_id_outside_a_table_without_a_policy_is_refused_by_the_graph_and_by_the_server(made, value):
    _, folder, _ = made
    model, checker = recpress.load(folder), RowChecker(read_manifest(folder))
    dense, sparse = small_inputs(3)
    sparse[1, 1] = value
    with pytest.raises((IndexBoundsError, IndexError), match=r"index|range"):
        model.score({"dense": dense, "sparse": sparse})
    told = f"input 'sparse', row 1, column 1 is {value}; allowed are 0 to 6"
    assert not checker.clean((dense, sparse)) and checker.complaint((dense, sparse)) == told
    for any_id in ANY:
        dense, sparse = small_inputs(3)
        sparse[2, 0] = sparse[0, 2] = sparse[0, 3] = any_id
        assert checker.clean((dense, sparse)) and checker.complaint((dense, sparse)) is None


def test_the_manifest_and_the_report_state_the_policy_of_each_table(made, capsys, monkeypatch):
    compressed, folder, scheme = made
    manifest = read_manifest(folder)
    layers = {layer.names[0]: layer for layer in manifest.layers}
    assert [layers[name].oov_row for name in ("tables.0", "tables.1", "bag")] == [3, None, 299]
    row = layers["bag"]
    assert row.rows_dropped > 50 and row.dropped_answer == "mean" and layers["tables.0"].rows_dropped == 0
    stored = 300 - row.rows_dropped + 1
    assert row.bytes_after == stored * {"int8": 12, "int4": 8, "keep": 32}[scheme] + 4 * 300
    (sparse,) = [spec for spec in manifest.inputs if spec.name == "sparse"]
    assert sparse.any_id == (True, False, True, True) and sparse.table_high == (39, 6, 299, 299)
    assert sparse.bounds == ((None, None), (0, 6), (None, None), (None, None))
    assert manifest.recipe == compressed.report.recipe
    monkeypatch.setenv("COLUMNS", "200")
    print_manifest(manifest, folder)
    assert "40 or any, 7, 300 or any, 300 or" in " ".join(capsys.readouterr().out.split())
    told = [str(cell) for cell in layers_table(manifest.layers).columns[-1].cells]
    assert sum("ids out of vocabulary: row 3" in text for text in told) == 1
    assert sum("rows dropped, which answer their mean" in text for text in told) == 1


def test_golden_rows_hold_ids_out_of_vocabulary_where_there_is_a_policy(made):
    _, folder, _ = made
    inputs, _ = read_golden(folder, read_manifest(folder))
    ids = inputs["sparse"]
    for column, high in ((0, 39), (2, 299), (3, 299)):
        outside = ids[(ids[:, column] < 0) | (ids[:, column] > high), column]
        assert len(outside) == 8 and {INT64.min, INT64.max, -1, high + 1} == set(outside.tolist())
    assert int(ids[:, 1].min()) >= 0 and int(ids[:, 1].max()) <= 6


def test_golden_ids_out_of_vocabulary_fit_their_dtype():
    spec = InputSpec(
        name="x", dtype="int32", shape=(1,), low=(0,), high=(5,), table_low=(0,), table_high=(9,), any_id=(True,)
    )
    (ids,) = draw_rows((spec,))
    ends = torch.iinfo(torch.int32)
    assert ids.dtype == torch.int32 and {ends.min, ends.max, -1, 10} <= set(ids.flatten().tolist())
