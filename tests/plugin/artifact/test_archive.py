"""Forged graphs: attacks that torch alone falls for, shown by a control, and others, are refused."""

import contextlib
import io
import json
import pickle
import shutil
import zipfile

import pytest
import torch

import recpress
from recpress.artifact.archive import check_archive
from recpress.artifact.manifest import MANIFEST, sha256
from recpress.errors import ArtifactError


class Payload:
    """Unpickles by making a folder, the trace that an attack leaves."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def forge(artifact, folder, change):
    """A copy of ``artifact`` whose graph archive ``change(members)`` has altered, with a manifest that agrees."""
    shutil.copytree(artifact, folder)
    path = folder / "graph.pt2"
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"]["graph.pt2"] = sha256(path)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def in_graph(edit):
    """A change of ``models/model.json`` by ``edit(graph)``."""

    def change(members):
        graph = json.loads(members["models/model.json"])
        edit(graph)
        members["models/model.json"] = json.dumps(graph).encode()

    return change


def nodes(graph):
    return graph["graph_module"]["graph"]["nodes"]


def call(graph, target, *args):
    """Make the first node call ``target`` with strings."""
    node = nodes(graph)[0]
    node["target"] = target
    node["inputs"] = [{"name": "", "arg": {"as_string": a}, "kind": 1} for a in args]


def sample_inputs(trace):
    return lambda members: members.update({"data/sample_inputs/model.pt": torch_pickle(trace)})


def torch_pickle(trace):
    buffer = io.BytesIO()
    torch.save(Payload(trace), buffer)
    return buffer.getvalue()


def pickled_weight(trace):
    def change(members):
        config = json.loads(members["data/weights/model_weights_config.json"])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
        members[f"data/weights/{entry['path_name']}"] = torch_pickle(trace)

    return change


def shape_expression(trace):
    text = f"__import__('os').mkdir({str(trace)!r}) or 4"

    def edit(graph):
        size = graph["graph_module"]["graph"]["tensor_values"]["dense"]["sizes"][0]
        size["as_expr"]["expr_str"] = text

    return in_graph(edit)


def operating_system(trace):
    return in_graph(lambda graph: call(graph, "torch.os.mkdir", str(trace)))


def argument_name(trace):
    """An argument's name that closes the call that torch generates and makes a call of its own."""

    def edit(graph):
        for node in nodes(graph):
            if node["target"].startswith("torch.ops.aten.relu"):
                node["inputs"].append(
                    {"name": f"x=__import__('os').mkdir({str(trace)!r}), y", "arg": {"as_int": 0}, "kind": 2}
                )
                return

    return in_graph(edit)


@pytest.mark.parametrize("attack", [operating_system, argument_name], ids=lambda attack: attack.__name__)
def test_what_torch_alone_would_have_to_catch_is_refused(attack, artifact, tmp_path):
    folder = forge(artifact, tmp_path / "forged", attack(tmp_path / "trace"))
    with pytest.raises(ArtifactError, match=r"(calls 'torch.os.mkdir'|holds the name)"):
        recpress.load(folder)


ATTACKS = [sample_inputs, pickled_weight, shape_expression]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_that_torch_falls_for_is_refused(attack, artifact, tmp_path):
    trace = tmp_path / "trace"
    folder = forge(artifact, tmp_path / "forged", attack(trace))
    with pytest.raises(ArtifactError, match="it was not written by recpress; do not load it"):
        recpress.load(folder)
    assert not trace.exists()
    # The control: torch's own loading of the same file runs the attacker's code.
    with contextlib.suppress(Exception):  # whether and how it fails afterwards differs by attack
        torch.export.load(folder / "graph.pt2")
    assert trace.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.__class__.mro",
        "torch.ops.other.thing.default",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.pow.__self__",
        "#extension:run",
        "os.system",
    ],
)
def test_only_operators_may_be_called(artifact, tmp_path, target):
    folder = forge(artifact, tmp_path / "forged", in_graph(lambda graph: call(graph, target, "x")))
    with pytest.raises(ArtifactError, match="calls "):
        check_archive(folder / "graph.pt2")


def test_guards_are_refused(artifact, tmp_path):
    folder = forge(artifact, tmp_path / "forged", in_graph(lambda graph: graph.update(guards_code=["True"])))
    with pytest.raises(ArtifactError, match="holds guards"):
        check_archive(folder / "graph.pt2")


@pytest.mark.parametrize("kind", ["as_graph", "as_operator", "as_custom_obj", "as_anything_new"])
def test_only_plain_values_may_be_given(artifact, tmp_path, kind):
    def edit(graph):
        nodes(graph)[0]["inputs"].append({"name": "x", "arg": {kind: "torch.os.mkdir"}, "kind": 1})

    with pytest.raises(ArtifactError, match=f"a value of kind '{kind}'"):
        check_archive(forge(artifact, tmp_path / "forged", in_graph(edit)) / "graph.pt2")


@pytest.mark.parametrize("field", ["in_spec", "out_spec"])
def test_only_plain_containers_may_hold_inputs(artifact, tmp_path, field):
    tree = [1, {"type": "collections.defaultdict", "context": '{"default_factory_module": "os"}', "children_spec": []}]

    def edit(graph):
        graph["graph_module"]["module_call_graph"][0]["signature"][field] = json.dumps(tree)

    with pytest.raises(ArtifactError, match=r"defaultdict"):
        check_archive(forge(artifact, tmp_path / "forged", in_graph(edit)) / "graph.pt2")


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("data/constants/custom_obj_0", pickle.dumps(1), "a member that is not allowed"),
        ("data/aotinductor/model/x.so", b"\x7fELF", "a member that is not allowed"),
        ("extra/../../x", b"", "a member that is not allowed"),
        ("models/other.json", b"{}", "a member that is not allowed"),
    ],
)
def test_members_off_the_list(artifact, tmp_path, name, data, message):
    folder = forge(artifact, tmp_path / "forged", lambda members: members.update({name: data}))
    with pytest.raises(ArtifactError, match=message):
        recpress.load(folder)


def test_a_bomb_is_refused_unopened(artifact, tmp_path):
    path = shutil.copy(artifact / "graph.pt2", tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("graph/data/weights/weight_99", bytes(1 << 20))
    with pytest.raises(ArtifactError, match="compressed"):
        check_archive(tmp_path / "graph.pt2")


def test_what_is_no_archive(tmp_path):
    (tmp_path / "graph.pt2").write_bytes(b"PK nothing")
    with pytest.raises(ArtifactError, match="is not a readable archive"):
        check_archive(tmp_path / "graph.pt2")
