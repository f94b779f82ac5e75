import gzip

import numpy as np
import pytest
import torch

from recpress.data import movielens_small
from recpress.errors import DataError

MOVIES = """{film},title,genres
1,Toy Story (1995),Adventure|Comedy
7,"American President, The (1995)",Comedy
40,Babylon 5,(no genres listed)
99,Never Rated (2001),Horror
"""


def ratings(n=60):
    """Users 5 and 9 and three films; user 5 likes what 9 does not."""
    generator = np.random.default_rng(0)
    rows = [(5 if i % 2 else 9, (1, 7, 40)[i % 3], (4.0, 3.5)[i % 2], int(generator.integers(10**9))) for i in range(n)]
    return rows, "userId,{film},rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


def write(folder, *, film="movieId", movies=MOVIES, rated=None, packed=False):
    rated = ratings()[1] if rated is None else rated
    for name, text in (("movies.csv", movies), ("ratings.csv", rated)):
        content = text.replace("{film}", film).encode()
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("film", ["movieId", "Id"])
@pytest.mark.parametrize("packed", [False, True])
def test_rows(tmp_path, film, packed):
    write(tmp_path, film=film, packed=packed)
    data = movielens_small.load(tmp_path)
    assert data.table_rows == (2, 3) and data.sparse_names == ("user", "film")
    assert data.dense_names == (
        *("year", "log_user_count", "log_film_count", "user_like_share", "film_like_share"),
        *("Adventure", "Comedy"),
    ), "a genre of no rated film is no column"
    assert [len(part) for part in (data.train, data.valid, data.test)] == [48, 6, 6]
    parts = (data.train, data.valid, data.test)
    dense, sparse, label = (torch.cat([getattr(p, name) for p in parts]) for name in ("dense", "sparse", "label"))
    assert dense.dtype == torch.float32 and torch.isfinite(dense).all()
    assert torch.equal(label, (sparse[:, 0] == 1).float()), "user 9, the second, gave 4 stars, and user 5 gave 3.5"
    flags = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert torch.equal(dense[:, 5:], flags[sparse[:, 1]])
    years = dense[:, 0]
    assert (years[sparse[:, 1] == 2] == 0).all(), "an unknown year is 0"
    counted = sorted(map(tuple, sparse.tolist()))
    assert counted == sorted((int(user == 9), (1, 7, 40).index(film)) for user, film, *_ in ratings()[0])


def test_the_seed_decides_the_split(tmp_path):
    write(tmp_path)
    first, again, other = (movielens_small.load(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.test.sparse, again.test.sparse)
    assert not torch.equal(first.test.sparse, other.test.sparse)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rated": "userId,{film},rating\n5,1,good\n"}, "good.*ids and ratings must be numbers"),
        ({"rated": "userId,{film}\n5,1\n"}, "no column rating; its columns are userId, movieId"),
        ({"rated": "user,{film},rating\n5,1,4\n"}, "no column userId"),
        ({"rated": "userId,{film},rating\n5,1\n"}, "record 2 has 2 fields, and the header 3"),
        ({"rated": "userId,{film},rating\n"}, "no rows under its header"),
        ({"rated": ""}, "no column userId"),
        ({"rated": "userId,{film},rating\n5,1,4\n5,8,4\n5,6,4\n"}, "has no film 6, nor 1 others"),
        ({"movies": "{film},title\n1,a\n"}, "no column genres"),
    ],
)
def test_files_of_another_form(tmp_path, changed, message):
    write(tmp_path, **changed)
    with pytest.raises(DataError, match=message):
        movielens_small.load(tmp_path)


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match="holds no ratings.csv"):
        movielens_small.load(tmp_path)
    write(tmp_path, packed=True)
    (tmp_path / "ratings.csv.gz").write_bytes((tmp_path / "ratings.csv.gz").read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as text"):
        movielens_small.load(tmp_path)
    (tmp_path / "ratings.csv").write_bytes(b"userId,\xff")
    with pytest.raises(DataError, match="cannot be read as text"):
        movielens_small.load(tmp_path)
