"""Old versions go, those in service stay."""

import pytest
from typer.testing import CliRunner

import recpress
from recpress.cli.main import app
from recpress.errors import RepositoryError
from recpress.serving.config import next_version, serve_versions, served_versions
from recpress.serving.control import Control, Version
from recpress.serving.retention import prune_versions, stored_versions
from recpress.serving.versions import rollback


@pytest.fixture
def repository(artifact, tmp_path):
    """Versions 1 to 5 of m: 5 is withdrawn, 4 in service, and so is 1."""
    for _ in range(5):
        recpress.package(artifact, tmp_path / "repo", name="m")
    rollback(tmp_path / "repo", name="m")
    serve_versions(tmp_path / "repo" / "m", [1, 4])
    return tmp_path / "repo"


def states(repository):
    return {s.version: s.state for s in stored_versions(repository, name="m")}


def test_those_in_service_and_the_newest_stay(repository):
    every = {1: "served", 2: "old", 3: "old", 4: "served", 5: "withdrawn"}
    assert states(repository) == every
    assert [s.version for s in prune_versions(repository, name="m", keep=1, dry_run=True)] == [2, 3]
    assert states(repository) == every
    assert [s.version for s in prune_versions(repository, name="m", keep=2)] == [2]
    assert [s.version for s in prune_versions(repository, name="m", keep=1)] == [3]
    assert prune_versions(repository, name="m", keep=1) == []
    assert states(repository) == {1: "served", 4: "served", 5: "withdrawn"}
    assert served_versions(repository / "m") == [1, 4] and next_version(repository / "m") == 6


def test_what_the_server_serves_stays_whatever_the_files_say(repository, monkeypatch):
    ready = [Version("m", 2, "READY"), Version("m", 3, "UNAVAILABLE"), Version("other", 5, "READY")]
    monkeypatch.setattr(Control, "versions", lambda self: ready)
    removed = prune_versions(repository, name="m", keep=1, server=Control("127.0.0.1:1", "x" * 16))
    assert [s.version for s in removed] == [3] and states(repository)[2] == "old"


def test_the_commands(repository):
    run = CliRunner().invoke
    words = [str(repository), "--name", "m"]
    listed = run(app, ["versions", *words]).output
    assert "m, version 4: served, 0." in listed
    assert "m, version 5: withdrawn" in listed
    dry = run(app, ["prune-versions", *words, "--keep", "1", "--dry-run"]).output
    assert "m, version 3, old, would be removed" in dry
    assert "m, version 3, old, is removed" in run(app, ["prune-versions", *words, "--keep", "1"]).output
    assert "nothing to remove" in run(app, ["prune-versions", *words, "--keep", "1"]).output
    assert run(app, ["prune-versions", *words, "--keep", "0"]).exit_code == 2


def test_deploying_removes_what_is_older(repository, artifact):
    run = CliRunner().invoke
    words = ["deploy", str(artifact), str(repository), "--name", "m"]
    assert run(app, [*words, "--keep", "0"]).exit_code == 2 and states(repository)[2] == "old"
    done = run(app, [*words, "--keep", "2"])
    assert done.exit_code == 0 and "m, version 6, is in the repository" in done.output
    assert all(f"m, version {old}, old, is removed" in done.output for old in (1, 2))
    assert states(repository) == {3: "old", 4: "served", 5: "withdrawn", 6: "served"}


def test_what_is_refused(repository):
    with pytest.raises(RepositoryError, match="keep is 0; give how many"):
        prune_versions(repository, name="m", keep=0)
    for name, text in (("absent", "no model 'absent'"), ("../m", "model name")):
        with pytest.raises(RepositoryError, match=text):
            prune_versions(repository, name=name, keep=1)
        with pytest.raises(RepositoryError, match=text):
            stored_versions(repository, name=name)
