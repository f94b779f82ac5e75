"""Bags of any number of ids, packed in one request: from the artifact to the real server, whose batches join them."""

import threading

import numpy as np
import pytest
import torch
from support.bags import BAGS, LONGEST, NAMES, BagRecommender, arguments, bag_rows, wire, write_bags

import recpress
from recpress.artifact import ragged
from recpress.artifact.load import read_golden
from recpress.artifact.manifest import read_manifest
from recpress.errors import ArtifactError, ExportError, RequestError
from recpress.serving.client import Client
from recpress.serving.config import read_config
from recpress.serving.metrics import fetch_text
from recpress.serving.probe import prove, replay_golden
from recpress.serving.rows import RowChecker, RowsRefused, join
from recpress.serving.server import Server

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model_and_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags") / "artifact"
    return write_bags(folder), folder


@pytest.fixture(scope="module")
def folder(model_and_folder):
    return model_and_folder[1]


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    repository = tmp_path_factory.mktemp("served_bags") / "repo"
    # Requests sent within 20 ms are joined, so that a bad one has neighbours.
    recpress.package(folder, repository, name="bags", queue_delay_us=20_000)
    with Server(repository) as running:
        yield running


def tensors(rows):
    return {name: torch.from_numpy(array) for name, array in wire(rows).items()}


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_packing_and_the_model_s_arguments_are_inverse(folder, rows):
    given = bag_rows(rows, seed=rows)
    sent, spec = tensors(given), read_manifest(folder).ragged
    assert sent["bag_lengths"].shape == (rows, 2) and sent["bag_values"].shape[0] == rows
    flat = ragged.trimmed(sent["bag_lengths"], sent["bag_values"])
    by_hand = []
    begins = {name: lengths.cumsum(0) - lengths for name, (_, lengths) in list(given.items())[1:]}
    for row in range(rows):
        for name in ("tags", "genres"):
            values, lengths = given[name]
            by_hand += values[begins[name][row] : begins[name][row] + lengths[row]].tolist()
    assert flat.tolist() == by_hand, "row by row, and bag by bag within a row"
    got = ragged.arguments(spec, (sent["dense"], sent["bag_lengths"], flat))
    assert all(torch.equal(a, b) for a, b in zip(got, arguments(given), strict=True))


def test_parts_of_rows_are_the_rows(folder):
    manifest = read_manifest(folder)
    inputs, _ = read_golden(folder, manifest)
    rows = tuple(inputs[name] for name in ragged.names(manifest))
    parts = [ragged.part(manifest.ragged, rows, slice(i, i + 7)) for i in range(0, 64, 7)]
    assert all(torch.equal(a, b) for a, b in zip(join(parts), rows, strict=True))


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_scores_are_the_model_s(model_and_folder, rows):
    model, folder = model_and_folder
    given = bag_rows(rows, seed=rows)
    loaded = recpress.load(folder)
    got = loaded.score(tensors(given))["logit"]
    torch.testing.assert_close(got, model(*arguments(given)), rtol=0, atol=loaded.manifest.golden.outlier_atol)


def test_manifest_configuration_and_golden_rows_know_the_bags(folder, server):
    manifest = read_manifest(folder)
    assert [(bag.name, bag.form, bag.table_high) for bag in manifest.ragged.bags] == [
        ("tags", "offsets", 299),
        ("genres", "lengths", 49),
    ]
    inputs, _ = read_golden(folder, manifest)
    lengths = inputs["bag_lengths"]
    assert lengths.shape == (64, 2) and lengths.min() == 0 and lengths.max() == LONGEST
    owners = ragged.owners(lengths) % 2
    for bag, high in ((0, 299), (1, 49)):
        values = inputs["bag_values"][owners == bag]
        assert values.min() == 0 and values.max() == high, "both ends of the table"
    config = {one.name: one for one in read_config(server.repository / "bags").input}
    assert config["bag_values"].allow_ragged_batch and list(config["bag_values"].dims) == [-1]
    assert list(config["bag_lengths"].dims) == [2] and not config["bag_lengths"].allow_ragged_batch


def test_golden_rows_over_the_wire(server, folder):
    for protocol in ("grpc", "http"):
        with Client(server.url(protocol), protocol=protocol) as client:
            assert prove(client, server.repository / "bags" / "1").ok
            assert replay_golden(client, "bags", folder, batch=7).ok


def changed(rows, change):
    sent = wire(rows)
    change(sent)
    return sent


def at(name, index, value):
    return lambda sent: sent[name].__setitem__(index, value)


def wider(sent):
    sent["bag_values"] = np.pad(sent["bag_values"], ((0, 0), (0, 1)))


def longer(sent):
    sent["bag_lengths"][0, 0] += 3


THREE = bag_rows(3, seed=9)
BAD = {
    "negative": (at("bag_lengths", (1, 0), -1), "'bag_lengths', row 1, bag 'tags' is -1; allowed are 0 to 12"),
    "too long": (at("bag_lengths", (2, 1), 13), "'bag_lengths', row 2, bag 'genres' is 13; allowed are 0 to 12"),
    "huge": (at("bag_lengths", (0, 1), 2**62), "row 0, bag 'genres' is 4611686018427387904; allowed are 0 to 12"),
    "more values": (wider, "the lengths of 3 rows add up to"),
    "fewer values": (longer, "the lengths of 3 rows add up to"),
    "outside": (at("bag_values", (0, 0), 300), "'bag_values', row 0, bag 'tags', value 0 is 300; allowed are 0 to 299"),
    "below": (at("bag_values", (0, 0), -(2**63)), "value 0 is -9223372036854775808; allowed are 0 to 299"),
    "not finite": (at("dense", (1, 2), np.nan), "'dense', row 1, column 2 is nan"),
}
assert THREE["tags"][1][0] > 0, "row 0 begins with a tag"


@pytest.mark.parametrize("what", BAD)
def test_what_is_bad_is_named_and_refused_alone(what, folder):
    change, message = BAD[what]
    manifest = read_manifest(folder)
    checker, sent = RowChecker(manifest), changed(THREE, change)
    inputs = tuple(torch.from_numpy(sent[name]) for name in ragged.names(manifest))
    good = checker.received(tuple(tensors(bag_rows(2))[name] for name in ragged.names(manifest)))
    assert checker.clean(good) and checker.complaint(good) is None
    try:
        received = checker.received(inputs)
    except RowsRefused as refused:
        assert message in str(refused)
        return
    assert not checker.clean(join([good, received, good]))
    assert message in checker.complaint(received)


def test_a_value_s_place_is_told_by_its_row_and_bag(folder):
    manifest, given = read_manifest(folder), bag_rows(5, seed=3)
    values, lengths = given["genres"]
    row = int((lengths >= 2).nonzero()[-1])
    values[int(lengths[:row].sum()) + 1] = 50
    checker = RowChecker(manifest)
    received = checker.received(tuple(tensors(given)[name] for name in ragged.names(manifest)))
    assert f"row {row}, bag 'genres', value 1 is 50; allowed are 0 to 49" in checker.complaint(received)


def test_eight_clients_are_joined_and_bad_ones_fail_alone(server, model_and_folder):
    model, folder = model_and_folder
    atol = read_manifest(folder).golden.outlier_atol
    kinds = list(BAD)
    wrong, refusals, told = [], [], []

    def send(client_number):
        with Client(server.url("grpc")) as client:
            for i in range(8):
                seed = 100 * client_number + i
                rows = bag_rows(1 + seed % 5, seed=seed) if i else bag_rows(1, seed=seed)
                if i == 1:
                    for name in ("tags", "genres"):
                        rows[name] = rows[name][0][:0], torch.zeros_like(rows[name][1])
                barrier.wait()
                if i == 4:
                    change, message = BAD[kinds[client_number]] if client_number % 2 else (None, "")
                    if change is not None:
                        try:
                            client.score("bags", changed(THREE, change))
                        except RequestError as error:
                            refusals.append(client_number)
                            told.append((message, str(error)))
                        continue
                got = client.score("bags", wire(rows))["logit"][:, 0]
                want = model(*arguments(rows)).numpy()
                if got.shape != want.shape or np.abs(got - want).max() > atol:
                    wrong.append((client_number, i))

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=send, args=(i,)) for i in range(8)]
    before = executions(server)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and sorted(refusals) == [1, 3, 5, 7]
    assert all(message in text and ".py" not in text for message, text in told)
    assert executions(server) - before < 64, "requests of different lengths were joined"


def executions(server):
    lines = fetch_text(server.url("metrics")).splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith('nv_inference_exec_count{model="bags"'))


def export(tmp_path, examples=None, bags=BAGS, names=NAMES):
    model = recpress.compress(BagRecommender().eval(), "int8")
    given = arguments(bag_rows(4)) if examples is None else examples
    return recpress.export(model, tmp_path / "a", example_inputs=given, input_names=names, bags=bags)


@pytest.mark.parametrize(
    "bags, message",
    [
        ((recpress.Bag("tags", offsets="none"), BAGS[1]), "bags name 'tags', 'none'"),
        ((recpress.Bag("tags", offsets="tags_offsets", lengths="genres_lengths"),), "either offsets or lengths"),
        ((recpress.Bag("tags"),), "either offsets or lengths"),
        ((BAGS[0], recpress.Bag("genres", lengths="tags_offsets")), "every one an input of its own"),
        ((recpress.Bag("tags", offsets="tags_offsets", max_length=1), BAGS[1]), "into bags of at most 1"),
        ((BAGS[0], recpress.Bag("genres", lengths="dense")), "give all as int64, or all as int32"),
    ],
)
def test_bags_that_are_none_are_named_at_export(bags, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(tmp_path, bags=bags)
    assert not (tmp_path / "a").exists()


def test_examples_that_do_not_fit_are_named(tmp_path):
    tags, offsets, *rest = arguments(bag_rows(4))
    for broken in ((tags, offsets + 1), (tags[:-1], offsets.flip(0))):
        with pytest.raises(ExportError, match="the examples of bag 'tags'"):
            export(tmp_path, examples=(*broken, *rest))


def test_one_example_row_is_enough(tmp_path):
    manifest = export(tmp_path, examples=arguments(bag_rows(1, seed=4)))
    assert manifest.ragged.bags[0].table_high == 299
    assert recpress.load(tmp_path / "a").score(tensors(bag_rows(5)))["output"].shape == (5,)


def test_local_scores_refuse_what_does_not_fit(folder):
    sent = tensors(THREE)
    sent["bag_lengths"][0, 0] = -1
    with pytest.raises(ArtifactError, match="row 0, bag 'tags' is -1"):
        recpress.load(folder).score(sent)
