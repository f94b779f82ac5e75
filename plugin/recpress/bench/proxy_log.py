"""What latency at the proxy costs: ``recpress bench proxy_log [--repository FOLDER] [--json FILE]``.

First the exporter's side: lines as nginx writes them come at a steady rate to a process that takes them and is scraped
once a second; printed is the CPU that it takes, and how many were lost. Then nginx' side: two proxies before one
server, one of which sends lines to such a process, take turns under the same closed-loop clients; printed are the ratio
of their requests a second, the median over rounds with its 95 % interval, and the CPU of nginx by request.
"""

import argparse
import contextlib
import multiprocessing
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recpress.bench.closed_loop import drive
from recpress.bench.metrics import Load, cpu_seconds, golden_requests, ratio
from recpress.bench.overload import free_port
from recpress.serving.config import served_versions
from recpress.serving.proxy import Proxy, Route, nginx_config
from recpress.serving.server import Server, models_of
from recpress_kernels.bench import save

RATE = 11_000
_LINE = b"<190>Nov 24 18:00:00 recpress: http 200 200 -- %.3f %.3f %s"
_LIMIT = 1000


def _take(repository: Path, pipe) -> None:
    """A process that takes a log, is scraped once a second until it is told to stop, and says what that took."""
    from prometheus_client import CollectorRegistry, generate_latest

    from recpress.serving.proxy_log import ProxyLog

    registry = CollectorRegistry()
    with ProxyLog("127.0.0.1:0", repository) as log:
        registry.register(log)
        pipe.send(log.address)
        begin = time.process_time()
        while not pipe.poll(1.0):
            generate_latest(registry)
        value = registry.get_sample_value
        counts = {name: int(value(f"recpress_proxy_log_{name}_total")) for name in ("lines", "parse_errors", "dropped")}
        pipe.send({"cpu_seconds": time.process_time() - begin, **counts})


@contextlib.contextmanager
def _taking(repository: Path) -> Iterator[tuple[str, dict]]:
    """The address of such a process, and what it says once it has ended."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_take, args=(repository, there), daemon=True)
    process.start()
    said: dict = {}
    try:
        yield here.recv(), said
    finally:
        here.send("stop")
        said.update(here.recv() if here.poll(30) else {})
        process.join(30)


def take_lines(repository: Path, *, rate: float, seconds: float) -> dict:
    """Send ``rate`` lines a second for ``seconds``: CPU seconds of who takes them, and how many came and were lost."""
    generator = np.random.default_rng(0)
    model = models_of(repository)[0].encode()
    times = np.exp(generator.normal(np.log(0.004), 0.6, 4096))
    lines = [_LINE % (t, t - 0.0005 if t > 0.0005 else 0.0, model) for t in times]
    with _taking(repository) as (address, said):
        host, port = address.split(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((host, int(port)))
            sent, begin = 0, time.perf_counter()
            while (now := time.perf_counter() - begin) < seconds:
                while sent < now * rate:
                    sender.send(lines[sent % len(lines)])
                    sent += 1
                time.sleep(0.001)
        time.sleep(0.5)
    return {"rate": rate, "seconds": seconds, "sent": sent, **said}


def compare(repository: Path, load: Load) -> dict:
    """Requests a second behind nginx with and without its log, by round, and nginx' CPU by request."""
    name = models_of(repository)[0]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(repository))
        address, said = stack.enter_context(_taking(repository))
        proxies = {"on": _proxy(stack, server, address), "off": _proxy(stack, server, None)}
        requests = golden_requests(repository / name / str(served_versions(repository / name)[-1]), name, 1)
        rates: dict[str, list[float]] = {"on": [], "off": []}
        cpu, served = dict.fromkeys(proxies, 0.0), dict.fromkeys(proxies, 0)
        for listen, _ in proxies.values():
            drive(listen, requests, clients=load.clients, seconds=0.5, warm_up=0.5)
        for i in range(load.rounds):
            for which in ("on", "off") if i % 2 else ("off", "on"):
                listen, process = proxies[which]
                before = cpu_seconds(process)
                window = drive(listen, requests, clients=load.clients, seconds=load.seconds, warm_up=0.0)
                rates[which].append(len(window.latencies) / window.seconds)
                cpu[which] += cpu_seconds(process) - before
                served[which] += len(window.latencies)
    by_request = {which: cpu[which] / served[which] for which in proxies}
    return {"requests_per_second": rates, "ratio": ratio(rates), "nginx_cpu_seconds": by_request, "taken": said}


def _proxy(stack: contextlib.ExitStack, server: Server, log: str | None) -> tuple[str, int]:
    """Where it listens for gRPC, and its process group."""
    http, grpc = (Route(f"127.0.0.1:{free_port()}", server.url(kind)) for kind in ("http", "grpc"))
    started = stack.enter_context(Proxy(nginx_config(limit=_LIMIT, deadline_s=1.0, http=http, grpc=grpc, log=log)))
    return grpc.listen, started.process.pid


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench proxy_log``."""
    parser = argparse.ArgumentParser(prog="recpress bench proxy_log", description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="its first model is served")
    parser.add_argument("--rate", type=float, default=RATE, help="lines a second")
    parser.add_argument("--rounds", type=int, default=Load.rounds)
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="of each window; ten of them for the lines")
    parser.add_argument("--clients", type=int, default=Load.clients)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    lines = take_lines(given.repository, rate=given.rate, seconds=10 * given.seconds)
    print(
        f"{lines['sent'] / lines['seconds']:.0f} lines a second: taken with "
        f"{lines['cpu_seconds'] / lines['seconds']:.1%} of a core, {lines['dropped']} of {lines['sent']} dropped, "
        f"{lines['parse_errors']} not understood"
    )
    row = compare(given.repository, Load(given.clients, given.seconds, rounds=given.rounds))
    on, off = (np.median(row["requests_per_second"][which]) for which in ("on", "off"))
    cpu, found, said = row["nginx_cpu_seconds"], row["ratio"], row["taken"]
    print(f"batch 1, {given.clients} clients of gRPC behind nginx: {on:.0f} requests/s with its log, {off:.0f} without")
    print(
        f"  ratio {found['median']:.4f} [{found['low']:.4f}, {found['high']:.4f}]; nginx takes {cpu['on'] * 1e6:.1f} "
        f"and {cpu['off'] * 1e6:.1f} us of CPU a request, "
        f"the exporter {said['cpu_seconds'] / said['lines'] * 1e6:.1f}; {said['dropped']} of {said['lines']} dropped"
    )
    if given.json:
        save({"kind": "proxy_log", "lines": lines, "behind_nginx": row}, given.json)
