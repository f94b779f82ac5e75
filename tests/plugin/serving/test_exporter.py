"""The exporter beside a real server: what it finds, and that a scrape never waits for it."""

import shutil
import threading

import pytest

from recpress.artifact.manifest import GOLDEN
from recpress.errors import RepositoryError
from recpress.serving.client import Client
from recpress.serving.exporter import Exporter


def value(exporter, name, **labels):
    return exporter.registry.get_sample_value(name, labels)


V = {"model": "small", "version": "1"}


@pytest.mark.server
def test_a_server_that_is_well(server, repository):
    exporter = Exporter(repository, lambda: Client(server.url("grpc")))
    exporter.go_round()
    assert value(exporter, "recpress_probe_success", **V) == 1
    assert value(exporter, "recpress_client_seconds_count", **V) == value(
        exporter, "recpress_probe_requests_total", **V
    )
    assert value(exporter, "recpress_stubs", **V) == value(exporter, "recpress_stubs_expected", **V) == 1
    assert value(exporter, "recpress_pss_bytes", process="stub", **V) > 50e6
    assert value(exporter, "recpress_version_state", state="served", **V) == 1
    assert value(exporter, "recpress_server_processes") == 1


@pytest.mark.server
def test_another_models_golden_rows_deviate_and_their_size_is_told(server, repository, other, tmp_path):
    wrong = tmp_path / "repo"
    shutil.copytree(repository / "small", wrong / "small")
    shutil.copy(other / GOLDEN, wrong / "small" / "1" / GOLDEN)
    said = []
    exporter = Exporter(wrong, lambda: Client(server.url("grpc")), report=said.append)
    exporter.go_round()
    exporter.go_round()
    assert value(exporter, "recpress_probe_success", **V) == 0
    deviation = value(exporter, "recpress_probe_golden_deviation", **V)
    assert deviation > value(exporter, "recpress_probe_golden_deviation_limit", **V) > 0
    assert value(exporter, "recpress_probe_failures_total", reason="deviates", **V) == 2
    assert len(said) == 1 and "do not score as stored" in said[0], "said once"
    assert value(exporter, "recpress_stubs", **V) == 0, "no server runs on that repository"


@pytest.fixture
def alone(artifact, tmp_path):
    import recpress

    recpress.package(artifact, tmp_path / "repo", name="small")
    return tmp_path / "repo"


def test_no_server(alone):
    exporter = Exporter(alone, lambda: Client("127.0.0.1:1", timeout_s=2))
    exporter.go_round()
    assert value(exporter, "recpress_probe_success", **V) == 0
    assert value(exporter, "recpress_probe_failures_total", reason="unreachable", **V) == 1


def test_a_scrape_does_not_wait_for_a_round(alone):
    begun, go_on = threading.Event(), threading.Event()

    def connect():
        begun.set()
        assert go_on.wait(30)
        return Client("127.0.0.1:1", timeout_s=1)

    exporter = Exporter(alone, connect)
    thread = threading.Thread(target=exporter.go_round)
    thread.start()
    try:
        assert begun.wait(30)
        assert value(exporter, "recpress_exporter_rounds_total") == 0
        assert value(exporter, "recpress_exporter_round_age_seconds") >= 0
    finally:
        go_on.set()
        thread.join()
    assert value(exporter, "recpress_exporter_rounds_total") == 1


def test_a_withdrawn_and_a_staged_version(alone):
    (alone / "small" / ".withdrawn-2").mkdir()
    (alone / "small" / ".staging-x").mkdir()
    exporter = Exporter(alone, lambda: Client("127.0.0.1:1", timeout_s=1))
    exporter.go_round()
    assert value(exporter, "recpress_version_state", model="small", version="2", state="withdrawn") == 1
    assert value(exporter, "recpress_version_state", model="small", version="x", state="staged") == 1


def test_a_repository_that_is_not_there_and_an_unknown_model(alone, tmp_path):
    with pytest.raises(RepositoryError, match="no model repository"):
        Exporter(tmp_path / "absent", lambda: None)
    with pytest.raises(RepositoryError, match="holds no model absent; it holds small"):
        Exporter(alone, lambda: None, models=["absent"])
