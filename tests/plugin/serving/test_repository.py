import shutil

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import recpress
from recpress.errors import ArtifactError, RepositoryError
from recpress.serving import repository as module
from recpress.serving.config import instances_of, options_of, read_config


def test_a_model_folder_holds_a_whole_config_and_no_code(artifact, tmp_path):
    version = recpress.package(
        artifact, tmp_path / "repo", name="small", max_batch_size=32, instances=2, threads=1, queue_delay_us=500
    )
    model = tmp_path / "repo" / "small"
    assert version == model / "1"
    assert {p.name for p in model.iterdir()} == {"config.pbtxt", "1"}
    assert {p.name for p in version.iterdir()} == {p.name for p in artifact.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["repo"], "no staging folder is left"
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("small", "recpress", 32)
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("dense", model_config_pb2.TYPE_FP32, [5]),
        ("sparse", model_config_pb2.TYPE_INT64, [4]),
    ]
    assert [(o.name, list(o.dims)) for o in config.output] == [("logit", [1])]
    assert config.instance_group[0].count == 2 and config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert config.parameters["threads"].string_value == "1"


def test_a_model_for_gpus_stays_one_in_its_next_version(artifact, tmp_path):
    for given in ({"device": "cuda"}, {}):
        version = recpress.package(artifact, tmp_path / "repo", name="small", **given)
    [group] = read_config(version.parent).instance_group
    assert (version.name, group.kind) == ("2", model_config_pb2.ModelInstanceGroup.KIND_GPU)
    assert not group.gpus, "the server makes an instance on each GPU that it sees"
    with pytest.raises(RepositoryError, match="another configuration"):
        recpress.package(artifact, tmp_path / "repo", name="small", device="cpu")


def test_a_second_time_adds_a_version(artifact, tmp_path):
    first = recpress.package(artifact, tmp_path / "repo", name="small")
    second = recpress.package(artifact, tmp_path / "repo", name="small")
    assert (first.name, second.name) == ("1", "2")
    assert {p.name for p in second.parent.iterdir()} == {"config.pbtxt", "1", "2"}
    assert recpress.load(second).manifest == recpress.load(first).manifest


def test_versions_share_one_configuration(artifact, tmp_path):
    recpress.package(artifact, tmp_path / "repo", name="small")
    with pytest.raises(RepositoryError, match="another configuration"):
        recpress.package(artifact, tmp_path / "repo", name="small", max_batch_size=8)
    assert {p.name for p in (tmp_path / "repo" / "small").iterdir()} == {"config.pbtxt", "1"}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 201])
def test_refuses_names_that_are_no_folder_of_the_repository(artifact, tmp_path, name):
    with pytest.raises(RepositoryError, match="model name"):
        recpress.package(artifact, tmp_path / "repo", name=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option",
    [
        {"max_batch_size": 0},
        {"instances": 0},
        {"threads": 0},
        {"queue_delay_us": -1},
        {"threads": 1.5},
        {"device": "cuda:0"},
        {"device": ""},
    ],
)
def test_refuses_options_out_of_range(artifact, tmp_path, option):
    with pytest.raises(RepositoryError, match=f"{next(iter(option))} is"):
        recpress.package(artifact, tmp_path / "repo", name="small", **option)


def test_a_changed_artifact_is_not_packaged(artifact, tmp_path):
    broken = shutil.copytree(artifact, tmp_path / "broken")
    with (broken / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="does not match"):
        recpress.package(broken, tmp_path / "repo", name="small")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_package_leaves_nothing(artifact, tmp_path, monkeypatch, again):
    if again:
        recpress.package(artifact, tmp_path / "repo", name="small")
    before = sorted(tmp_path.rglob("*"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_hashes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recpress.package(artifact, tmp_path / "repo", name="small")
    after = [p for p in sorted(tmp_path.rglob("*")) if p.name != "repo"]
    assert after == [p for p in before if p.name != "repo"]


def test_a_folder_that_is_no_model_is_left_alone(artifact, tmp_path):
    (tmp_path / "repo" / "small").mkdir(parents=True)
    with pytest.raises(RepositoryError, match=r"holds no config\.pbtxt"):
        recpress.package(artifact, tmp_path / "repo", name="small")


@pytest.mark.parametrize(
    "groups, here, made",
    [
        ("", 4, 1),
        ("instance_group { count: 3 kind: KIND_CPU }", 4, 3),
        ("instance_group { kind: KIND_CPU }", 4, 1),
        ("instance_group { count: 2 kind: KIND_GPU gpus: [0, 1, 3] }", 1, 6),
        ("instance_group { count: 2 kind: KIND_GPU }", 4, 8),
        ("instance_group { count: 2 kind: KIND_GPU }", 0, 2),
        ("instance_group { count: 1 kind: KIND_GPU gpus: [0] } instance_group { count: 2 kind: KIND_CPU }", 4, 3),
    ],
)
def test_instances_on_gpus_are_counted_by_gpu(groups, here, made, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: here)
    config = text_format.Parse(groups, model_config_pb2.ModelConfig())
    assert instances_of(config) == made
    assert options_of(config)["instances"] == sum(group.count for group in config.instance_group), "as it was packaged"
