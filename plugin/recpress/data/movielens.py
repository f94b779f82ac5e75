"""MovieLens-100K: 100,000 ratings of 943 users on 1,682 films, fetched, verified and made into rows.

The data are GroupLens' (F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM
TiiS 5(4), 2015): free for research, not for commerce, and not ours to hand on, so that they are fetched by
whoever runs this. They are looked for in this order, and the first source whose content is right wins:

1. the cache, three text files under ``$XDG_CACHE_HOME/recpress/ml-100k`` (or ``~/.cache/...``);
2. ``ml-100k.zip`` of GroupLens, put beside that folder by hand;
3. ``ml-100k.zip`` from GroupLens' host;
4. the ``recbole`` wheel, which carries the same ratings, users and films, fetched by pip.

Every source is brought to the same canonical text, whose sha256 stands in :data:`SHA256`, so that what is
read does not depend on where it came from. sources.py describes that text.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from recpress.data.sources import (
    GENRES,
    GROUPLENS_URL,
    RECBOLE,
    Source,
    cache,
    grouplens,
    placed_zip,
    recbole,
    table_of,
)
from recpress.errors import DataError

SHA256 = {
    "ratings.tsv": "6cfffb52c89b05fbc3afb75f6912eeda04c81c2add0dc58e773a0ef6c8adb160",
    "users.tsv": "fcf3abacd4a0163a59c198eedf9553fa7f03651b68b3e5d141c3f5f0b0281cbd",
    "films.tsv": "80d72a6dea88c82bd43713703caab6fac0f020b86b4c94359df813c4f354e4f8",
}
LIKED = 4  # stars
SPLIT_SEED = 2015
PRIOR_ROWS = 10  # rows of the mean share of likes that a user's or a film's own share is drawn by


@dataclass(frozen=True)
class User:
    """One user: age in years, gender M or F, occupation in words, first character of the zip code."""

    age: int
    gender: str
    occupation: str
    region: str


@dataclass(frozen=True)
class Film:
    """One film: year of release, None where unknown, and a flag for each of :data:`GENRES`."""

    year: int | None
    genres: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Raw:
    """MovieLens-100K as read.

    ``ratings`` is int64 [100000, 4]: user, film (both from 1), stars, seconds since 1970, sorted by user and
    film. User ``u`` is ``users[u - 1]``, film ``f`` is ``films[f - 1]``.
    """

    source: str
    ratings: np.ndarray
    users: tuple[User, ...]
    films: tuple[Film, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows for a model: ``dense`` float32 [N, D], ``sparse`` int64 [N, T], ``label`` float32 [N] of 0 and 1."""

    dense: torch.Tensor
    sparse: torch.Tensor
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, eq=False)
class MovieLens:
    """The three splits, with the names of their columns and the rows of each sparse column's table."""

    source: str
    dense_names: tuple[str, ...]
    sparse_names: tuple[str, ...]
    table_rows: tuple[int, ...]
    train: Rows
    valid: Rows
    test: Rows


def fetch(
    *,
    cache_dir: Path | str | None = None,
    sources: Sequence[Source] | None = None,
    timeout_s: float = 5.0,
    report: Callable[[str], object] | None = None,
) -> Raw:
    """MovieLens-100K from the first source that has it, kept in the cache for the next time.

    Args:
        cache_dir: folder to keep it in; by default ``$XDG_CACHE_HOME/recpress`` or ``~/.cache/recpress``.
        sources: what to try after the cache; by default :func:`grouplens`, then :func:`recbole`.
        timeout_s: seconds to wait for a host to answer; a whole download may take longer.
        report: called with a line for each source that is refused, and for the one that is taken.

    Raises:
        DataError: no source has it; the text gives each one's reason and what to do.
    """
    root = default_cache() if cache_dir is None else Path(cache_dir)
    folder = root / "ml-100k"
    placed = root / "ml-100k.zip"
    say = report or (lambda line: None)
    refused = []
    others = (grouplens(), recbole()) if sources is None else tuple(sources)
    for source in (cache(folder), placed_zip(placed), *others):
        try:
            with tempfile.TemporaryDirectory(prefix="recpress-") as scratch:
                files = _verified(source.read(Path(scratch), timeout_s))
        except DataError as error:
            refused.append(f"{source.name}: {error}")
            say(f"MovieLens-100K is not in {refused[-1]}")
            continue
        say(f"MovieLens-100K is from {source.name}")
        _keep(folder, files, say)
        return _parse(files, source.name)
    reasons = "\n".join(f"  - {reason}" for reason in refused)
    raise DataError(
        f"MovieLens-100K cannot be fetched. Tried in turn:\n{reasons}\n"
        f"Put GroupLens' ml-100k.zip at {placed}, or let this machine reach {GROUPLENS_URL}, or let pip "
        f"download {RECBOLE}; then run this again."
    )


def load(
    *,
    cache_dir: Path | str | None = None,
    sources: Sequence[Source] | None = None,
    timeout_s: float = 5.0,
    report: Callable[[str], object] | None = None,
    seed: int = SPLIT_SEED,
) -> MovieLens:
    """:func:`fetch`, then :func:`prepare`; the same options, and the same errors."""
    return prepare(fetch(cache_dir=cache_dir, sources=sources, timeout_s=timeout_s, report=report), seed=seed)


def prepare(raw: Raw, *, seed: int = SPLIT_SEED) -> MovieLens:
    """Rows to learn "the user gives the film at least 4 stars" from, split 8:1:1 at random by ``seed``.

    Dense columns: age, year of release, log(1 + n) and share of likes of the OTHER train rows of the user and
    of the film, all standardised over the train rows (an unknown year is 0), then the genre flags as 0 and 1.
    Sparse columns: user, film, gender, occupation, region, as ids from 0. The time is no feature.
    """
    user, film = raw.ratings[:, 0] - 1, raw.ratings[:, 1] - 1
    numbers = {
        "age": np.array([u.age for u in raw.users], dtype=np.float64)[user],
        "year": np.array([f.year or np.nan for f in raw.films], dtype=np.float64)[film],
    }
    traits = [_codes([getattr(u, name) for u in raw.users]) for name in ("gender", "occupation", "region")]
    genres = np.array([f.genres for f in raw.films], dtype=np.float64)[film]
    names, splits = split_rows(user, film, raw.ratings[:, 2] >= LIKED, numbers, genres, traits, seed=seed)
    return MovieLens(
        source=raw.source,
        dense_names=(*names, *GENRES),
        sparse_names=("user", "film", "gender", "occupation", "region"),
        table_rows=(len(raw.users), len(raw.films), *(int(codes.max()) + 1 for codes in traits)),
        **splits,
    )


def split_rows(
    user: np.ndarray,
    film: np.ndarray,
    liked: np.ndarray,
    numbers: dict[str, np.ndarray],
    genres: np.ndarray,
    traits: Sequence[np.ndarray] = (),
    *,
    seed: int = SPLIT_SEED,
) -> tuple[tuple[str, ...], dict[str, Rows]]:
    """Names of the columns that are standardised, and rows of ratings split 8:1:1 at random by ``seed``.

    :func:`prepare` says what the columns are. ``user`` and ``film`` are ids from 0, one a rating; ``numbers`` and
    ``genres`` ``[N, G]`` are of the ratings, ``traits`` of the users.
    """
    label = liked.astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(label))
    tenth = len(order) // 10
    parts = {"train": order[2 * tenth :], "valid": order[:tenth], "test": order[tenth : 2 * tenth]}
    train = parts["train"]
    numbers = numbers | {
        "log_user_count": _log_others(user, train),
        "log_film_count": _log_others(film, train),
        "user_like_share": _like_share(user, label, train),
        "film_like_share": _like_share(film, label, train),
    }
    # A column that is the same everywhere has no deviation.
    columns = [(x - np.nanmean(x[train])) / (np.nanstd(x[train]) or 1.0) for x in numbers.values()]
    dense = np.column_stack([*map(np.nan_to_num, columns), genres]).astype(np.float32)
    sparse = np.column_stack([user, film, *(codes[user] for codes in traits)])
    splits = {
        name: Rows(*(torch.from_numpy(column[rows]) for column in (dense, sparse, label)))
        for name, rows in parts.items()
    }
    return tuple(numbers), splits


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/recpress`` or ``~/.cache/recpress``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "recpress"


def _keep(folder: Path, files: dict[str, bytes], say: Callable[[str], object]) -> None:
    """Write what the cache lacks, each file staged, read back and renamed; a failure costs only a report."""
    for name, content in files.items():
        path = folder / name
        part = None
        try:
            if path.is_file() and path.read_bytes() == content:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as stream:
                part = Path(stream.name)
                stream.write(content)
            if part.read_bytes() != content:
                raise OSError("it reads back differently from what was written")
            part.replace(path)
        except OSError as error:
            say(f"MovieLens-100K is not kept in the cache {folder}: {error}")
            if part is not None:
                part.unlink(missing_ok=True)
            return


def _verified(files: dict[str, bytes]) -> dict[str, bytes]:
    for name, expected in SHA256.items():
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise DataError(f"the content is not MovieLens-100K's: {name} has sha256 {found}, not {expected}")
    return files


def _parse(files: dict[str, bytes], source: str) -> Raw:
    """Verified canonical files as numbers and words."""
    users, films = (table_of(files[name].decode(), "\t") for name in ("users.tsv", "films.tsv"))
    return Raw(
        source=source,
        ratings=np.loadtxt(BytesIO(files["ratings.tsv"]), dtype=np.int64, delimiter="\t"),
        users=tuple(User(int(age), gender, work, region) for _, age, gender, work, region in users),
        films=tuple(
            Film(int(year) if year else None, tuple(flag == "1" for flag in flags)) for _, year, flags in films
        ),
    )


def _log_others(ids: np.ndarray, train: np.ndarray) -> np.ndarray:
    """log(1 + n) for each row, n being the train rows of the same id, the row itself left out."""
    count = np.bincount(ids[train], minlength=ids.max() + 1)[ids]
    count[train] -= 1
    return np.log1p(count)


def _like_share(ids: np.ndarray, label: np.ndarray, train: np.ndarray) -> np.ndarray:
    """For each row, the share of likes among the train rows of its id, drawn to the mean by PRIOR_ROWS.

    For a train row, its tenth of the train rows is left out. Leaving out the row alone would give its label
    away: among the rows of an id, the share would be lower by a fixed step where the label is 1.
    """

    def shares(rows: np.ndarray) -> np.ndarray:
        count = np.bincount(ids[rows], minlength=ids.max() + 1)
        likes = np.bincount(ids[rows], weights=label[rows], minlength=ids.max() + 1)
        return (likes + PRIOR_ROWS * label[rows].mean()) / (count + PRIOR_ROWS)

    found = shares(train)[ids]
    for held_out in np.array_split(train, 10):
        found[held_out] = shares(np.setdiff1d(train, held_out))[ids[held_out]]
    return found


def _codes(words: Sequence[str]) -> np.ndarray:
    """Each word's place, int64, in the sorted set of words."""
    return np.unique(np.array(words), return_inverse=True)[1].astype(np.int64)
