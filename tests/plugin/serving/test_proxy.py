"""The shipped nginx configuration before the real server: how many it lets through, and what it says to the rest."""

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.processes import free_port
from support.raw_requests import http_body, send_grpc, send_http, tensor
from typer.testing import CliRunner

from recpress.cli import doctor
from recpress.cli.main import app
from recpress.errors import OverloadError, ServerError
from recpress.serving import proxy as module
from recpress.serving.client import AsyncClient, Client
from recpress.serving.probe import replay_golden
from recpress.serving.proxy import Proxy, Route, nginx_config

SHIPPED = Path(__file__).resolve().parents[3] / "deploy" / "nginx" / "recpress.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
LIMIT = 3
ARRAYS = {"dense": np.ones((2, 5), np.float32), "sparse": np.ones((2, 4), np.int64)}
INPUTS = [tensor("dense", "FP32", ARRAYS["dense"]), tensor("sparse", "INT64", ARRAYS["sparse"])]
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def routes(server_http, server_grpc):
    return {
        "http": Route(f"127.0.0.1:{free_port()}", server_http),
        "grpc": Route(f"127.0.0.1:{free_port()}", server_grpc),
    }


class Slow:
    """A server that takes connections and never answers: what is sent to it stays under way."""

    def __enter__(self):
        self._listener, self._taken = socket.create_server(("127.0.0.1", 0)), []
        self._listener.settimeout(20)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        return self

    def take(self, count):
        """Wait until ``count`` requests have come, each by a connection of the proxy's."""
        while len(self._taken) < count:
            self._taken.append(self._listener.accept()[0])

    def __exit__(self, *_):
        for taken in (*self._taken, self._listener):
            taken.close()


@pytest.fixture(scope="module")
def proxied(server):
    """Addresses by protocol of a proxy before the server."""
    made = routes(server.url("http"), server.url("grpc"))
    with Proxy(nginx_config(limit=LIMIT, deadline_s=1, **made)):
        yield {protocol: route.listen for protocol, route in made.items()}


def at_once(address, protocol, count):
    """What becomes of ``count`` requests sent at once: "scored", or the error; and how long the refusals took."""

    async def one(client):
        begin = time.monotonic()
        try:
            await client.score("small", ARRAYS)
        except OverloadError as error:
            return str(error), time.monotonic() - begin
        return "scored", 0.0

    async def several():
        async with AsyncClient(address, protocol=protocol, timeout_s=20) as client:
            return await asyncio.gather(*(one(client) for _ in range(count)))

    return asyncio.run(several())


@needs_nginx
@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
class TestBeforeTheServer:
    def test_golden_rows(self, proxied, protocol, artifact):
        with Client(proxied[protocol], protocol=protocol) as client:
            assert replay_golden(client, "small", artifact, batch=7).ok

    def test_as_many_as_the_limit_are_let_through(self, proxied, protocol):
        # The server waits 20 ms for requests to join: all of these are there at once, over gRPC on one connection.
        outcomes = at_once(proxied[protocol], protocol, 12)
        refusals = [text for text, _ in outcomes if text != "scored"]
        assert LIMIT <= len(outcomes) - len(refusals) <= 2 * LIMIT
        assert all(f"overloaded: the proxy lets {LIMIT} requests through" in text for text in refusals)
        assert at_once(proxied[protocol], protocol, 1)[0][0] == "scored", "and then there is room again"

    def test_the_servers_own_refusals_pass(self, proxied, protocol):
        bad = [INPUTS[0], tensor("sparse", "INT64", np.full((2, 4), 10**6))]
        past = {"deadline_unix_us": int(time.time() * 1e6) - 1000}
        if protocol == "grpc":
            found = send_grpc(proxied["grpc"], bad), send_grpc(proxied["grpc"], INPUTS, parameters=past)
            assert [status for status, _ in found] == [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE]
        else:
            address = proxied["http"]
            found = (
                send_http(address, *http_body(bad)),
                send_http(address, *http_body(INPUTS, parameters=past)),
            )
            assert [status for status, _ in found] == [400, 503]
        assert "row 0, column 0 is 1000000" in found[0][1] and "deadline passed" in found[1][1]


@needs_nginx
@pytest.mark.server
def test_health_and_metadata_pass_and_control_does_not(proxied):
    base = f"http://{proxied['http']}/v2"
    for path in ("/health/ready", "/health/live", "/models/small", "/models/small/ready", "", "/models/small/config"):
        with urllib.request.urlopen(base + path, timeout=20) as answer:
            assert answer.status == 200
    for path in ("/repository/index", "/systemsharedmemory/status", "/trace/setting", "/logging", "/../metrics"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(base + path, b"{}"), timeout=20)
        assert caught.value.code in (400, 404), path
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(proxied["grpc"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=20).ready
        assert stub.ModelReady(service_pb2.ModelReadyRequest(name="small"), timeout=20).ready
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@needs_nginx
def test_both_protocols_share_one_count():
    with Slow() as slow:
        made = routes(slow.address, slow.address)
        with Proxy(nginx_config(limit=2, deadline_s=1, **made)):
            holders = [
                threading.Thread(target=_ignore, args=(send_http, made["http"].listen, *http_body(INPUTS))),
                threading.Thread(target=_ignore, args=(send_grpc, made["grpc"].listen, INPUTS)),
            ]
            for holder in holders:
                holder.start()
            slow.take(2)
            begin = time.monotonic()
            status, text = send_http(made["http"].listen, *http_body(INPUTS))
            assert status == 503 and "overloaded: the proxy lets 2 requests through" in text
            status, text = send_grpc(made["grpc"].listen, INPUTS)
            assert status is grpc.StatusCode.UNAVAILABLE and "overloaded: the proxy lets 2 requests" in text
            assert time.monotonic() - begin < 8, "not after the holders' answers, which never come"
    for holder in holders:
        holder.join(30)


@needs_nginx
def test_who_hangs_up_over_http_still_counts_since_the_server_still_works_on_it():
    body, length = http_body(INPUTS)
    head = f"POST /v2/models/small/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += f"Inference-Header-Content-Length: {length}\r\n\r\n"
    with Slow() as slow:
        made = routes(slow.address, slow.address)
        with Proxy(nginx_config(limit=1, deadline_s=1, **made)):
            host, port = made["http"].listen.split(":")
            with socket.create_connection((host, int(port)), timeout=20) as gone:
                gone.sendall(head.encode() + body)
                slow.take(1)
            time.sleep(0.3)
            assert send_http(made["http"].listen, body, length)[0] == 503


def _ignore(send, *arguments):
    with contextlib.suppress(OSError):
        send(*arguments)


@needs_nginx
def test_a_server_that_is_gone_is_unavailable_but_not_overloaded():
    made = routes("127.0.0.1:1", "127.0.0.1:1")
    with Proxy(nginx_config(limit=2, deadline_s=1, **made)):
        for protocol, route in made.items():
            with Client(route.listen, protocol=protocol, timeout_s=20) as client, pytest.raises(ServerError) as caught:
                client.score("small", ARRAYS)
            assert "the proxy cannot reach the server" in str(caught.value)
            assert not isinstance(caught.value, OverloadError)


@needs_nginx
def test_stop_leaves_nothing_and_a_busy_port_is_told():
    with Slow() as slow:
        proxy = Proxy(nginx_config(limit=2, deadline_s=1, **routes(slow.address, slow.address)))
        proxy.start()
        folder, process = proxy._folder, proxy.process
        proxy.stop()
        proxy.stop()
        assert process.poll() is not None and not folder.exists()
        busy = {"http": Route(slow.address, slow.address), "grpc": Route(f"127.0.0.1:{free_port()}", slow.address)}
        with pytest.raises(ServerError, match=r"nginx cannot listen on 127.0.0.1:\d+ \(Address already in use"):
            Proxy(nginx_config(limit=2, deadline_s=1, **busy)).start()
    wrong = nginx_config(limit=2, deadline_s=1, **routes("a:1", "b:1")).replace("limit_conn_status 503;", "nonsense;")
    broken = Proxy(wrong)
    with pytest.raises(ServerError, match='nginx does not start.*unknown directive "nonsense"'):
        broken.start()
    assert not broken._folder.exists()


@needs_nginx
def test_the_shipped_configuration_is_taken_by_nginx(tmp_path):
    text = re.sub(r"listen \S+:\d+", lambda _: f"listen 127.0.0.1:{free_port()}", SHIPPED.read_text())
    (tmp_path / "nginx.conf").write_text(text)
    command = [NGINX, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0 and "test is successful" in checked.stderr and "warn" not in checked.stderr
    (tmp_path / "nginx.conf").write_text(text.replace("limit_conn_status 503;", "limit_conn_status;"))
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0, "the control"


def command(*options):
    return CliRunner().invoke(app, ["proxy", *options])


def test_the_shipped_configuration_is_what_the_command_prints():
    printed = command("--deadline-ms", "100", "--batch", "8", "--batch-ms", "20")
    assert printed.exit_code == 0 and printed.stdout == SHIPPED.read_text()
    assert printed.stdout.count("limit_conn recpress 24;") == 2


def test_the_command_takes_addresses_and_a_limit():
    printed = command("--deadline-ms", "2000", "--limit", "7", "--http", "0.0.0.0:80", "--server-grpc", "triton:8001")
    assert printed.exit_code == 0
    for line in ("limit_conn recpress 7;", "listen 0.0.0.0:80 ", "server triton:8001;", "proxy_read_timeout 20s;"):
        assert line in printed.stdout


@pytest.mark.parametrize(
    "options, says",
    [
        ([], "no limit: give --batch and --batch-ms"),
        (["--batch", "8", "--batch-ms", "80"], "deadline of 100 ms is too short for batches of 80 ms"),
        (["--limit", "0"], "limit=0"),
        (["--limit", "3", "--http", "127.0.0.1"], "address '127.0.0.1' is not HOST:PORT"),
        (["--limit", "3", "--grpc", "a:1; include /etc/passwd"], "is not HOST:PORT"),
        (["--limit", "3", "--server-http", "a b:70"], "is not HOST:PORT"),
        (["--limit", "3", "--server-http", "a:70000"], "is not HOST:PORT"),
    ],
)
def test_what_cannot_be_configured_is_told(options, says):
    refused = command("--deadline-ms", "100", *options)
    assert refused.exit_code == 1 and says in str(refused.exception)


def test_no_nginx_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    with pytest.raises(Exception, match="apt-get install nginx"):
        Proxy(nginx_config(limit=2, deadline_s=1)).start()
    (found,) = doctor._nginx()
    assert found.ok is None and "apt-get install nginx" in found.remedy


@needs_nginx
def test_the_doctor_knows_nginx():
    (found,) = doctor._nginx()
    assert found.ok and found.found.startswith(NGINX) and re.search(r" \d+\.\d+\.\d+", found.found)
