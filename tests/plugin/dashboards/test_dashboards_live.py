"""A real server under load behind nginx, the exporter, a load test and a real Prometheus with the rules of deploy/:
every query of a panel has data, no alert fires, and a dead stub shows."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client import start_http_server
from support.processes import free_port

import recpress
from recpress.dashboards.panels import BOARDS
from recpress.dashboards.picture import ask_range, draw, filled
from recpress.errors import DashboardError, RequestError, ServerError
from recpress.serving.client import Client
from recpress.serving.exporter import Exporter
from recpress.serving.processes import serving
from recpress.serving.proxy import Proxy, Route, nginx_config
from recpress.serving.proxy_log import ProxyLog
from recpress.serving.server import Server

DEPLOY = Path(__file__).parents[3] / "deploy" / "prometheus"
PROMETHEUS = shutil.which("prometheus")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        PROMETHEUS is None or NGINX is None,
        reason="no prometheus or nginx; Debian: apt-get install --no-install-recommends prometheus nginx-light",
    ),
]
SCRAPE_S = 0.5


def alerts(url):
    with urllib.request.urlopen(f"{url}/api/v1/alerts", timeout=10) as answer:
        return [(a["labels"]["alertname"], a["state"]) for a in json.load(answer)["data"]["alerts"]]


def until(check, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


@contextlib.contextmanager
def prometheus(folder, server, exporter, load_test):
    shutil.copytree(DEPLOY / "rules", folder / "rules")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S * 1000:.0f}ms", "evaluation_interval": "1s"}
    for job, address in zip(config["scrape_configs"], (server, exporter), strict=True):
        job["static_configs"] = [{"targets": [address]}]
    config["scrape_configs"].append({"job_name": "loadtest", "static_configs": [{"targets": [load_test]}]})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    files = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROMETHEUS, *files, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def live(artifact, tmp_path_factory):
    """The address of Prometheus, the repository, and the exporter, after some seconds of requests."""
    folder = tmp_path_factory.mktemp("live")
    recpress.package(artifact, folder / "repo", name="small", instances=2)
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(folder / "repo"))
        stack.callback(server.stop, 3)  # it would wait half a minute for the stub that a test kills
        exporter = Exporter(folder / "repo", lambda: Client(server.url("grpc")))
        log = stack.enter_context(ProxyLog("127.0.0.1:0", folder / "repo"))
        exporter.registry.register(log)
        http, _ = start_http_server(0, "127.0.0.1", registry=exporter.registry)
        stack.callback(http.server_close)
        stack.callback(http.shutdown)
        routes = {kind: Route(f"127.0.0.1:{free_port()}", server.url(kind)) for kind in ("http", "grpc")}
        stack.enter_context(Proxy(nginx_config(limit=16, deadline_s=2, log=log.address, **routes)))

        def send():
            generator = np.random.default_rng(0)
            with Client(routes["grpc"].listen) as client:
                while not stop.wait(0.01):
                    dense = generator.standard_normal((4, 5)).astype(np.float32)
                    if generator.random() < 0.05:
                        dense[0, 0] = np.nan
                    with contextlib.suppress(RequestError, ServerError):
                        client.score("small", {"dense": dense, "sparse": np.zeros((4, 4), np.int64)})

        def go_round():
            while not stop.wait(0.5):
                exporter.go_round()

        for target in (send, go_round):
            thread = threading.Thread(target=target)
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        load_test = stack.enter_context(load_testing(artifact, routes["http"].listen))
        addresses = server.url("metrics"), f"127.0.0.1:{http.server_port}", load_test
        yield stack.enter_context(prometheus(folder, *addresses)), folder / "repo"


@contextlib.contextmanager
def load_testing(artifact, server):
    """The metrics of a load test that goes on until it is terminated."""
    port = free_port()
    command = [sys.executable, "-m", "recpress.cli", "loadtest", str(artifact), "--name", "small", "--server", server]
    load = ["--http", "--rate", "20", "--seconds", "600", "--timeout", "2", "--metrics-port", str(port)]
    process = subprocess.Popen([*command, *load], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def empty(url):
    return [
        (panel.title, query.expr)
        for board in BOARDS
        for panel in board.panels
        for query in panel.queries
        if not ask_range(url, filled(query.expr, "small", "1"), time.time(), 1)
    ]


def test_every_panel_has_data_and_no_alert_fires(live, tmp_path):
    url, _ = live

    def all_there():
        try:
            return not empty(url)
        except DashboardError:  # not up yet
            return False

    assert until(all_there), empty(url)
    assert not alerts(url)
    for board in BOARDS:
        assert draw(board, url, tmp_path / "picture.png", minutes=1) == 0
        assert (tmp_path / "picture.png").stat().st_size > 20_000


def test_what_cannot_be_drawn(live, tmp_path):
    url, _ = live
    with pytest.raises(DashboardError, match="has nothing of model 'absent'"):
        draw(BOARDS[0], url, tmp_path / "x.png", model="absent", minutes=1)
    with pytest.raises(DashboardError, match="no Prometheus answers at http://127.0.0.1:1"):
        draw(BOARDS[0], "http://127.0.0.1:1", tmp_path / "x.png")
    with pytest.raises(DashboardError, match="refuses"):
        ask_range(url, "sum(", time.time(), 1)


def test_a_dead_stub_raises_its_alert(live):
    url, repository = live
    stub = next(p for p in serving(repository) if p.version is not None)
    os.kill(stub.pid, signal.SIGKILL)
    assert until(lambda: ("RecpressStubDead", "pending") in alerts(url)), alerts(url)
