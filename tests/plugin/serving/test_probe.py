"""``recpress probe`` on the real server: its exit code is what Kubernetes acts on."""

import shutil

import pytest
from typer.testing import CliRunner

from recpress.cli.main import app
from recpress.errors import ProbeError, RepositoryError
from recpress.serving.client import Client
from recpress.serving.probe import probe_models

pytestmark = pytest.mark.server


def probe(*arguments):
    return CliRunner().invoke(app, ["probe", *map(str, arguments)])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_scores_as_stored(server, repository, protocol):
    flags = ["--http"] if protocol == "http" else []
    done = probe(repository, "--server", server.url(protocol), *flags)
    assert done.exit_code == 0 and "small, version 1: scores its golden rows as stored" in done.output


def test_another_models_scores_and_a_model_that_is_not_served(server, repository, tmp_path, artifact, other):
    """What the server serves is not what this repository says."""
    elsewhere = shutil.copytree(repository, tmp_path / "repo")
    shutil.copy(other / "golden.safetensors", elsewhere / "small" / "1")
    shutil.copy(other / "manifest.json", elsewhere / "small" / "1")
    shutil.copytree(repository / "small", elsewhere / "unserved")
    with Client(server.url("grpc")) as client:
        wrong, unserved = probe_models(client, elsewhere)
    assert "does not score its golden rows as stored" in wrong.problem and "unserved" in unserved.problem
    done = probe(elsewhere, "--server", server.url("grpc"), "--model", "small")
    assert isinstance(done.exception, ProbeError) and "small, version 1" in str(done.exception)


def test_nothing_to_reach_and_nothing_to_ask(server, repository, tmp_path):
    done = probe(repository, "--server", "127.0.0.1:1", "--timeout", "2")
    assert isinstance(done.exception, ProbeError) and "127.0.0.1:1" in done.output
    with Client(server.url("grpc")) as client:
        with pytest.raises(RepositoryError, match="holds no model absent"):
            probe_models(client, repository, ["absent"])
        with pytest.raises(RepositoryError, match="holds no model"):
            probe_models(client, tmp_path)
