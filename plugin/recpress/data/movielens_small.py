"""MovieLens ml-latest-small from a user's own files: 100,836 ratings of 610 users on 9,742 films.

GroupLens' data (reference and terms stand in movielens.py); any other set in the same form will do. Two files in
UTF-8, as they are or as gzip: ``ratings.csv`` of ``userId,movieId,rating,timestamp`` and ``movies.csv`` of
``movieId,title,genres``, genres between ``|``. The film's column may also be named ``Id``.
"""

import csv
import re
from pathlib import Path

import numpy as np

from recpress.data.files import find, read_lines
from recpress.data.movielens import LIKED, SPLIT_SEED, MovieLens, split_rows
from recpress.errors import DataError

FILM = ("movieId", "Id")
NO_GENRE = "(no genres listed)"


def load(folder: Path, *, seed: int = SPLIT_SEED) -> MovieLens:
    """Rows to learn "the user gives the film at least 4 stars" from, split 8:1:1 at random by ``seed``.

    The columns are those of :func:`recpress.data.movielens.prepare` without the user's age, gender, occupation and
    region, which this set does not have. Ids become places in the sorted ids; films without ratings are left out.

    Raises:
        DataError: a file is missing or not in that form, or a rating is of a film that ``movies.csv`` does not have.
    """
    path = find(folder, ("ratings.csv",))
    ratings = _columns(path, (("userId",), FILM, ("rating",)))
    try:
        users, films, stars = (np.array(column, dtype=np.float64) for column in ratings)
    except ValueError as error:
        raise DataError(f"{path}: {error}; ids and ratings must be numbers") from None
    user_ids, user = np.unique(users.astype(np.int64), return_inverse=True)
    film_ids, film = np.unique(films.astype(np.int64), return_inverse=True)
    years, genres, names = _films(folder, film_ids)
    numbers, splits = split_rows(user, film, stars >= LIKED, {"year": years[film]}, genres[film], seed=seed)
    return MovieLens(
        source=str(path),
        dense_names=(*numbers, *names),
        sparse_names=("user", "film"),
        table_rows=(len(user_ids), len(film_ids)),
        **splits,
    )


def _films(folder: Path, film_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Year of release (NaN where unknown) ``[F]`` and flags ``[F, G]`` of the films of those ids, and the genres."""
    path = find(folder, ("movies.csv",))
    known = {ids: rest for ids, *rest in zip(*_columns(path, (FILM, ("title",), ("genres",))), strict=True)}
    missing = [number for number in film_ids.tolist() if str(number) not in known]
    if missing:
        raise DataError(f"{path} has no film {missing[0]}, nor {len(missing) - 1} others that have ratings")
    rated = [known[str(number)] for number in film_ids.tolist()]
    found = [re.findall(r"\((\d{4})\)", title) for title, _ in rated]
    kinds = [set(listed.split("|")) - {NO_GENRE, ""} for _, listed in rated]
    names = sorted(set().union(*kinds))
    years = np.array([float(year[-1]) if year else np.nan for year in found])
    return years, np.array([[name in kind for name in names] for kind in kinds], dtype=np.float64), names


def _columns(path: Path, wanted: tuple[tuple[str, ...], ...]) -> list[list[str]]:
    """The columns of a CSV file with a header, each under one of the names wanted."""
    header, *rows = list(csv.reader(read_lines(path))) or [[]]
    places = []
    for names in wanted:
        found = [header.index(name) for name in names if name in header]
        if not found:
            raise DataError(f"{path} has no column {' or '.join(names)}; its columns are {', '.join(header)}")
        places.append(found[0])
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}: record {number} has {len(row)} fields, and the header {len(header)}")
    if not rows:
        raise DataError(f"{path} has no rows under its header")
    return [[row[place] for row in rows] for place in places]
