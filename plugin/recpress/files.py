"""Files that a user asked for: found to be writable before the work, and written whole or not at all."""

import os
import tempfile
from pathlib import Path

from recpress.errors import OutputError


def require_writable(path: Path) -> None:
    """Find out before the work that its result could not be kept.

    Raises:
        OutputError: ``path`` is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def replace(path: Path, content: str | bytes) -> None:
    """Write beside ``path``, then rename, so that nobody reads half of it.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    staged = None
    try:
        descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        Path(staged).chmod(0o644)
        Path(staged).replace(path)
    except OSError as error:
        if staged is not None:
            Path(staged).unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written ({error.strerror or error}); give a file in a folder of yours")
