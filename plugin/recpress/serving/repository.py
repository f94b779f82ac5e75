"""Package an artifact as a model of an NVIDIA Triton Inference Server repository.

``<repository>/<name>/config.pbtxt`` describes the model in full, so that the server need not ask the backend;
``<repository>/<name>/<version>/`` holds the artifact's four files and no code.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recpress.artifact.load import load
from recpress.artifact.manifest import GOLDEN, GRAPH, MANIFEST, WEIGHTS, Manifest, check_hashes
from recpress.errors import RepositoryError
from recpress.serving.config import (
    CONFIG,
    DEFAULTS,
    DEVICES,
    config_text,
    next_version,
    options_of,
    read_config,
    same_but_versions,
    serve_versions,
    served_versions,
)

STAGING = ".staging-"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def package(
    folder: str | Path,
    repository: str | Path,
    *,
    name: str,
    max_batch_size: int | None = None,
    instances: int | None = None,
    threads: int | None = None,
    queue_delay_us: int | None = None,
    device: str | None = None,
) -> Path:
    """Add the artifact in ``folder`` to ``repository`` as the next version of the model ``name``.

    A server that loads the model from then on serves the new version and, for rolling back at once, the one before;
    a request that names no version gets the new one. A running server goes on as it is: see
    :func:`recpress.serving.versions.deploy`.

    Args:
        folder: an artifact written by :func:`recpress.export`; its golden rows are replayed first.
        repository: made where it does not exist.
        name: letters, digits, ``_``, ``-`` and ``.``, beginning with no ``.`` or ``-``.
        max_batch_size: rows of the largest batch that the server joins or accepts, at least 1. This and the other
            options are by default those of the version before; of a first version 1024, 1, 1, 0 and ``cpu``.
        instances: how many copies of the backend serve the model; each is a process with its own threads.
        threads: torch threads of an instance. Keep instances times threads within the cores.
        queue_delay_us: how long, in microseconds, a request may wait for others to join its batch.
        device: ``cpu`` or ``cuda``; with the latter the server makes ``instances`` on each GPU that it sees.

    Returns:
        The version's folder.

    Raises:
        ArtifactError: the artifact is not whole, or scores its golden rows otherwise.
        RepositoryError: a value is out of range, the repository cannot be written, or it holds a model of that name
            with another configuration. Nothing is left behind.
        MissingDependencyError: tritonclient is not installed.
    """
    options = {
        "max_batch_size": max_batch_size,
        "instances": instances,
        "threads": threads,
        "queue_delay_us": queue_delay_us,
        "device": device,
    }
    check_name(name)
    check_options(options)
    folder, repository = Path(folder), Path(repository)
    manifest = load(folder).manifest
    with locked(repository):
        return add(folder, manifest, repository / name, options)


def check_name(name: str) -> None:
    """Raises RepositoryError unless ``name`` is fit to name a model, and its folder."""
    if not _NAME.fullmatch(name):
        raise RepositoryError(f"model name {name!r}: use letters, digits, '_', '-' and '.', no '.' or '-' first")


def check_options(options: dict[str, int | str | None]) -> None:
    """Raises RepositoryError unless each option is None, or a whole number in its range, or a device."""
    for what, value in options.items():
        if what == "device":
            if value is not None and value not in DEVICES:
                raise RepositoryError(f"device is {value!r}; give one of: {', '.join(DEVICES)}")
            continue
        least = 0 if what == "queue_delay_us" else 1
        if value is not None and (not isinstance(value, int) or value < least):
            raise RepositoryError(f"{what} is {value!r}; give a whole number of at least {least}")


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Keep other packaging out of ``repository``, which is made where it does not exist; say what cannot be written.

    Raises:
        RepositoryError: another process packages into it, or the system refuses to write.
    """
    new = not repository.exists()
    try:
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be used as a model repository ({error})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RepositoryError(f"another process is changing {repository}; try again when it is done") from None
    except (OSError, shutil.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RepositoryError(
            f"{repository} cannot be written ({reason}); what was there is unchanged: check space and permissions"
        ) from None
    finally:
        os.close(descriptor)
        if new:
            with contextlib.suppress(OSError):
                repository.rmdir()  # where nothing came of it


def add(folder: Path, manifest: Manifest, model: Path, options: dict[str, int | str | None], *, first: int = 1) -> Path:
    """Add an artifact that is known to be good to the folder ``model``; the caller holds the lock.

    ``first`` is the version's number where the model has none yet.
    """
    if (model / CONFIG).is_file():
        before = read_config(model)
        config = _config(manifest, model.name, options, options_of(before))
        if not same_but_versions(config, before):
            raise RepositoryError(
                f"{model} is served with another configuration (inputs, outputs or options differ from this "
                "artifact's); versions of one model share it: choose another name, or remove that model first"
            )
        return _add_version(folder, manifest, model)
    if model.exists():
        raise RepositoryError(f"{model} exists and holds no {CONFIG}; it is no model: remove it or choose another name")
    return _add_model(folder, manifest, model / str(first), _config(manifest, model.name, options, DEFAULTS))


def _config(manifest: Manifest, name: str, options: dict[str, int | str | None], defaults: dict[str, int | str]) -> str:
    given = {what: value for what, value in options.items() if value is not None}
    return config_text(manifest, name=name, **defaults | given)


def _add_model(folder: Path, manifest: Manifest, version: Path, config: str) -> Path:
    model = version.parent
    # Servers may take every folder of a repository for a model, so a new one is staged beside it, where that is the
    # same file system.
    repository = model.parent.resolve()
    beside = repository.parent
    same = beside.stat().st_dev == repository.stat().st_dev and os.access(beside, os.W_OK)
    staging = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=beside if same else repository))
    try:
        (staging / CONFIG).write_text(config, encoding="utf-8")
        _copy_artifact(folder, manifest, staging / version.name)
        staging.chmod(0o755)
        staging.rename(model)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return version


def _add_version(folder: Path, manifest: Manifest, model: Path) -> Path:
    for left in model.glob(STAGING + "*"):  # by a process that was killed: the lock says that none is at work
        shutil.rmtree(left, ignore_errors=True)
    served = served_versions(model)
    version = model / str(next_version(model))
    # A folder whose name is no number is no version to the server.
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=model))
    try:
        _copy_artifact(folder, manifest, staging / "new")
        (staging / "new").rename(version)
        try:
            serve_versions(model, [*served[-1:], int(version.name)])
        except BaseException:
            shutil.rmtree(version, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return version


def _copy_artifact(folder: Path, manifest: Manifest, version: Path) -> None:
    version.mkdir(mode=0o755)
    for name in (MANIFEST, GRAPH, WEIGHTS, GOLDEN):
        shutil.copy(folder / name, version / name)
        (version / name).chmod(0o644)
    check_hashes(version, manifest)
