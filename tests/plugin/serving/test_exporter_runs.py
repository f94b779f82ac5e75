"""The exporter as it runs: its loop and what ends it, and a server that dies or hangs while a round is under way."""

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
import urllib.request

import pytest
from support.processes import free_port, open_sockets

import recpress
from recpress.errors import ServerError
from recpress.serving.client import Client
from recpress.serving.exporter import Exporter, export_until_stopped
from recpress.serving.processes import serving
from recpress.serving.server import Server

V = {"model": "small", "version": "1"}


def value(exporter, name, **labels):
    return exporter.registry.get_sample_value(name, labels)


def scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return answer.read().decode()


@pytest.fixture
def alone(artifact, tmp_path):
    recpress.package(artifact, tmp_path / "repo", name="small")
    return tmp_path / "repo"


def nobody():
    return Client("127.0.0.1:1", timeout_s=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_goes_round_and_answers_until_a_signal_and_leaves_nothing(alone, number):
    exporter, port, seen = Exporter(alone, nobody), free_port(), []

    def terminated(*_):
        raise SystemExit(143)

    def watch():
        try:
            deadline = time.monotonic() + 60
            while len(seen) < 3 and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    seen.append(scraped(port))
                rounds = value(exporter, "recpress_exporter_rounds_total")
                while value(exporter, "recpress_exporter_rounds_total") < rounds + 1 and time.monotonic() < deadline:
                    time.sleep(0.02)
        finally:
            os.kill(os.getpid(), number)

    exporter.go_round()  # what a first connection opens for good is open
    threads, sockets = set(threading.enumerate()), open_sockets()
    before = signal.signal(signal.SIGTERM, terminated)
    watching = threading.Thread(target=watch)
    try:
        watching.start()
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            export_until_stopped(exporter, host="127.0.0.1", port=port, interval_s=0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
        watching.join(60)
    rounds = [
        float(line.split()[1])
        for text in seen
        for line in text.splitlines()
        if line.startswith("recpress_exporter_rounds_total")
    ]
    assert len(rounds) == 3 and rounds[0] < rounds[1] < rounds[2]
    assert "recpress_probe_success" in seen[-1]
    deadline = time.monotonic() + 10
    while (set(threading.enumerate()) - threads or open_sockets() - sockets) and time.monotonic() < deadline:
        time.sleep(0.05)  # of the last scrape, or of gRPC
    assert not set(threading.enumerate()) - threads and not open_sockets() - sockets
    socket.create_server(("127.0.0.1", port)).close()


def test_a_busy_port_is_told(alone):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(
            ServerError, match=f"cannot listen on 127.0.0.1:{port} .Address already in use.; give another"
        ):
            export_until_stopped(Exporter(alone, nobody), host="127.0.0.1", port=port, interval_s=1)


def test_a_model_that_cannot_be_read_does_not_hide_the_others(alone):
    shutil.copytree(alone / "small", alone / "broken")
    (alone / "broken" / "config.pbtxt").write_text("nonsense {")
    said = []
    exporter = Exporter(alone, nobody, report=said.append)
    found = exporter.go_round()
    assert "cannot be read as a model's configuration" in found.problem
    assert [(p.model, p.reason) for p in found.probes] == [("small", "unreachable")]
    assert value(exporter, "recpress_probe_success", **V) == 0
    shutil.rmtree(alone)
    assert "no model repository" in exporter.go_round().problem and not exporter.latest.probes


@pytest.fixture(scope="module")
def running(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dies") / "repo"
    recpress.package(artifact, folder, name="small", instances=2)
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop(3)


@pytest.mark.server
class TestAServerThatDies:
    """In the middle of a round, and one that hangs; with two instances a probe is two requests."""

    def exporter(self, server, answered=lambda: None, timeout_s=2.0):
        class Watched(Client):
            def score(self, *given, **named):
                found = super().score(*given, **named)
                answered()
                return found

        said = []
        exporter = Exporter(
            server.repository, lambda: Watched(server.url("grpc"), timeout_s=timeout_s), report=said.append
        )
        return exporter, said

    def is_well(self, exporter):
        exporter.go_round()
        assert value(exporter, "recpress_probe_success", **V) == 1
        assert value(exporter, "recpress_stubs", **V) == 2 and value(exporter, "recpress_server_processes") == 1
        assert value(exporter, "recpress_pss_bytes", process="server", model="", version="") > 1e6

    def is_gone(self, exporter):
        assert value(exporter, "recpress_probe_success", **V) == 0
        assert value(exporter, "recpress_stubs", **V) == 0 and value(exporter, "recpress_stubs_expected", **V) == 2
        assert value(exporter, "recpress_server_processes") == 0
        names = {s.name for family in exporter.registry.collect() for s in family.samples}
        assert not names & {"recpress_pss_bytes", "recpress_cpu_seconds_total"}

    def test_between_two_requests_of_a_probe(self, running):
        killed = []

        def kill():
            if not killed:
                killed.append(running.process.pid)
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait(30)

        exporter, said = self.exporter(running, kill)
        begin = time.monotonic()
        exporter.go_round()
        assert killed and time.monotonic() - begin < 10
        assert value(exporter, "recpress_probe_failures_total", **V, reason="unreachable") == 1
        assert value(exporter, "recpress_probe_requests_total", **V) == 1, "the first one was answered"
        self.is_gone(exporter)
        running.restart()
        self.is_well(exporter)
        assert len(said) == 2 and "does not answer" in said[0] and said[1].endswith("as it should be again")

    def test_while_a_request_is_under_way_and_rounds_go_on(self, running):
        exporter, _ = self.exporter(running, timeout_s=30)
        self.is_well(exporter)
        for stub in [p.pid for p in serving(running.repository) if p.version is not None]:
            os.kill(stub, signal.SIGSTOP)
        rounds = threading.Thread(target=exporter.go_round)
        rounds.start()
        time.sleep(0.5)
        assert rounds.is_alive(), "it waits for the stub"
        assert value(exporter, "recpress_probe_success", **V) == 1, "a scrape says what the last round found"
        os.killpg(running.process.pid, signal.SIGKILL)
        rounds.join(20)
        assert not rounds.is_alive(), "well before the time-out"
        assert value(exporter, "recpress_probe_failures_total", **V, reason="unreachable") == 1
        running.process.wait(30)
        exporter.go_round()
        self.is_gone(exporter)
        running.restart()
        self.is_well(exporter)

    def test_a_server_that_hangs_ends_no_round_late(self, running):
        exporter, _ = self.exporter(running, timeout_s=1.0)
        self.is_well(exporter)
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            exporter.go_round()
            assert time.monotonic() - begin < 10
            assert value(exporter, "recpress_probe_success", **V) == 0
            assert value(exporter, "recpress_probe_failures_total", **V, reason="unreachable") == 1
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        self.is_well(exporter)
