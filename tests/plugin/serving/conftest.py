"""One server for all tests that only send requests to it."""

import pytest
import torch
from support.small import small_inputs, small_model

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


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """A second artifact: other weights, so that its scores tell which version answered."""
    torch.manual_seed(1)
    model = small_model()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("other") / "artifact"
    compressed = recpress.compress(model, "int8")
    recpress.export(
        compressed, folder, example_inputs=small_inputs(32), input_names=("dense", "sparse"), output_names=("logit",)
    )
    return folder
