"""The verbs on stored versions: versions, prune-versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recpress.cli.serving import KeyFile, Repository, ServerOption, control

if TYPE_CHECKING:
    from recpress.serving.control import Control

Name = Annotated[str, typer.Option(help="The model's name in the repository.")]


def versions(repository: Repository, name: Name, server: ServerOption = None, key_file: KeyFile = None) -> None:
    """List a model's versions: in service, old or withdrawn, and their sizes."""
    from recpress.serving.retention import stored_versions

    for stored in stored_versions(repository, name=name, server=control(server, key_file, repository)):
        typer.echo(f"{name}, version {stored.version}: {stored.state}, {stored.bytes / 1e6:.1f} MB")


def prune_versions(
    repository: Repository,
    name: Name,
    keep: Annotated[int, typer.Option(help="Versions out of service that stay, the newest.", min=1)] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    server: ServerOption = None,
    key_file: KeyFile = None,
) -> None:
    """Remove a model's old and withdrawn versions, never one in service."""
    print_removed(repository, name, keep, control(server, key_file, repository), dry_run=dry_run)


def print_removed(repository: Path, name: str, keep: int, server: "Control | None", *, dry_run: bool = False) -> None:
    """Remove a model's old versions but for ``keep``, and print which."""
    from recpress.serving.retention import prune_versions as prune

    removed = prune(repository, name=name, keep=keep, server=server, dry_run=dry_run)
    said = "would be removed" if dry_run else "is removed"
    for stored in removed:
        typer.echo(f"{name}, version {stored.version}, {stored.state}, {said}: {stored.bytes / 1e6:.1f} MB")
    if not removed:
        typer.echo(f"{name}: nothing to remove, with {keep} kept out of service")
