"""Latency at the proxy as a metric: lines of the real nginx before the real server, and what else may come."""

import contextlib
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.processes import free_port, open_sockets
from support.raw_requests import http_body, send_grpc, send_http, tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc

from recpress.errors import ServerError
from recpress.serving.metrics import read_histogram
from recpress.serving.proxy import Proxy, Route, nginx_config
from recpress.serving.proxy_log import SECONDS, ProxyLog, outcome_of

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
PROMTOOL = shutil.which("promtool")
GOOD = [
    tensor("dense", "FP32", np.ones((2, 5), np.float32)),
    tensor("sparse", "INT64", np.ones((2, 4), np.int64)),
]
BAD = [GOOD[0], tensor("sparse", "INT64", np.full((2, 4), 10**6))]
LINE = "<190>Nov 24 18:41:49 recpress: "


class Taken:
    """A log that is taken, and what its metrics say."""

    def __init__(self, repository, address="127.0.0.1:0"):
        self.log = ProxyLog(address, repository)
        self.registry = CollectorRegistry()

    def __enter__(self):
        self.log.__enter__()
        self.registry.register(self.log)
        return self

    def __exit__(self, *_):
        self.log.__exit__()

    def send(self, *datagrams):
        host, _, port = self.log.address.rpartition(":")
        with socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for datagram in datagrams:
                sender.sendto(
                    datagram if isinstance(datagram, bytes) else datagram.encode(), (host.strip("[]"), int(port))
                )

    def value(self, name, **labels):
        return self.registry.get_sample_value(name, labels) or 0

    def until(self, lines):
        """Wait until that many lines have come."""
        deadline = time.monotonic() + 30
        while self.value("recpress_proxy_log_lines_total") < lines:
            assert time.monotonic() < deadline, generate_latest(self.registry).decode()
            time.sleep(0.02)

    def outcomes(self):
        """Requests by model, protocol and outcome."""
        return {
            (s.labels["model"], s.labels["protocol"], s.labels["outcome"]): int(s.value)
            for family in self.registry.collect()
            for s in family.samples
            if s.name == "recpress_proxy_seconds_count"
        }


@pytest.fixture
def taken(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.pbtxt").touch()
    with Taken(tmp_path) as started:
        yield started


@contextlib.contextmanager
def proxy(log, http, grpc, **options):
    made = {"http": Route(f"127.0.0.1:{free_port()}", http), "grpc": Route(f"127.0.0.1:{free_port()}", grpc)}
    with Proxy(nginx_config(**({"limit": 8, "deadline_s": 1} | options), **made, log=log)) as running:
        yield made["http"].listen, made["grpc"].listen, running


@needs_nginx
@pytest.mark.server
def test_requests_of_both_protocols_before_the_real_server(server, repository):
    past = {"deadline_unix_us": int(time.time() * 1e6) - 1000}
    with (
        Taken(repository) as taken,
        proxy(taken.log.address, server.url("http"), server.url("grpc")) as (http, over_grpc, _),
    ):
        begin = time.monotonic()
        for _ in range(5):
            assert send_http(http, *http_body(GOOD))[0] == 200
            assert send_grpc(over_grpc, GOOD)[0] is grpc.StatusCode.OK
        assert send_http(http, *http_body(GOOD), version="1")[0] == 200
        took = time.monotonic() - begin
        assert send_http(http, b"{", 1)[0] == 500
        for inputs, parameters in ((BAD, None), (GOOD, past)):
            send_http(http, *http_body(inputs, parameters=parameters))
            send_grpc(over_grpc, inputs, parameters=parameters)
        assert send_http(http, *http_body(GOOD), model="made%20up")[0] == 404
        taken.until(16)
        text = generate_latest(taken.registry).decode()
        assert taken.outcomes() == {
            ("small", "http", "ok"): 6,
            ("", "grpc", "ok"): 5,
            ("small", "http", "refused"): 1,
            ("", "grpc", "refused"): 1,
            ("", "http", "refused"): 1,
            ("small", "http", "failed"): 1,
            ("small", "http", "unavailable"): 1,
            ("", "grpc", "unavailable"): 1,
        }
        assert not taken.value("recpress_proxy_log_parse_errors_total")
        # The server waits 20 ms for others to join a request.
        ok = read_histogram(text, "recpress_proxy_seconds", {"outcome": "ok"})
        waited = read_histogram(text, "recpress_proxy_upstream_seconds", {})
        assert waited.count == ok.count == 11 and 11 * 0.018 < waited.total <= ok.total + 0.011 and ok.total < took
        assert 0.018 < ok.quantile(0.5) < took
    if PROMTOOL:
        checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_nginx
def test_what_never_reaches_the_server_or_is_given_up(taken):
    """A server that takes connections and never answers; then none at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with proxy(taken.log.address, address, address, limit=1) as (http, over_grpc, _):
            with grpc.insecure_channel(over_grpc) as channel:
                given_up = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(
                    service_pb2.ModelInferRequest(model_name="small")
                )
                connection, _ = listener.accept()
                assert send_http(http, *http_body(GOOD))[0] == 503
                assert send_grpc(over_grpc, GOOD)[0] is grpc.StatusCode.UNAVAILABLE
                given_up.cancel()
                taken.until(3)
            connection.close()
    with proxy(taken.log.address, "127.0.0.1:1", "127.0.0.1:1") as (http, over_grpc, _):
        assert send_http(http, *http_body(GOOD))[0] == 502
        assert send_grpc(over_grpc, GOOD)[0] is grpc.StatusCode.UNAVAILABLE
        taken.until(5)
    assert taken.outcomes() == {
        ("small", "http", "rejected"): 1,
        ("", "grpc", "rejected"): 1,
        ("", "grpc", "cancelled"): 1,
        ("small", "http", "unreachable"): 1,
        ("", "grpc", "unreachable"): 1,
    }
    assert not taken.value("recpress_proxy_log_parse_errors_total")


@needs_nginx
def test_a_log_that_nobody_takes_is_no_error():
    with proxy(f"127.0.0.1:{free_port()}", "127.0.0.1:1", "127.0.0.1:1") as (http, _, running):
        for _ in range(20):
            assert send_http(http, *http_body(GOOD))[0] == 502
        said = (running._folder / "nginx.log").read_text()
    assert said.count("connect() failed") == 20 and "syslog" not in said and "send() failed" not in said


@needs_nginx
def test_only_inference_is_logged(taken):
    with proxy(taken.log.address, "127.0.0.1:1", "127.0.0.1:1") as (http, _, _):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://{http}/v2/health/ready", timeout=20)
        assert send_http(http, *http_body(GOOD))[0] == 502
        taken.until(1)
    assert sum(taken.outcomes().values()) == 1


def test_a_thousand_lines_are_counted_by_their_buckets(taken):
    # As nginx writes them; 1 of 100 takes 40 ms.
    lines = [f"{LINE}http 200 200 -- 0.{40 if i % 100 == 0 else i % 2 + 1:03d} 0.001 small" for i in range(1000)]
    taken.send(*lines)
    taken.until(1000)
    histogram = read_histogram(generate_latest(taken.registry).decode(), "recpress_proxy_seconds", {"model": "small"})
    by_bound = dict(zip(histogram.bounds, histogram.counts, strict=True))
    assert histogram.bounds[:-1] == SECONDS
    assert (by_bound[0.0005], by_bound[0.0015], by_bound[0.0025], by_bound[0.0305], by_bound[0.0505]) == (
        0, 490, 990, 990, 1000,
    )  # fmt: skip
    assert histogram.total == pytest.approx(0.001 * (490 + 2 * 500 + 40 * 10))
    assert taken.value("recpress_proxy_log_dropped_total") == 0


def test_foreign_datagrams_are_counted_and_the_rest_goes_on(taken):
    good = LINE + "grpc 200 200 -0 0.002 0.001 -"
    strange = [
        b"",
        b"rubbish",
        b"\xff\x00" * 3000,
        LINE,
        LINE + "http 200 200 -- 0.002 0.001",
        LINE + "http 200 200 -- nan 0.001 small",
        LINE + "http 200 200 -- -0.002 0.001 small",
        LINE + "http 200 200 -- 1e9 0.001 small",
        LINE + f"http 200 200 -- {'9' * 400}.000 0.001 small",
        LINE + "http 200 502, 200 -- 0.002 0.001 small",
        good + "\n<190>more",
        good.replace("grpc", "ftp"),
    ]
    taken.send(*strange, good, LINE + "http 200 200 -- 0.001 0.001 ../small", LINE + "http 200 200 -- 0.001 - sm\\x22")
    taken.until(len(strange) + 3)
    assert taken.value("recpress_proxy_log_parse_errors_total") == len(strange)
    assert taken.outcomes() == {("", "grpc", "ok"): 1, ("", "http", "ok"): 2}


def test_what_the_kernel_drops_is_counted(taken):
    """The log is not taken while this thread holds the lock that it needs to count."""
    sent = 20_000
    with taken.log._lock:
        taken.send(*[LINE + "grpc 200 200 -0 0.002 0.001 -"] * sent)
    before = -1
    while before < (before := taken.value("recpress_proxy_log_lines_total")) or not before:
        time.sleep(0.3)
    assert taken.value("recpress_proxy_log_dropped_total") == sent - before > 0


def test_lines_that_all_differ_do_not_pile_up_without_a_scrape(taken, monkeypatch):
    monkeypatch.setattr("recpress.serving.proxy_log._DIFFERENT", 100)
    for i in range(100):
        taken.send(*[f"{LINE}http 404 404 -- 0.001 0.001 name{i}-{j}" for j in range(10)])
    deadline = time.monotonic() + 30
    while taken.log._taken + sum(taken.log._lines.values()) < 1000 and time.monotonic() < deadline:
        assert len(taken.log._lines) <= 100
        time.sleep(0.01)
    assert taken.log._taken >= 900
    taken.until(1000)
    assert taken.outcomes() == {("", "http", "refused"): 1000}, "no label for each name that clients make up"


def test_while_it_is_scraped_nothing_is_lost(taken):
    stop = threading.Event()

    def scrape():
        while not stop.is_set():
            generate_latest(taken.registry)

    threads = [threading.Thread(target=scrape) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(200):
        taken.send(*[f"{LINE}http 200 200 -- 0.{i:03d} 0.001 small"] * 10)
        time.sleep(0.001)
    taken.until(2000)
    stop.set()
    for thread in threads:
        thread.join()
    assert taken.outcomes() == {("small", "http", "ok"): 2000}


def test_over_ipv6_where_there_is_one(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with Taken(tmp_path, "[::1]:0") as taken:
        taken.send(LINE + "grpc 200 200 -0 0.002 0.001 -")
        taken.until(1)
        assert taken.value("recpress_proxy_log_dropped_total") == 0
        assert "recpress_proxy_log_dropped_total" in generate_latest(taken.registry).decode()


def test_an_address_that_cannot_be_taken_is_told(taken, tmp_path):
    with pytest.raises(
        ServerError, match=r"log on 127.0.0.1:\d+ \(Address already in use\); give another.*--proxy-log"
    ):
        ProxyLog(taken.log.address, tmp_path)
    with pytest.raises(ServerError, match="cannot take the proxy's log on no.such.host.invalid:1"):
        ProxyLog("no.such.host.invalid:1", tmp_path)
    for wrong in ("8004", "127.0.0.1:x", "127.0.0.1:70000", ":8004"):
        with pytest.raises(ServerError, match="is not HOST:PORT"):
            ProxyLog(wrong, tmp_path)


def test_it_leaves_no_thread_and_no_socket(tmp_path):
    before = set(threading.enumerate()), open_sockets()
    with Taken(tmp_path) as taken:
        address = taken.log.address
        assert open_sockets() != before[1]
    assert (set(threading.enumerate()), open_sockets()) == before
    ProxyLog(address, tmp_path)._socket.close()


@pytest.mark.parametrize(
    "line, outcome",
    [
        (("http", 200, "200", ""), "ok"),
        (("http", 400, "400", ""), "refused"),
        (("http", 404, "-", ""), "refused"),
        (("http", 500, "500", ""), "failed"),
        (("http", 503, "-", ""), "rejected"),
        (("http", 503, "503", ""), "unavailable"),
        (("http", 502, "502", ""), "unreachable"),
        (("http", 504, "504", ""), "timeout"),
        (("http", 499, "-", ""), "cancelled"),
        (("grpc", 200, "200", "0"), "ok"),
        (("grpc", 200, "200", "3"), "refused"),
        (("grpc", 200, "200", "13"), "failed"),
        (("grpc", 200, "200", "14"), "unavailable"),
        (("grpc", 200, "200", "8"), "unavailable"),
        (("grpc", 200, "200", ""), "failed"),
        (("grpc", 200, "-", "14"), "rejected"),
        (("grpc", 200, "502", "14"), "unreachable"),
        (("grpc", 200, "-", "12"), "refused"),
        (("grpc", 408, "-", ""), "refused"),
        (("http", 200, "-", ""), "refused"),
    ],
)
def test_what_became_of_a_request(line, outcome):
    assert outcome_of(*line) == outcome


def test_the_log_is_off_by_default():
    config = nginx_config(limit=2, deadline_s=1)
    assert "access_log off;" in config and "syslog" not in config
    with pytest.raises(ServerError, match="is not HOST:PORT"):
        nginx_config(limit=2, deadline_s=1, log="127.0.0.1:1,facility=x")
