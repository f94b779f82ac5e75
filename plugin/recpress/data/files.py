"""Text files of data that a user has: found by name in a folder, as they are or as gzip."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from recpress.errors import DataError


def find(folder: Path, names: Sequence[str]) -> Path:
    """The first of ``names`` that is a file in ``folder``, as it is or with ``.gz`` after it.

    Raises:
        DataError: none is there.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(f"{folder} holds no {' or '.join(names)}, nor one of them with .gz after it; put it there")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, or of a gzip of one.

    Raises:
        DataError: the file cannot be read, or is not in that form.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig").splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from None
