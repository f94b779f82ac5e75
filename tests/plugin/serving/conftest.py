"""One server for all tests that only send requests to it."""

import pytest

import recpress
from recpress.serving.server import Server


@pytest.fixture(scope="session")
def repository(artifact, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "repo"
    # Requests sent within 20 ms are joined, so that a bad one has neighbours.
    recpress.package(artifact, path, name="small", max_batch_size=256, queue_delay_us=20_000)
    return path


@pytest.fixture(scope="session")
def server(repository):
    with Server(repository) as running:
        yield running
