"""The real server on loopback: scores, bad input, refusals, and what is left behind."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.processes import processes_of, wait_for
from support.small import small_inputs

import recpress
from recpress.artifact.manifest import read_manifest, sha256, write_manifest
from recpress.errors import ProbeError, RepositoryError, RequestError, ServerError
from recpress.serving import server as module
from recpress.serving.backend.metrics import PUBLISH_S
from recpress.serving.bundle import lay_out_backends
from recpress.serving.client import Client
from recpress.serving.metrics import EXECUTE_SECONDS, fetch_text, read_histogram
from recpress.serving.probe import replay_golden
from recpress.serving.server import ANY_PORTS, Ports, Server

pytestmark = pytest.mark.server


def shared_memory(pid):
    """Files of servers that process ``pid`` has started."""
    return sorted(Path("/dev/shm").glob(f"recpress_{pid}_*"))


@pytest.fixture(params=["grpc", "http"])
def client(server, request):
    with Client(server.url(request.param), protocol=request.param) as connected:
        yield connected


def wire(rows, seed=0):
    dense, sparse = small_inputs(rows, seed=seed)
    return {"dense": dense.numpy(), "sparse": sparse.numpy()}


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_golden_rows(client, artifact, batch):
    verdict = replay_golden(client, "small", artifact, batch=batch)
    assert verdict.ok and verdict.rows == 64 and verdict.beyond <= 8


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_scores_are_the_local_ones(client, artifact, rows):
    local = recpress.load(artifact)
    dense, sparse = small_inputs(rows, seed=5)
    want = local.score({"dense": dense, "sparse": sparse})["logit"].numpy()
    got = client.score("small", {"dense": dense.numpy(), "sparse": sparse.numpy()})["logit"]
    assert got.shape == (rows, 1) and got.dtype == np.float32
    assert np.abs(got[:, 0] - want).max() <= local.manifest.golden.outlier_atol


@pytest.mark.parametrize("rows, message", [(3, "row 2, column 1 is 7; allowed are 0 to 6"), (257, "256")])
def test_a_refusal_reaches_the_caller(client, rows, message):
    inputs = wire(rows)
    inputs["sparse"][2, 1] = 7
    with pytest.raises(RequestError, match=message):
        client.score("small", inputs)


def test_unknown_model_and_version(client):
    with pytest.raises(RequestError, match="'absent' is not found"):
        client.score("absent", wire(1))
    with pytest.raises(RequestError, match="version"):
        client.score("small", wire(1), version="9")


def test_one_bad_request_of_a_joined_batch_fails_alone(server, artifact):
    # The queue waits 20 ms, so that requests sent at once are joined into one batch.
    local = recpress.load(artifact)
    outcomes = {}

    def send(i):
        inputs = wire(2, seed=i)
        if i == 5:
            inputs["sparse"][1, 0] = 40
        with Client(server.url("grpc")) as own:
            barrier.wait()
            try:
                outcomes[i] = own.score("small", inputs)["logit"][:, 0]
            except RequestError as error:
                outcomes[i] = str(error)

    barrier = threading.Barrier(12)
    threads = [threading.Thread(target=send, args=(i,)) for i in range(12)]
    before = _executions(server)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert _executions(server) - before < 12, "the requests were joined"
    assert [i for i, outcome in outcomes.items() if isinstance(outcome, str)] == [5]
    assert "row 1, column 0 is 40" in outcomes[5]
    for i in set(range(12)) - {5}:
        dense, sparse = small_inputs(2, seed=i)
        want = local.score({"dense": dense, "sparse": sparse})["logit"].numpy()
        assert np.abs(outcomes[i] - want).max() <= local.manifest.golden.outlier_atol


def _executions(server):
    for line in fetch_text(server.url("metrics")).splitlines():
        if line.startswith('nv_inference_exec_count{model="small"'):
            return float(line.split()[-1])
    raise AssertionError("no execution count")


def test_latency_histogram_counts_requests(server):
    def read():
        return read_histogram(fetch_text(server.url("metrics")), EXECUTE_SECONDS, {"model": "small", "version": "1"})

    with Client(server.url("grpc")) as client:
        client.score("small", wire(1))
        time.sleep(3 * PUBLISH_S)  # what was answered is among the metrics that much later
        before = read()
        for _ in range(10):
            client.score("small", wire(3))
    deadline = time.monotonic() + 20
    while (new := read().since(before)).count < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert new.count == 10 and 0 < new.quantile(0.5) < 1 and 0 < new.total < 10


class ThroughFloat(torch.nn.Module):
    """Ids go through float, so that no bound can be proven, to a table that is kept and that torch alone checks."""

    def __init__(self):
        super().__init__()
        self.table, self.top = torch.nn.Embedding(30, 4), torch.nn.Linear(4, 1)

    def forward(self, ids):
        return self.top(self.table((ids[:, 0].float() * 1.0).long()))


def test_a_request_that_the_model_itself_fails_on_fails_alone_and_leaks_nothing(tmp_path):
    torch.manual_seed(0)
    model = recpress.compress(ThroughFloat(), "int8-linear")
    ids = torch.randint(0, 30, (16, 1))
    manifest = recpress.export(model, tmp_path / "a", example_inputs=(ids,), input_names=("ids",))
    assert manifest.inputs[0].table_high == (None,), "the bound is not known, so the backend cannot check it"
    recpress.package(tmp_path / "a", tmp_path / "repo", name="floats", queue_delay_us=20_000)
    outcomes = {}
    with Server(tmp_path / "repo") as running:

        def send(i):
            with Client(running.url("grpc")) as own:
                barrier.wait()
                try:
                    outcomes[i] = own.score("floats", {"ids": np.array([[1000 if i == 2 else i]])})["output"]
                except RequestError as error:
                    outcomes[i] = str(error)

        barrier = threading.Barrier(6)
        threads = [threading.Thread(target=send, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(outcomes) == list(range(6))
    assert [i for i, outcome in outcomes.items() if isinstance(outcome, str)] == [2]
    assert "an index is outside its table" in outcomes[2]
    assert "Traceback" not in outcomes[2] and ".py" not in outcomes[2]


def test_scores_that_the_backend_perturbs_are_caught(repository, artifact, monkeypatch):
    """The control of every comparison above: a backend whose scores are a little off must fail them."""

    def perturbed(bundle, folder):
        lay_out_backends(bundle, folder)
        path = folder / "recpress" / "model.py"
        text = path.read_text()
        assert "to_dlpack(output)" in text
        path.write_text(text.replace("to_dlpack(output)", "to_dlpack(output + 1e-2)"))

    monkeypatch.setattr(module, "lay_out_backends", perturbed)
    with Server(repository) as running:
        for protocol in ("grpc", "http"):
            with (
                Client(running.url(protocol), protocol=protocol) as client,
                pytest.raises(ProbeError, match="64 of 64 rows beyond the tolerance, by up to 0.01"),
            ):
                replay_golden(client, "small", artifact)


def test_weights_that_score_otherwise_do_not_become_ready(artifact, tmp_path):
    """A scale that changed, with hashes made to agree: the golden rows refuse it, inside the server."""
    version = recpress.package(artifact, tmp_path / "repo", name="small")
    weights = load_file(version / "weights.safetensors")
    weights["top.2.weight_scale"] *= 1.01
    save_file(weights, version / "weights.safetensors")
    manifest = read_manifest(version)
    hashes = manifest.sha256 | {"weights.safetensors": sha256(version / "weights.safetensors")}
    write_manifest(version, manifest.model_copy(update={"sha256": hashes}))
    with pytest.raises(ServerError, match=r"model small, version 1: .*golden rows"):
        Server(tmp_path / "repo").start()
    assert not processes_of(tmp_path)


def test_an_artifact_that_is_cut_short_is_named(artifact, tmp_path):
    version = recpress.package(artifact, tmp_path / "repo", name="small")
    (version / "golden.safetensors").unlink()
    with pytest.raises(ServerError, match=r"model small, version 1: .*golden.safetensors is missing"):
        Server(tmp_path / "repo").start()


def test_a_busy_port_is_named(repository):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"the grpc port {port} on 127.0.0.1 cannot be used.*--grpc-port"):
            Server(repository, ports=Ports(0, port, 0)).start()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p / "x").mkdir(parents=True)])
def test_no_repository_or_no_model(tmp_path, make):
    make(tmp_path / "repo")
    with pytest.raises(RepositoryError, match="recpress package"):
        Server(tmp_path / "repo").start()


def test_time_to_become_ready_is_bounded(artifact, tmp_path):
    recpress.package(artifact, tmp_path / "repo", name="small")
    with pytest.raises(ServerError, match="not ready after 0 s"):
        Server(tmp_path / "repo", ready_timeout_s=0.01).start()
    assert not processes_of(tmp_path)


def test_no_server_to_reach():
    for protocol in ("grpc", "http"):
        with (
            Client("127.0.0.1:1", protocol=protocol, timeout_s=2) as client,
            pytest.raises(ServerError, match=r"127\.0\.0\.1:1"),
        ):
            client.score("small", wire(1))


def test_stop_leaves_no_process_no_shared_memory_and_no_file(repository):
    before = set(shared_memory(os.getpid()))
    server = Server(repository, ports=ANY_PORTS)
    server.start()
    folder = server._folder
    try:
        assert processes_of(folder) and set(shared_memory(os.getpid())) - before
    finally:
        server.stop()
        server.stop()
    assert not processes_of(folder) and not folder.exists()
    assert set(shared_memory(os.getpid())) <= before


def start_serving(repository, log):
    """``recpress serve`` as a user starts it, on free ports; what it prints goes to ``log``.

    Its temporary files are beside ``log``, where no other server of this machine sweeps.
    """
    command = [sys.executable, "-m", "recpress.cli", "serve", str(repository)]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with log.open("wb") as output:
        env = os.environ | {"TMPDIR": str(log.parent)}
        return subprocess.Popen([*command, *ports], stdout=output, stderr=subprocess.STDOUT, env=env)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["loading", "ready"])
def test_serve_in_the_foreground_stops_on_a_signal(artifact, tmp_path, number, when):
    recpress.package(artifact, tmp_path / "repo", name="small")
    log = tmp_path / "log"
    process = start_serving(tmp_path / "repo", log)
    wait_for(process, log, "loading: small" if when == "loading" else "ready: small")
    process.send_signal(number)
    code = process.wait(40)
    assert code in ((0, 128 + number) if when == "ready" else (1, 128 + number))
    assert not processes_of(tmp_path) and not shared_memory(process.pid)


def test_a_killed_parent_takes_the_server_with_it(artifact, tmp_path, monkeypatch):
    recpress.package(artifact, tmp_path / "repo", name="small")
    log = tmp_path / "log"
    process = start_serving(tmp_path / "repo", log)
    wait_for(process, log, "ready: small")
    assert len(processes_of(tmp_path)) >= 2, "the command and its server"
    process.kill()
    process.wait(10)
    deadline = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(tmp_path)
    (left,) = tmp_path.glob(f"recpress-server-{process.pid}-*")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module.sweep()
    assert not left.exists() and not shared_memory(process.pid)
