"""Bring a new version into service, and go back to the one before, while clients are served.

The version in service and the one before are both loaded, so that going back is a matter of milliseconds: the server
answers a request that names no version with the highest version that it serves.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recpress.artifact.load import load
from recpress.errors import RecpressError, RepositoryError
from recpress.serving.client import Client
from recpress.serving.config import CONFIG, WITHDRAWN, serve_versions, served_versions, versions_in, write_config
from recpress.serving.control import Control
from recpress.serving.probe import prove
from recpress.serving.repository import add, check_name, check_options, locked


@dataclass(frozen=True)
class Change:
    """What was done: the version in service before and now, None where there was none, and how long it took.

    ``seconds`` is what the running server took, 0 without one.
    """

    before: int | None
    now: int
    seconds: float


def deploy(
    artifact: str | Path,
    repository: str | Path,
    *,
    name: str,
    server: Control | None = None,
    load_timeout_s: float = 120.0,
    **options: int | str | None,
) -> Change:
    """Add an artifact as the next version of a model, let the running server load it, and prove it over the wire.

    The version that was in service serves until the new one is loaded, and on if that fails: then the new version is
    removed again. With no server this is :func:`recpress.package`.

    Args:
        artifact: a folder written by :func:`recpress.export`.
        repository: the folder of models that the server serves.
        name: the model; as for :func:`recpress.package`, like ``options``.
        server: the running server, if there is one.
        load_timeout_s: how long the server may take to load the version.

    Raises:
        ArtifactError: the artifact is not whole, or scores its golden rows otherwise.
        RepositoryError: a value is out of range, the repository cannot be written, or the server does not load the
            version or scores its golden rows otherwise. Nothing is left behind.
        ServerError: the server cannot be reached, or refuses the key. Nothing is left behind.
    """
    check_name(name)
    check_options(options)
    artifact, repository = Path(artifact), Path(repository)
    model = repository / name
    manifest = load(artifact).manifest
    with locked(repository):
        if server is not None:
            server.versions()  # whoever cannot be reached is better known before anything is written
        old = (model / CONFIG).read_text(encoding="utf-8") if (model / CONFIG).is_file() else None
        before = max(served_versions(model), default=None) if old is not None else None
        version = add(artifact, manifest, model, options)
        begin = time.monotonic()
        if server is not None:
            with undone_on_failure(version, old, before, server):
                server.load(name, timeout_s=load_timeout_s)
                prove_version(server, version)
        return Change(before, int(version.name), time.monotonic() - begin if server else 0.0)


@contextlib.contextmanager
def undone_on_failure(version: Path, old: str | None, before: int | None, server: Control) -> Iterator[None]:
    """Take ``version`` out of the repository and of the server again when what is done with it fails."""
    model = version.parent
    try:
        yield
    except BaseException as error:
        if old is None:
            with contextlib.suppress(RecpressError):
                server.unload(model.name)
            shutil.rmtree(model, ignore_errors=True)
        else:
            write_config(model, old)
            with contextlib.suppress(RecpressError):
                server.load(model.name)
            shutil.rmtree(version, ignore_errors=True)
        if not isinstance(error, RecpressError):
            raise
        left = "the model is not served" if before is None else f"version {before} serves on"
        raise RepositoryError(
            f"version {version.name} of {model.name} did not come into service; {left}: {error}"
        ) from None


def rollback(repository: str | Path, *, name: str, server: Control | None = None) -> Change:
    """Take the version in service out of it, and let the one before serve.

    The version that is taken out stays in the model's folder under a hidden name, which no server takes for a version.

    Args:
        repository: the folder of models.
        name: the model.
        server: the running server, if there is one.

    Raises:
        RepositoryError: there is no such model or no version before, or the repository cannot be written.
        ServerError, ProbeError: the server cannot be reached, refuses the key, or does not score its golden rows as
            stored; the repository is as it was.
    """
    check_name(name)
    model = Path(repository) / name
    if not (model / CONFIG).is_file():
        raise RepositoryError(f"{repository} holds no model {name!r} (no {model / CONFIG})")
    with locked(Path(repository)):
        old = (model / CONFIG).read_text(encoding="utf-8")
        current = max(served_versions(model), default=0)
        earlier = [v for v in served_versions(model) if v < current] or [v for v in versions_in(model) if v < current]
        if not earlier:
            there = ", ".join(map(str, versions_in(model))) or "none"
            raise RepositoryError(f"{name} has no version before {current or 'none'}; in its folder there is: {there}")
        serve_versions(model, earlier[-1:])
        begin = time.monotonic()
        if server is not None:
            try:
                server.load(name)
                prove_version(server, model / str(earlier[-1]))
            except BaseException:
                write_config(model, old)
                with contextlib.suppress(RecpressError):
                    server.load(name)
                raise
        seconds = time.monotonic() - begin if server else 0.0
        (model / str(current)).rename(model / f"{WITHDRAWN}{current}")
        return Change(current, earlier[-1], seconds)


def prove_version(server: Control, version: Path) -> None:
    """Replay the golden rows of ``version``, by its number and as whoever names none."""
    with Client(server.address, protocol="http") as client:
        for named in (True, False):
            prove(client, version, named=named)
