"""Versions come into service and go out of it, with the real server and without one."""

import resource
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import recpress
from recpress.artifact.load import load, read_golden
from recpress.artifact.manifest import read_manifest, sha256, write_manifest
from recpress.cli.main import app
from recpress.errors import ArtifactError, RepositoryError, ServerError
from recpress.serving import repository as packaging
from recpress.serving.client import Client
from recpress.serving.config import read_config, served_versions, versions_in
from recpress.serving.control import Control, find_server
from recpress.serving.probe import prove
from recpress.serving.server import Server
from recpress.serving.versions import deploy, rollback

NAMES = ("dense", "sparse")


@pytest.fixture
def broken(artifact, tmp_path):
    """An artifact that is whole by its hashes and loads here, but fails in the server: see ``blind_here``."""
    folder = shutil.copytree(artifact, tmp_path / "broken")
    weights = load_file(folder / "weights.safetensors")
    weights["top.2.weight_scale"] *= 1.5
    save_file(weights, folder / "weights.safetensors")
    manifest = read_manifest(folder)
    hashes = manifest.sha256 | {"weights.safetensors": sha256(folder / "weights.safetensors")}
    write_manifest(folder, manifest.model_copy(update={"sha256": hashes}))
    return folder


@pytest.fixture
def blind_here(monkeypatch):
    """This process does not replay golden rows, as if it were a machine on which the model works."""
    from recpress.artifact import load as module

    monkeypatch.setattr(module, "check_golden", lambda *_: None)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Traffic:
    """Eight clients that send golden rows and note by which version's scores, and how slowly, they were answered."""

    def __init__(self, server, artifacts):
        self.server, self.failures, self.answers, self.slowest_s = server, [], [], 0.0
        manifest = read_manifest(artifacts[0])
        self.tolerance = manifest.golden.outlier_atol
        self.rows = {k: t.numpy() for k, t in read_golden(artifacts[0], manifest)[0].items()}
        tensors = {k: torch.from_numpy(v) for k, v in self.rows.items()}
        self.expected = [load(folder).score(tensors)["logit"].numpy() for folder in artifacts]
        assert np.abs(self.expected[0] - self.expected[1]).min() > 4 * self.tolerance
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(8)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)

    def _run(self, i):
        protocol = "grpc" if i % 2 else "http"
        with Client(self.server.url(protocol), protocol=protocol) as client:
            begin = i
            while not self.stop.is_set():
                part = slice(begin % 60, begin % 60 + 4)
                sent = time.monotonic()
                try:
                    got = client.score("small", {k: v[part] for k, v in self.rows.items()})["logit"][:, 0]
                    fits = [np.abs(got - want[part]).max() <= self.tolerance for want in self.expected]
                    self.answers.append(fits.index(True) if any(fits) else None)
                    self.slowest_s = max(self.slowest_s, time.monotonic() - sent)
                except Exception as error:
                    self.failures.append(repr(error))
                begin += 1

    def answered_by(self):
        """Which artifacts answer from now on; of the requests under way a version may still answer a few."""
        start = len(self.answers) + 16
        deadline = time.monotonic() + 30
        while len(self.answers) < start + 32:
            assert time.monotonic() < deadline, self.failures[:3]
            time.sleep(0.01)
        return set(self.answers[start:])


@pytest.mark.server
def test_roll_over_roll_back_and_a_broken_version_under_traffic(artifact, other, broken, tmp_path, request):
    repository = tmp_path / "repo"
    recpress.package(artifact, repository, name="small", max_batch_size=64)
    with Server(repository) as server, Traffic(server, [artifact, other]) as traffic:
        control = find_server(repository)
        assert control == server.control
        assert traffic.answered_by() == {0}

        assert (done := deploy(other, repository, name="small", server=control)).now == 2
        assert done.before == 1 and traffic.answered_by() == {1}
        assert traffic.slowest_s < done.seconds / 2, "nobody waits for a version to be loaded"

        begin = time.monotonic()
        done = rollback(repository, name="small", server=control)
        assert (done.before, done.now) == (2, 1) and done.seconds < 1 and time.monotonic() - begin < 1.5
        assert traffic.answered_by() == {0}

        before = tree(repository)
        request.getfixturevalue("blind_here")
        with pytest.raises(RepositoryError, match=r"version 3 of small .* version 1 serves on: .*golden rows"):
            deploy(broken, repository, name="small", server=control)
        assert tree(repository) == before and traffic.answered_by() == {0}
    assert not traffic.failures and None not in traffic.answers and len(traffic.answers) > 200


@pytest.mark.server
def test_a_new_model_and_refusals_of_a_running_server(server, repository, artifact, broken, other, request):
    """On the server that other tests use: its own model stays as it is."""
    control = server.control
    before = tree(repository)
    request.getfixturevalue("blind_here")
    with pytest.raises(RepositoryError, match=r"version 1 of fresh .*the model is not served: .*golden rows"):
        deploy(broken, repository, name="fresh", server=control)
    with pytest.raises(ServerError, match="another key"):
        deploy(other, repository, name="fresh", server=Control(control.address, "x" * 32))
    with pytest.raises(ServerError, match="cannot be reached"):
        deploy(other, repository, name="fresh", server=Control("127.0.0.1:1", "x" * 32))
    assert tree(repository) == before
    try:
        assert deploy(other, repository, name="fresh", server=control).before is None
        with Client(server.url("grpc")) as client:
            assert prove(client, repository / "fresh" / "1").ok and prove(client, repository / "small" / "1").ok
        with pytest.raises(RepositoryError, match="no version before 1"):
            rollback(repository, name="fresh", server=control)
    finally:
        control.unload("fresh")
        shutil.rmtree(repository / "fresh")


def test_only_files_where_no_server_runs(artifact, other, tmp_path):
    repository = tmp_path / "repo"
    run = CliRunner().invoke
    assert "in the repository" in run(app, ["deploy", str(artifact), str(repository), "--name", "m"]).output
    assert "version 2" in run(app, ["deploy", str(other), str(repository), "--name", "m"]).output
    assert served_versions(repository / "m") == [1, 2]
    deploy(artifact, repository, name="m")
    assert served_versions(repository / "m") == [2, 3] and versions_in(repository / "m") == [1, 2, 3]
    assert "version 2, is next to serve" in run(app, ["rollback", str(repository), "--name", "m"]).output
    assert served_versions(repository / "m") == [2] and (repository / "m" / ".withdrawn-3").is_dir()
    assert deploy(artifact, repository, name="m").now == 4
    assert rollback(repository, name="m").now == 2 and rollback(repository, name="m").now == 1
    with pytest.raises(RepositoryError, match="no version before 1; in its folder there is: 1"):
        rollback(repository, name="m")
    with pytest.raises(RepositoryError, match="no model 'absent'"):
        rollback(repository, name="absent")


def test_options_stay_those_of_the_version_before(artifact, tmp_path):
    recpress.package(artifact, tmp_path / "repo", name="m", max_batch_size=16, instances=2, queue_delay_us=7)
    deploy(artifact, tmp_path / "repo", name="m")
    config = read_config(tmp_path / "repo" / "m")
    assert (config.max_batch_size, config.instance_group[0].count) == (16, 2)
    assert config.dynamic_batching.max_queue_delay_microseconds == 7


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", ".hidden", "", "a\nb", "x" * 300])
@pytest.mark.parametrize("change", [rollback, lambda repository, **k: deploy(repository, repository, **k)])
def test_names_that_lead_elsewhere(tmp_path, name, change):
    with pytest.raises(RepositoryError, match="model name"):
        change(tmp_path / "repo", name=name)
    assert not list(tmp_path.iterdir())


def test_what_is_no_artifact(artifact, tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        deploy(tmp_path, tmp_path / "repo", name="m")
    forged = shutil.copytree(artifact, tmp_path / "forged")
    (forged / "graph.pt2").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        deploy(forged, tmp_path / "repo", name="m")
    assert not (tmp_path / "repo").exists()


def test_a_repository_that_cannot_be_made(artifact, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match=r"file/repo cannot be used as a model repository \(.*Not a directory"):
        deploy(artifact, tmp_path / "file" / "repo", name="m")


@pytest.mark.parametrize("again", [False, True])
def test_a_full_disk(artifact, tmp_path, again):
    """The system refuses to write beyond a size, as a full disk does."""
    if again:
        recpress.package(artifact, tmp_path / "repo", name="m")
    before = tree(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(RepositoryError, match=r"repo cannot be written \(File too large\); what was there is"):
            deploy(artifact, tmp_path / "repo", name="m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == before and {p.name for p in tmp_path.iterdir()} == ({"repo"} if again else set())


def test_one_at_a_time(artifact, tmp_path):
    recpress.package(artifact, tmp_path / "repo", name="m")
    with packaging.locked(tmp_path / "repo"), pytest.raises(RepositoryError, match="another process is changing"):
        deploy(artifact, tmp_path / "repo", name="m")


def test_what_a_killed_process_left_is_swept(artifact, tmp_path):
    model = recpress.package(artifact, tmp_path / "repo", name="m").parent
    (model / ".staging-dead").mkdir()
    deploy(artifact, tmp_path / "repo", name="m")
    assert not (model / ".staging-dead").exists()
