"""Start a canary beside the model in service, change its share, and end it: as the next version, or not at all."""

import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from recpress.artifact.load import load, read_golden
from recpress.artifact.manifest import read_manifest
from recpress.errors import RecpressError, RepositoryError
from recpress.serving.client import Client
from recpress.serving.compare import Served, Verdict, compare_scores, judge, read_served
from recpress.serving.config import (
    CONFIG,
    next_version,
    options_of,
    read_config,
    served_versions,
    versions_in,
    write_config,
)
from recpress.serving.control import Control
from recpress.serving.metrics import fetch_text
from recpress.serving.repository import add, check_name, locked
from recpress.serving.split import SALT, SHARE, SUFFIX, Split, check_share, read_split
from recpress.serving.versions import Change, deploy, prove_version, undone_on_failure


def start(
    artifact: str | Path, repository: str | Path, *, name: str, share: float, server: Control | None = None
) -> Change:
    """Serve an artifact beside the model ``name``, for a share of the clients that split their traffic.

    The model itself is not touched. The canary has its options, and the number of its next version.

    Args:
        artifact: a folder written by :func:`recpress.export`.
        repository: the folder of models.
        name: the model in service.
        share: of all keys, from 0 to 1.
        server: the running server, if there is one.

    Raises:
        ArtifactError: the artifact is not whole, or scores its golden rows otherwise.
        RepositoryError: there is no such model, it has a canary already, the artifact has other inputs or outputs, or
            the server does not load it. Nothing is left behind.
        ServerError: the server cannot be reached, or refuses the key. Nothing is left behind.
    """
    check_share(share)
    model = _model(repository, name)
    canary = _canary(model)
    if canary.exists():
        raise RepositoryError(f"{name} has a canary already, {canary}; promote or abort it first")
    manifest = load(artifact).manifest
    with locked(Path(repository)):
        if server is not None:
            server.versions()
        stable = read_config(model)
        begin = time.monotonic()
        version = add(Path(artifact), manifest, canary, options_of(stable), first=next_version(model))
        try:
            _check_same_form(stable, read_config(canary), name)
            _write_split(canary, Split(share, secrets.token_hex(4)))
            if server is not None:
                with undone_on_failure(version, None, None, server):
                    server.load(canary.name)
                    prove_version(server, version)
        except BaseException:
            shutil.rmtree(canary, ignore_errors=True)
            raise
        before = max(served_versions(model), default=None)
        return Change(before, int(version.name), time.monotonic() - begin if server else 0.0)


def change_share(repository: str | Path, *, name: str, share: float, server: Control | None = None) -> None:
    """Give the canary of ``name`` another share; the server loads it anew meanwhile, and the old one answers.

    Raises:
        RepositoryError: there is no canary, or the share is out of range.
        ServerError: the server cannot be reached or refuses; the share is as it was.
    """
    check_share(share)
    canary = _existing(repository, name)
    with locked(Path(repository)):
        old = (canary / CONFIG).read_text(encoding="utf-8")
        _write_split(canary, Split(share, split_of(repository, name=name).salt))
        if server is not None:
            try:
                server.load(canary.name)
            except RecpressError:
                write_config(canary, old)
                raise


def abort(repository: str | Path, *, name: str, server: Control | None = None) -> None:
    """Take the canary of ``name`` out of service and remove it; the model answers from then on.

    Raises:
        RepositoryError: there is no canary.
        ServerError: the server cannot be reached or refuses the key; the canary serves on.
    """
    canary = _existing(repository, name)
    with locked(Path(repository)):
        if server is not None:
            server.unload(canary.name)
        shutil.rmtree(canary)


def promote(repository: str | Path, *, name: str, server: Control | None = None) -> Change:
    """Deploy the canary of ``name`` as its next version, then end the canary.

    Raises:
        RepositoryError: there is no canary, or its version does not come into service; it serves on as a canary.
        ServerError: the server cannot be reached or refuses the key.
    """
    canary = _existing(repository, name)
    (version,) = versions_in(canary)
    change = deploy(canary / str(version), repository, name=name, server=server)
    abort(repository, name=name, server=server)
    return change


def compare(repository: str | Path, *, name: str, address: str, metrics: str) -> Iterator[Verdict]:
    """Judge the canary of ``name`` by what happens from the first verdict on; each next one is of now.

    Args:
        repository: the folder of models.
        name: the model.
        address: ``host:port`` of gRPC.
        metrics: ``host:port`` of the metrics.

    Raises:
        RepositoryError: there is no canary.
        RequestError, ServerError: the server cannot be reached, or serves them no more.
    """
    canary = _existing(repository, name)
    model = _model(repository, name)
    version = model / str(served_versions(model)[-1])
    manifest = read_manifest(version)
    golden, _ = read_golden(version, manifest)
    wire = {spec.name: golden[spec.name].reshape(-1, *spec.wire_shape).numpy() for spec in manifest.inputs}
    batch = options_of(read_config(model))["max_batch_size"]
    wire = {key: rows[:batch] for key, rows in wire.items()}

    def served() -> tuple[Served, Served]:
        text = fetch_text(metrics)
        return read_served(text, name), read_served(text, canary.name)

    with Client(address) as client:
        scores = compare_scores(client, name, canary.name, wire)
        before = served()
        while True:
            yield judge(*(now.since(then) for now, then in zip(served(), before, strict=True)), scores)


def split_of(repository: str | Path, *, name: str) -> Split:
    """The share of the canary of ``name``.

    Raises:
        RepositoryError: there is no canary.
    """
    parameters = read_config(_existing(repository, name)).parameters
    return read_split({key: value.string_value for key, value in parameters.items()})


def _model(repository: str | Path, name: str) -> Path:
    check_name(name)
    model = Path(repository) / name
    if name.endswith(SUFFIX) or not (model / CONFIG).is_file():
        raise RepositoryError(f"{repository} holds no model {name!r} to have a canary (no {model / CONFIG})")
    return model


def _canary(model: Path) -> Path:
    return model.with_name(model.name + SUFFIX)


def _existing(repository: str | Path, name: str) -> Path:
    canary = _canary(_model(repository, name))
    if not (canary / CONFIG).is_file():
        raise RepositoryError(f"{name} has no canary in {repository}; begin with: recpress canary start")
    return canary


def _check_same_form(stable, config, name: str) -> None:
    for what in ("input", "output"):
        if list(getattr(stable, what)) != list(getattr(config, what)):
            raise RepositoryError(
                f"the artifact's {what}s are not those of {name}, so that its clients cannot use it; deploy it as a "
                "model of its own"
            )


def _write_split(canary: Path, split: Split) -> None:
    config = read_config(canary)
    config.parameters[SHARE].string_value = repr(split.share)
    config.parameters[SALT].string_value = split.salt
    write_config(canary, str(config))
