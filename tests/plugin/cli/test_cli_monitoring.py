"""The verbs exporter and dashboard: their options, what they refuse and how they end."""

import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from support.processes import free_port, wait_for
from typer.testing import CliRunner

import recpress
from recpress.cli.main import app
from recpress.serving.server import Server

PROMTOOL = shutil.which("promtool")


def command(*options):
    return CliRunner().invoke(app, [str(option) for option in options])


def refused(*options):
    """The message of what the command refuses."""
    done = command(*options)
    assert done.exit_code == 1, done.output
    return str(done.exception)


@pytest.fixture(scope="module")
def repository(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitored") / "repo"
    recpress.package(artifact, folder, name="small")
    return folder


@pytest.mark.server
def test_one_round_is_printed_and_fails_where_a_probe_does(repository):
    with Server(repository) as server:
        # The server that runs here on the repository is found.
        done = command("exporter", repository, "--once")
        assert done.exit_code == 0 and 'recpress_probe_success{model="small",version="1"} 1.0' in done.stdout
        assert "recpress_stubs{" in done.stdout
        if PROMTOOL:
            said = subprocess.run([PROMTOOL, "check", "metrics"], input=done.stdout, capture_output=True, text=True)
            assert said.returncode == 0, said.stdout + said.stderr
        named = command("exporter", repository, "--once", "--server", server.url("grpc"), "--model", "small")
        assert named.exit_code == 0
    gone = command("exporter", repository, "--once", "--server", server.url("grpc"), "--timeout", "2")
    assert gone.exit_code == 1 and 'recpress_probe_success{model="small",version="1"} 0.0' in gone.stdout
    assert "the round fails: small, version 1 (unreachable)" in str(gone.exception)


def test_what_the_exporter_refuses(repository, tmp_path):
    assert "no model repository" in refused("exporter", tmp_path / "absent", "--once")
    assert "holds no model absent; it holds small" in refused("exporter", repository, "--model", "absent")
    assert "leave one of them out" in refused("exporter", repository, "--once", "--proxy-log", "127.0.0.1:0")
    assert "'8004' is not HOST:PORT" in refused("exporter", repository, "--proxy-log", "8004")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        told = refused("exporter", repository, "--port", port, "--proxy-log", "127.0.0.1:0")
        assert f"cannot listen on 127.0.0.1:{port}" in told and "--port" in told
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as busy:
        busy.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        assert f"proxy's log on {address}" in refused("exporter", repository, "--port", 0, "--proxy-log", address)
    for wrong in (["--port", "70000"], ["--interval", "0"], ["--timeout", "0"], ["--nonsense"]):
        assert command("exporter", repository, *wrong).exit_code == 2


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_exporter_runs_until_a_signal(repository, tmp_path, number, code):
    port, log = free_port(), tmp_path / "log"
    options = ["--port", str(port), "--server", "127.0.0.1:1", "--timeout", "1", "--proxy-log", "127.0.0.1:0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "recpress.cli", "exporter", str(repository), *options],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(process, log, "metrics at http://127.0.0.1")
        wait_for(process, log, "small, version 1: ")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        assert "recpress_probe_success" in text and "recpress_proxy_log_lines_total 0.0" in text
        process.send_signal(number)
        assert process.wait(20) == code, log.read_text()
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert "Traceback" not in said and ("stopping" in said) == (number == signal.SIGINT)


def test_what_the_dashboard_refuses(tmp_path):
    output = ["--output", tmp_path / "x.png"]
    assert "no dashboard 'sales'; there are operators, owners" in refused("dashboard", *output, "--board", "sales")
    told = refused("dashboard", *output, "--prometheus", "http://127.0.0.1:1")
    assert "no Prometheus answers at http://127.0.0.1:1" in told and "http://host:port" in told
    assert "no Prometheus answers at nonsense" in refused("dashboard", *output, "--prometheus", "nonsense")
    assert command("dashboard").exit_code == 2 and command("dashboard", *output, "--minutes", "0").exit_code == 2
    assert not (tmp_path / "x.png").exists()
