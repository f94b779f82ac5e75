"""``recpress loadtest``: put load on a running server, and say whether it holds an objective."""

import contextlib
import re
from pathlib import Path
from typing import Annotated

import typer

from recpress.errors import LoadTestError

_DAY_S = 86_400
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def loadtest(
    artifact: Annotated[Path, typer.Argument(help="The folder of the artifact that is served.")],
    name: Annotated[str, typer.Option(help="The model's name on the server.")],
    server: Annotated[str, typer.Option(help="HOST:PORT of gRPC, or of HTTP with --http.")] = "127.0.0.1:8001",
    http: Annotated[bool, typer.Option("--http", help="Speak HTTP.")] = False,
    version: Annotated[str, typer.Option(help="A version; the one in service by default.")] = "",
    rate: Annotated[
        str | None, typer.Option(help="Requests a second, whether answered or not; several in turn: 100,200,400.")
    ] = None,
    clients: Annotated[
        str | None, typer.Option(help="Clients that wait for their answers; several in turn: 1,4,16.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each load lasts.", min=0.1, max=_DAY_S)] = 10.0,
    warm_up: Annotated[
        float, typer.Option(help="Seconds of each load before it is measured.", min=0.0, max=_DAY_S)
    ] = 1.0,
    batch: Annotated[int, typer.Option(help="Rows of a request.", min=1)] = 1,
    rows: Annotated[Path | None, typer.Option(help="Rows to send, of numpy.savez; golden rows by default.")] = None,
    p99: Annotated[str | None, typer.Option(help="The objective, such as 20ms; exit code 1 when it is missed.")] = None,
    deadline: Annotated[str | None, typer.Option(help="When an answer is of no use; that of --p99 by default.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.", min=0.001, max=3600)] = 10.0,
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write latency against throughput here, an SVG.")] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Show /metrics on 127.0.0.1 meanwhile; 0 takes a free port.", min=0, max=65535),
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM; who signed the server's certificate.")] = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals and the order of rows.", min=0)] = 0,
) -> None:
    """Load a running server and check its scores; exit code 1 where the objective is missed, scores are wrong, or the
    test is broken off."""
    from recpress.files import replace, require_writable
    from recpress.loadtest.metrics import Metrics
    from recpress.loadtest.result import Load
    from recpress.loadtest.run import Endpoint, load_test
    from recpress.loadtest.saved import saved, write
    from recpress.loadtest.show import plot as draw
    from recpress.loadtest.show import print_test, require_plot

    objective, deadline_s = _seconds("--p99", p99), _seconds("--deadline", deadline or p99)
    common = {"seconds": seconds, "warm_up_s": warm_up, "deadline_s": deadline_s, "drain_s": timeout}
    loads = [Load(**load, **common) for load in _loads(rate, clients)]
    for path in filter(None, (json, plot)):
        require_writable(path)
    if plot is not None:
        require_plot()
    protocol = "http" if http else "grpc"
    with contextlib.ExitStack() as stack:
        metrics = None
        if metrics_port is not None:
            metrics = stack.enter_context(Metrics(metrics_port, model=name, protocol=protocol))
            typer.echo(f"metrics at http://{metrics.address}/metrics", err=True)
        test = load_test(
            artifact,
            Endpoint(server, name, version, protocol, timeout, tls_ca),
            loads,
            batch=batch,
            rows=rows,
            objective_s=objective,
            seed=seed,
            metrics=metrics,
            begin=lambda load: typer.echo(f"{load}, {load.warm_up_s + load.seconds:g} s ...", err=True),
        )
    result = saved(test)
    print_test(result)
    if json is not None:
        write(json, result)
    if plot is not None:
        replace(plot, draw(result))
    if result.problems:
        raise LoadTestError("; ".join(result.problems))


def _loads(rate: str | None, clients: str | None) -> list[dict[str, float | int]]:
    if (rate is None) == (clients is None):
        raise LoadTestError("give either --rate, such as 100,200,400, or --clients, such as 1,4,16")
    if clients is None:
        return [{"rate": value} for value in _numbers("--rate", rate, float)]
    return [{"clients": value} for value in _numbers("--clients", clients, int)]


def _numbers(option: str, text: str, kind: type) -> list:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1e6 for number in numbers):
        what = "whole numbers" if kind is int else "numbers"
        raise LoadTestError(f"{option} {text!r} is not a list of {what} above 0, such as 1,4,16")
    return numbers


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text)
    if found is None or not float(found[1]):
        raise LoadTestError(f"{option} {text!r} is no time; give a number above 0 and us, ms or s, such as 20ms")
    return float(found[1]) * _SECONDS[found[2]]
