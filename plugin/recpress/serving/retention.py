"""Which versions of a model are stored, and removing old ones, never one in service."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recpress.errors import RepositoryError
from recpress.serving.config import CONFIG, WITHDRAWN, served_versions, versions_in
from recpress.serving.control import Control
from recpress.serving.repository import check_name, locked


@dataclass(frozen=True)
class Stored:
    """A version in a model's folder: in service, old, or withdrawn by a rollback; and the bytes that it takes."""

    version: int
    state: Literal["served", "old", "withdrawn"]
    folder: Path
    bytes: int


def stored_versions(repository: str | Path, *, name: str, server: Control | None = None) -> list[Stored]:
    """The versions of a model, lowest first; what the running server has ready is in service, whatever the files say.

    Raises:
        RepositoryError: there is no such model.
        ServerError: the server cannot be reached or refuses the key.
    """
    check_name(name)
    model = Path(repository) / name
    if not (model / CONFIG).is_file():
        raise RepositoryError(f"{repository} holds no model {name!r} (no {model / CONFIG})")
    served = set(served_versions(model))
    if server is not None:
        served |= {v.version for v in server.versions() if v.model == name and v.state != "UNAVAILABLE"}
    found = [_stored(model / str(v), v, "served" if v in served else "old") for v in versions_in(model)]
    for folder in model.glob(WITHDRAWN + "*"):
        if (number := folder.name.removeprefix(WITHDRAWN)).isdecimal():
            found.append(_stored(folder, int(number), "served" if int(number) in served else "withdrawn"))
    return sorted(found, key=lambda stored: stored.version)


def _stored(folder: Path, version: int, state: Literal["served", "old", "withdrawn"]) -> Stored:
    return Stored(version, state, folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def prune_versions(
    repository: str | Path, *, name: str, keep: int, server: Control | None = None, dry_run: bool = False
) -> list[Stored]:
    """Remove all versions but those in service and the ``keep`` newest of the others; what was, or would be, removed.

    Args:
        repository: the folder of models.
        name: the model.
        keep: at least 1, so that no number is given to a second version.
        server: the running server, if there is one.
        dry_run: remove nothing.

    Raises:
        RepositoryError: ``keep`` is out of range, there is no such model, or the repository cannot be written.
        ServerError: the server cannot be reached or refuses the key; nothing is removed.
    """
    if not isinstance(keep, int) or keep < 1:
        raise RepositoryError(f"keep is {keep!r}; give how many versions out of service stay, at least 1")
    check_name(name)
    if not (Path(repository) / name / CONFIG).is_file():
        raise RepositoryError(f"{repository} holds no model {name!r} (no {Path(repository) / name / CONFIG})")
    with locked(Path(repository)):
        idle = [s for s in stored_versions(repository, name=name, server=server) if s.state != "served"]
        removed = idle[:-keep]
        for stored in [] if dry_run else removed:
            shutil.rmtree(stored.folder)
    return removed
