"""The verbs that watch a running server: exporter and dashboard."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from recpress.cli.serving import Repository
from recpress.errors import DashboardError, ProbeError, ServerError


def exporter(
    repository: Repository,
    model: Annotated[list[str] | None, typer.Option(help="One model; may be repeated. All by default.")] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT of gRPC; by default that of the server here, or 127.0.0.1:8001.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8003,
    interval: Annotated[float, typer.Option(help="Seconds from one round to the next.", min=0.1)] = 15.0,
    timeout: Annotated[float, typer.Option(help="Seconds that each request may take.", min=0.1)] = 10.0,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM; who signed the server's certificate.")] = None,
    proxy_log: Annotated[
        str | None, typer.Option(help="HOST:PORT to take the log of recpress proxy --log on, such as 127.0.0.1:8004.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Go round once, print, and fail where a probe does.")] = False,
) -> None:
    """Serve metrics of what the server cannot say: golden rows over the wire, stubs, memory, the repository, and how
    long requests take at the proxy."""
    from recpress.serving.client import Client
    from recpress.serving.control import find_server
    from recpress.serving.exporter import Exporter, export_until_stopped
    from recpress.serving.proxy_log import ProxyLog

    if once and proxy_log is not None:
        raise ServerError("--once does not wait for what --proxy-log would take; leave one of them out")

    def connect() -> Client:
        here = None if server else find_server(repository)
        address = server or (here and here.grpc) or "127.0.0.1:8001"
        return Client(address, timeout_s=timeout, tls_ca=tls_ca)

    watching = Exporter(
        repository, connect, models=model, report=lambda text: typer.echo(f"exporter: {text}", err=True)
    )
    if not once:
        with contextlib.ExitStack() as stack:
            if proxy_log is not None:
                log = stack.enter_context(ProxyLog(proxy_log, repository))
                watching.registry.register(log)
                watching.report(f"the proxy's log is taken on {log.address}")
            try:
                export_until_stopped(watching, host=host, port=port, interval_s=interval)
            except KeyboardInterrupt:
                typer.echo("stopping", err=True)
                return
    from prometheus_client import generate_latest

    found = watching.go_round()
    typer.echo(generate_latest(watching.registry).decode(), nl=False)
    failed = [f"{p.model}, version {p.version} ({p.reason})" for p in found.probes if p.reason]
    if failed or found.problem:
        raise ProbeError(f"the round fails: {'; '.join([*failed, found.problem]).strip('; ')}")


def dashboard(
    output: Annotated[Path, typer.Option(help="The picture, a PNG.")],
    prometheus: Annotated[str, typer.Option(help="Its address.")] = "http://127.0.0.1:9090",
    board: Annotated[str, typer.Option(help="operators or owners.")] = "operators",
    model: Annotated[str, typer.Option(help="A regular expression.")] = ".*",
    version: Annotated[str, typer.Option(help="A regular expression.")] = ".*",
    minutes: Annotated[float, typer.Option(help="How far back.", min=0.1)] = 60.0,
) -> None:
    """Draw a dashboard from a running Prometheus, for whoever has no Grafana."""
    from recpress.dashboards.panels import BOARDS
    from recpress.dashboards.picture import draw

    boards = {one.uid.removeprefix("recpress-"): one for one in BOARDS}
    if board not in boards:
        raise DashboardError(f"no dashboard {board!r}; there are {', '.join(boards)}")
    empty = draw(boards[board], prometheus, output, model=model, version=version, minutes=minutes)
    typer.echo(f"{output}: {len(boards[board].panels) - empty} of {len(boards[board].panels)} panels have data")
