"""Where MovieLens-100K can come from, each source brought to the same canonical text.

The canonical lines, sorted by their ids, are

- ``ratings.tsv``: ``user  film  rating  timestamp``, integers, users and films from 1;
- ``users.tsv``: ``user  age  gender  occupation  region``, the region being the zip code's first character;
- ``films.tsv``: ``film  year  flags``, the year empty where unknown, the flags 0 or 1 in :data:`GENRES`' order.
"""

import itertools
import re
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from recpress.errors import DataError

FILES = ("ratings.tsv", "users.tsv", "films.tsv")
GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
RECBOLE = "recbole==1.2.1"
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
MAX_BYTES = 16 << 20  # of a download, and of a file in an archive; GroupLens' zip has about 5 MB
DOWNLOAD_S = 60.0
PIP_S = 120.0


@dataclass(frozen=True)
class Source:
    """Where the data can come from: ``read(scratch, timeout_s)`` gives the canonical files or a DataError."""

    name: str
    read: Callable[[Path, float], dict[str, bytes]]


def grouplens(*, url: str = GROUPLENS_URL, max_bytes: int = MAX_BYTES) -> Source:
    """The zip at ``url``; one of more than ``max_bytes`` bytes is refused."""

    def read(scratch: Path, timeout_s: float) -> dict[str, bytes]:
        archive = scratch / "ml-100k.zip"
        _download(url, archive, timeout_s=timeout_s, max_bytes=max_bytes)
        return _from_grouplens(archive)

    return Source(url, read)


def recbole(*, requirement: str = RECBOLE, pip_args: Sequence[str] = ()) -> Source:
    """The wheel of ``requirement`` as this Python's pip downloads it; nothing is installed or run.

    ``pip_args`` are further arguments of ``pip download``, such as ``("--no-index", "--find-links", folder)``.
    """

    def read(scratch: Path, timeout_s: float) -> dict[str, bytes]:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--retries", "1"),
            *("--timeout", str(timeout_s), "--no-deps", "--only-binary", ":all:", *pip_args),
            *("-d", str(scratch), requirement),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PIP_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"pip download did not end well: {error}") from error
        wheels = sorted(scratch.glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise DataError(f"pip download ended with code {done.returncode}: {lines[-1].strip()}")
        return _from_recbole(wheels[0])

    return Source(f"the wheel of {requirement}", read)


def cache(folder: Path) -> Source:
    """The canonical files, kept in ``folder`` by an earlier fetch."""

    def read(scratch: Path, timeout_s: float) -> dict[str, bytes]:
        files = {}
        for name in FILES:
            try:
                with (folder / name).open("rb") as stream:
                    files[name] = stream.read(MAX_BYTES)
            except OSError as error:
                raise DataError(f"{folder / name} cannot be read ({error.strerror})") from error
        return files

    return Source("the cache", read)


def placed_zip(path: Path) -> Source:
    """GroupLens' zip, put at ``path`` by hand."""

    def read(scratch: Path, timeout_s: float) -> dict[str, bytes]:
        if not path.is_file():
            raise DataError("there is no such file")
        return _from_grouplens(path)

    return Source(str(path), read)


def _download(url: str, path: Path, *, timeout_s: float, max_bytes: int) -> None:
    """``url`` to ``path``, through a file beside it that is renamed when all of it has come."""
    part = path.with_suffix(".part")
    deadline = time.monotonic() + max(DOWNLOAD_S, timeout_s)
    received = 0
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer, part.open("wb") as stream:
            expected = answer.headers.get("Content-Length", "")
            while chunk := answer.read1(1 << 16):
                received += len(chunk)
                if received > max_bytes:
                    raise DataError(f"the answer is longer than the {max_bytes} bytes allowed")
                if time.monotonic() > deadline:
                    raise DataError(f"only {received} bytes came in {max(DOWNLOAD_S, timeout_s):g} s")
                stream.write(chunk)
    except (OSError, HTTPException, ValueError) as error:
        raise DataError(f"the download failed ({error})") from error
    if expected.isdigit() and received != int(expected):
        raise DataError(f"the download ended after {received} of {expected} bytes")
    part.rename(path)


def _from_grouplens(archive: Path) -> dict[str, bytes]:
    """The canonical files from GroupLens' zip: u.data, u.user and u.item, the last in Latin-1."""
    data, users, items = _members(archive, "ml-100k/u.data", "ml-100k/u.user", "ml-100k/u.item")
    try:
        films = [
            (number, _year(title), list(itertools.compress(GENRES, map(int, flags))))
            for number, title, _, _, _, *flags in table_of(items.decode("latin-1"), "|")
        ]
        return _canonical(table_of(data.decode(), "\t"), table_of(users.decode(), "|"), films)
    except ValueError as error:
        raise DataError(f"{archive.name} is not in GroupLens' form: {error}") from error


def _from_recbole(wheel: Path) -> dict[str, bytes]:
    """The canonical files from recbole's: a header such as ``user_id:token``, then fields between tabs.

    Two films have no year there: one is unknown, and one, whose title ends in "(1995) (V)", has "V" in its
    stead and keeps the year in its title. Genres are names between spaces.
    """
    prefix = "recbole/dataset_example/ml-100k/ml-100k."
    inter, user, item = _members(wheel, f"{prefix}inter", f"{prefix}user", f"{prefix}item")
    try:
        films = [
            (number, _year(f"{title} ({year})"), genres.split())
            for number, title, year, genres in _columns(item, "item_id", "movie_title", "release_year", "class")
        ]
        return _canonical(
            _columns(inter, "user_id", "item_id", "rating", "timestamp"),
            _columns(user, "user_id", "age", "gender", "occupation", "zip_code"),
            films,
        )
    except ValueError as error:
        raise DataError(f"{wheel.name} is not in recbole's form: {error}") from error


def _members(archive: Path, *names: str) -> list[bytes]:
    """The named files of a zip, whole, their checksums verified by zipfile."""
    contents = []
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in names:
                with opened.open(name) as stream:
                    contents.append(stream.read(MAX_BYTES + 1))
                if len(contents[-1]) > MAX_BYTES:
                    raise DataError(f"{name} in {archive.name} is longer than the {MAX_BYTES} bytes allowed")
    except KeyError as error:
        raise DataError(f"{archive.name} is not MovieLens-100K: {error.args[0]}") from error
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive.name} is damaged, or is no zip file ({error})") from error
    return contents


def table_of(text: str, separator: str) -> list[list[str]]:
    """The fields of each line that is not empty."""
    return [line.rstrip("\r").split(separator) for line in text.split("\n") if line]


def _columns(content: bytes, *names: str) -> list[list[str]]:
    header, *rows = table_of(content.decode(), "\t")
    places = [[field.partition(":")[0] for field in header].index(name) for name in names]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"a line has not the {len(header)} fields of its header")
    return [[row[place] for place in places] for row in rows]


def _year(title: str) -> int | None:
    years = re.findall(r"\((\d{4})\)", title)
    return int(years[-1]) if years else None


def _canonical(
    ratings: Iterable[Sequence[str]],
    users: Iterable[Sequence[str]],
    films: Iterable[tuple[str, int | None, Sequence[str]]],
) -> dict[str, bytes]:
    """The canonical files, of ratings (user, film, stars, time), users (id, age, gender, occupation, zip code)
    and films (id, year, names of genres); ValueError where a line has other fields.
    """
    rated = sorted([int(user), int(film), int(stars), int(when)] for user, film, stars, when in ratings)
    people = sorted([int(u), int(age), sex, work, place[:1]] for u, age, sex, work, place in users)
    works = sorted(
        [int(film), year or "", "".join("01"[genre in names] for genre in GENRES)] for film, year, names in films
    )
    tables = {"ratings.tsv": rated, "users.tsv": people, "films.tsv": works}
    return {name: "".join("\t".join(map(str, row)) + "\n" for row in rows).encode() for name, rows in tables.items()}
