"""The verbs of a canary: start, share, compare, promote, abort."""

import time
from pathlib import Path
from typing import Annotated

import typer

from recpress.cli.serving import KeyFile, Repository, ServerOption, control
from recpress.errors import ProbeError, RepositoryError

app = typer.Typer(help="Serve an artifact beside a model, for a share of its traffic.", no_args_is_help=True)
Name = Annotated[str, typer.Option(help="The model's name in the repository.")]
Share = Annotated[str, typer.Option(help="Part of the keys, such as 5% or 0.05.")]


@app.command()
def start(
    folder: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    repository: Repository,
    name: Name,
    share: Share = "5%",
    server: ServerOption = None,
    key_file: KeyFile = None,
) -> None:
    """Serve an artifact as a model's canary; clients that split their traffic follow within seconds."""
    from recpress.serving import canary

    done = canary.start(
        folder, repository, name=name, share=_share(share), server=control(server, key_file, repository)
    )
    typer.echo(f"{name}, version {done.now}, is a canary for {share} beside version {done.before}")


@app.command()
def share(
    repository: Repository, name: Name, share: Share, server: ServerOption = None, key_file: KeyFile = None
) -> None:
    """Give a canary another share."""
    from recpress.serving import canary

    canary.change_share(repository, name=name, share=_share(share), server=control(server, key_file, repository))
    typer.echo(f"the canary of {name} takes {share}")


@app.command()
def compare(
    repository: Repository,
    name: Name,
    server: Annotated[str, typer.Option(help="HOST:PORT of gRPC.")] = "127.0.0.1:8001",
    metrics: Annotated[str, typer.Option(help="HOST:PORT of the metrics.")] = "127.0.0.1:8002",
    seconds: Annotated[float, typer.Option(help="How long to wait at most for the requests that are needed.")] = 600.0,
) -> None:
    """Compare a canary with its model until it is decided; exit code 0 where it is as good, else 1."""
    from recpress.serving.canary import compare as judge

    begin = time.monotonic()
    for verdict in judge(repository, name=name, address=server, metrics=metrics):
        if verdict.good or verdict.worse or time.monotonic() - begin > seconds:
            break
        time.sleep(1.0)
    scores, p99 = verdict.scores, [f"{s * 1e3:.2f}" for s in verdict.p99_s]
    typer.echo(f"failed: {verdict.failed[0]:.2%} of the model, {verdict.failed[1]:.2%} of the canary")
    typer.echo(f"p99 of executions: {p99[0]} ms and {p99[1]} ms")
    typer.echo(
        f"mean score of {scores.rows} rows: {scores.model:.4g} and {scores.canary:.4g}, "
        f"{scores.shift:+.3g} ± {scores.error:.2g} apart, of {scores.deviation:.3g} deviation"
    )
    typer.echo(str(verdict))
    if not verdict.good:
        raise ProbeError(f"the canary of {name} is not fit to be promoted; {verdict}")


@app.command()
def promote(repository: Repository, name: Name, server: ServerOption = None, key_file: KeyFile = None) -> None:
    """Deploy a canary as its model's next version."""
    from recpress.serving import canary

    done = canary.promote(repository, name=name, server=control(server, key_file, repository))
    typer.echo(f"{name}, version {done.now}, is in service; its canary has ended")


@app.command()
def abort(repository: Repository, name: Name, server: ServerOption = None, key_file: KeyFile = None) -> None:
    """Take a canary out of service and remove it."""
    from recpress.serving import canary

    canary.abort(repository, name=name, server=control(server, key_file, repository))
    typer.echo(f"the canary of {name} has ended, and its version is removed")


def _share(text: str) -> float:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        return float(number) / 100 if percent else float(number)
    except ValueError:
        raise RepositoryError(f"the share is {text!r}; give a number from 0 to 1, or a percentage such as 5%") from None
