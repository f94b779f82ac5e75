"""What dies comes back: stubs and servers that are really killed, under the supervisor."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.processes import processes_of, wait_for

import recpress
from recpress.artifact.load import read_golden
from recpress.artifact.manifest import read_manifest
from recpress.errors import ServerError
from recpress.serving.client import Client
from recpress.serving.control import find_server
from recpress.serving.processes import stubs_of
from recpress.serving.server import Server
from recpress.serving.supervisor import Limits, Supervisor

pytestmark = pytest.mark.server

QUICK = Limits(look_s=0.1, probe_s=0.5, probe_timeout_s=1.0, strikes=2)


class Watched:
    """A server of two instances with its supervisor in a thread; ``reports`` is what that said, with the time."""

    def __init__(self, artifact, folder, limits=QUICK):
        recpress.package(artifact, folder / "repo", name="small", instances=2, max_batch_size=64)
        begin = time.monotonic()
        self.server = Server(folder / "repo")
        self.server.start()
        self.load_s = time.monotonic() - begin
        self.reports, self.error = [], None
        self._supervisor = Supervisor(self.server, limits=limits, report=self._report)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._limits = limits
        self.scores = Scores(artifact, self.server)

    def _report(self, text):
        self.reports.append((time.monotonic(), text))

    def _run(self):
        try:
            while not self._stop.wait(self._limits.look_s):
                self._supervisor.look()
        except ServerError as error:
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(120)
        self.server.stop(5)  # it would wait half a minute for stubs that are killed

    def stubs(self):
        """Processes of the stubs that are alive."""
        return list(stubs_of(self.server.process.pid))

    def wait_for(self, text, seconds=60):
        """The time of the first report with ``text``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.error is None or text in str(self.error), self.error
            for when, said in list(self.reports):
                if text in said:
                    return when
            time.sleep(0.02)
        raise AssertionError(f"no report of {text!r} among {self.reports}")


class Scores:
    """Sends golden rows and tells right scores from wrong ones and failures."""

    def __init__(self, artifact, server):
        manifest = read_manifest(artifact)
        inputs, outputs = read_golden(artifact, manifest)
        self.server, self.tolerance = server, manifest.golden.outlier_atol
        self.rows = {name: t.numpy()[:4] for name, t in inputs.items()}
        self.want = outputs["logit"].numpy()[:4]

    def right(self, client):
        got = client.score("small", self.rows)["logit"][:, 0]
        assert np.abs(got - self.want).max() <= self.tolerance
        return True

    def until_right(self, seconds=60):
        """As a client that retries does: when the first right answer came."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with Client(self.server.url("grpc"), timeout_s=2) as client:
                    self.right(client)
                    return time.monotonic()
            except Exception:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_stubs_and_servers_that_are_killed_come_back(artifact, tmp_path):
    """The stated seconds are those of a machine that starts this server in 3 s; a busier one gets longer."""
    with Watched(artifact, tmp_path) as watched:
        server, ports, first = watched.server, watched.server.ports, watched.server.process.pid
        slow = max(1.0, watched.load_s / 3.0)

        # A stub, idle: noticed, and its version loaded again, while the other instance serves.
        killed = time.monotonic()
        os.kill(watched.stubs()[0], signal.SIGKILL)
        noticed = watched.wait_for("a stub of small, version 1, is gone")
        healed = watched.wait_for("small, version 1, is loaded again")
        assert noticed - killed < 1 * slow and healed - killed < 5 * slow
        assert server.process.pid == first, "the server went on"
        with Client(server.url("grpc")) as client:
            assert all(watched.scores.right(client) for _ in range(8)), "no instance fails"
        time.sleep(0.5)
        assert len([1 for _, text in watched.reports if "is gone" in text]) == 1, watched.reports

        # A stub that hangs: its requests time out, and the server is started again.
        watched.reports.clear()
        stopped = watched.stubs()
        for stub in stopped:
            os.kill(stub, signal.SIGSTOP)
        watched.wait_for("golden rows fail")
        watched.wait_for("serving again")
        assert server.ports == ports and server.process.pid != first
        assert not [pid for pid in stopped if Path(f"/proc/{pid}/cmdline").exists()]

        # The server under load: clients that retry lose nothing.
        watched.reports.clear()
        stop, lost, answered = threading.Event(), [], [0] * 4

        def retrying(i):
            while not stop.is_set():
                try:
                    watched.scores.until_right()
                    answered[i] += 1
                except AssertionError:
                    lost.append(i)

        clients = [threading.Thread(target=retrying, args=(i,)) for i in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.5)
        killed = time.monotonic()
        os.kill(server.process.pid, signal.SIGKILL)
        watched.wait_for("the server ended (signal 9)")
        watched.wait_for("serving again")
        assert watched.scores.until_right() - killed < 10 * slow
        before = sum(answered)
        time.sleep(0.5)
        stop.set()
        for client in clients:
            client.join(70)
        assert not lost and sum(answered) > before and server.ports == ports
        assert watched.error is None
        assert server.shared_memory()
    assert not server.shared_memory(), "what the killed server left is swept"


def test_stubs_that_are_killed_in_the_middle_of_requests(artifact, tmp_path):
    """Whether the server aborts or answers with an error: all know that they may send again, and are then answered."""
    with Watched(artifact, tmp_path, Limits(look_s=0.1, probe_s=600)) as watched:
        errors, ended, answered = [], [], []

        def send(protocol):
            try:
                with Client(watched.server.url(protocol), protocol=protocol, timeout_s=60) as client:
                    watched.scores.right(client)
            except Exception as error:
                errors.append(error)
            ended.append(time.monotonic())
            watched.scores.until_right()
            answered.append(protocol)

        stubs = watched.stubs()
        for stub in stubs:
            os.kill(stub, signal.SIGSTOP)
        clients = [threading.Thread(target=send, args=(protocol,)) for protocol in ("grpc", "http") * 3]
        for client in clients:
            client.start()
        time.sleep(0.5)
        assert len(stubs) == 2 and not ended, "all are under way"
        killed = time.monotonic()
        for stub in stubs:
            os.kill(stub, signal.SIGKILL)
        for client in clients:
            client.join(100)
        assert len(answered) == 6 and max(ended) - killed < 30, "well before their time-out"
        assert [type(error) for error in errors] == [ServerError] * 6, errors
        assert any("is loaded again" in text or "serving again" in text for _, text in watched.reports)
        with Client(watched.server.url("grpc")) as client:
            assert all(watched.scores.right(client) for _ in range(8)) and watched.error is None
        assert not set(watched.stubs()) & set(stubs)


def test_a_crash_loop_ends_with_an_error(artifact, tmp_path, monkeypatch):
    limits = Limits(look_s=0.05, restarts=1)
    with Watched(artifact, tmp_path, limits) as watched:
        (tmp_path / "repo" / "small" / "1" / "golden.safetensors").unlink()
        os.kill(watched.server.process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while watched.error is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "golden.safetensors is missing" in str(watched.error)
        assert "starts within 120 s: 1, which is the limit" in str(watched.error)
        assert [text for _, text in watched.reports if "starting it again (1 of 1)" in text]
    assert not watched.server.shared_memory()


def test_the_command_supervises(artifact, tmp_path):
    recpress.package(artifact, tmp_path / "repo", name="small")
    log, ports = tmp_path / "log", ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "recpress.cli", "serve", str(tmp_path / "repo"), "--supervise", *ports]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(process, log, "ready: small")
        (server,) = [pid for pid, line in processes_of(tmp_path).items() if "bin/tritonserver" in line]
        os.kill(server, signal.SIGKILL)
        wait_for(process, log, "supervisor: serving again after")
        control = find_server(tmp_path / "repo")
        assert [v.state for v in control.versions()] == ["READY"]
    finally:
        process.terminate()
        process.wait(60)
    assert not processes_of(tmp_path) and not list(Path("/dev/shm").glob(f"recpress_{process.pid}_*"))


def test_a_stub_is_counted_by_model_and_version(server):
    """On a server that nothing is done to: one stub, and none of a process that has none."""
    assert list(stubs_of(server.process.pid).values()) == [("small", 1)]
    assert not stubs_of(os.getpid())
