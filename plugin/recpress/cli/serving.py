"""The verbs around a running server: serve, deploy, rollback, probe."""

import os
from pathlib import Path
from typing import Annotated

import typer

from recpress.errors import ProbeError, ServerError

KEY_VARIABLE = "RECPRESS_KEY_FILE"
Repository = Annotated[Path, typer.Argument(help="The model repository.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="A file with the key to model control (or its path in RECPRESS_KEY_FILE)."),
]
ServerOption = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of HTTP; by default the server that this user started on the repository here."),
]


def serve(
    repository: Repository,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8002,
    ready_timeout: Annotated[float, typer.Option(help="Seconds that the models may take to load.")] = 60.0,
    supervise: Annotated[bool, typer.Option("--supervise", help="Bring back what dies: stubs and the server.")] = False,
    key_file: KeyFile = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM; gRPC then speaks TLS, HTTP on loopback.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM; the certificate's key.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="PEM; clients must then show a certificate.")] = None,
) -> None:
    """Serve a model repository in the foreground; Ctrl-C stops it. The server logs to standard error."""
    from recpress.serving.control import read_key
    from recpress.serving.server import Ports, Server, Tls, models_of
    from recpress.serving.supervisor import Supervisor

    if (tls_certificate is None) != (tls_key is None) or (tls_client_ca and tls_certificate is None):
        raise ServerError("TLS needs both --tls-certificate and --tls-key; --tls-client-ca comes with them")
    tls = None if tls_certificate is None else Tls(tls_certificate, tls_key, tls_client_ca)
    key = _key_path(key_file)
    server = Server(
        repository,
        host=host,
        ports=Ports(http_port, grpc_port, metrics_port),
        key=None if key is None else read_key(key),
        tls=tls,
        log=None,
        ready_timeout_s=ready_timeout,
    )
    with server:
        urls = ", ".join(f"{kind} {server.url(kind)}" for kind in ("http", "grpc", "metrics"))
        typer.echo(f"ready: {', '.join(models_of(repository))} ({urls}); Ctrl-C stops the server")
        try:
            if supervise:
                Supervisor(server, report=_report).run()
            code = server.wait()
        except KeyboardInterrupt:
            typer.echo("stopping")
            return
    raise ServerError(f"the server ended by itself with exit code {code}; its log above says why")


def _report(text: str) -> None:
    typer.echo(f"supervisor: {text}", err=True)


def deploy(
    folder: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    repository: Repository,
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    server: ServerOption = None,
    key_file: KeyFile = None,
    load_timeout: Annotated[float, typer.Option(help="Seconds that the version may take to load.")] = 120.0,
    keep: Annotated[
        int | None, typer.Option(help="Then remove versions out of service but for so many, the newest.", min=1)
    ] = None,
) -> None:
    """Add an artifact as a model's next version, load it in the running server, and prove it over the wire."""
    from recpress.cli.retention import print_removed
    from recpress.serving.versions import deploy as change

    running = control(server, key_file, repository)
    done = change(folder, repository, name=name, server=running, load_timeout_s=load_timeout)
    before = "" if done.before is None else f", version {done.before} stays loaded"
    where = (
        f"in service at {running.address} after {done.seconds:.1f} s" if running else "in the repository, not loaded"
    )
    typer.echo(f"{name}, version {done.now}, is {where}{before}")
    if keep is not None:
        print_removed(repository, name, keep, running)


def rollback(
    repository: Repository,
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    server: ServerOption = None,
    key_file: KeyFile = None,
) -> None:
    """Take a model's newest version out of service and let the one before serve."""
    from recpress.serving.versions import rollback as change

    running = control(server, key_file, repository)
    done = change(repository, name=name, server=running)
    where = f"serves at {running.address} after {done.seconds:.2f} s" if running else "is next to serve"
    typer.echo(f"{name}, version {done.now}, {where}; version {done.before} is withdrawn")


def probe(
    repository: Repository,
    model: Annotated[list[str] | None, typer.Option(help="One model; may be repeated. All by default.")] = None,
    server: Annotated[str, typer.Option(help="HOST:PORT of gRPC, or of HTTP with --http.")] = "127.0.0.1:8001",
    http: Annotated[bool, typer.Option("--http", help="Speak HTTP.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that each request may take.")] = 10.0,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM; who signed the server's certificate.")] = None,
) -> None:
    """Send each served version its golden rows and compare; exit code 0 when all score as stored, else 1."""
    from recpress.serving.client import Client
    from recpress.serving.probe import probe_models

    with Client(server, protocol="http" if http else "grpc", timeout_s=timeout, tls_ca=tls_ca) as client:
        results = probe_models(client, repository, model)
    for result in results:
        typer.echo(f"{result.model}, version {result.version}: {result.problem or 'scores its golden rows as stored'}")
    if failed := [f"{r.model}, version {r.version}" for r in results if r.problem]:
        raise ProbeError(f"{len(failed)} of {len(results)} versions fail: {'; '.join(failed)}")


def proxy(
    deadline_ms: Annotated[float, typer.Option(help="Milliseconds until an answer is of no use to clients.")],
    batch_ms: Annotated[float | None, typer.Option(help="Milliseconds that a full batch takes, as measured.")] = None,
    batch: Annotated[int | None, typer.Option(help="Requests in a full batch.", min=1)] = None,
    instances: Annotated[int, typer.Option(help="Of the model, each with a core of its own.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Requests under way, in place of a computed number.")] = None,
    http: Annotated[str, typer.Option(help="HOST:PORT for clients of HTTP.")] = "127.0.0.1:9000",
    grpc: Annotated[str, typer.Option(help="HOST:PORT for clients of gRPC.")] = "127.0.0.1:9001",
    server_http: Annotated[str, typer.Option(help="HOST:PORT of the server's HTTP.")] = "127.0.0.1:8000",
    server_grpc: Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC.")] = "127.0.0.1:8001",
    log: Annotated[
        str | None, typer.Option(help="HOST:PORT of recpress exporter's --proxy-log, which gets each request's time.")
    ] = None,
) -> None:
    """Print an nginx.conf that lets through what the server answers in time and turns the rest away at once."""
    from recpress.serving.limiter import fitting_limit
    from recpress.serving.proxy import Route, nginx_config

    sized = "The limit was given."
    if limit is None:
        if batch is None or batch_ms is None:
            raise ServerError(
                "no limit: give --batch and --batch-ms, which recpress bench overload measures, or --limit"
            )
        limit = fitting_limit(batch=batch, batch_s=batch_ms / 1e3, deadline_s=deadline_ms / 1e3, instances=instances)
        sized = (
            f"Sized for batches of {batch} requests in {batch_ms:g} ms, {instances} at once, within {deadline_ms:g} ms."
        )
    routes = {"http": Route(http, server_http), "grpc": Route(grpc, server_grpc)}
    typer.echo(nginx_config(limit=limit, deadline_s=deadline_ms / 1e3, sized=sized, log=log, **routes), nl=False)


def _key_path(given: Path | None) -> Path | None:
    named = os.environ.get(KEY_VARIABLE)
    return given or (Path(named) if named else None)


def control(address: str | None, key_file: Path | None, repository: Path):
    """The running server to change, None where none runs here on the repository and none is named."""
    from recpress.serving.control import Control, find_server, read_key

    if address is None:
        return find_server(repository)
    key = _key_path(key_file)
    if key is None:
        raise ServerError(f"the server at {address} has a key to model control; give it by --key-file")
    return Control(address, read_key(key))
