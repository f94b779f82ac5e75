import shutil
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch

from recpress.data import movielens, sources
from recpress.errors import DataError


@pytest.fixture(scope="module")
def raw():
    try:
        return movielens.fetch()
    except DataError as error:
        pytest.skip(f"no source of MovieLens-100K can be reached: {error}")


@pytest.fixture(scope="module")
def data(raw):
    return movielens.prepare(raw)


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """Neither a proxy nor a configured index takes part."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


def grouplens_files(raw):
    """u.data, u.user and u.item as GroupLens writes them, oddities included: out of order, Latin-1, a film
    without a name, a year followed by (V), a trailing space.
    """
    shuffled = np.random.default_rng(0).permutation(raw.ratings)
    data = "".join("\t".join(map(str, row)) + "\n" for row in shuffled.tolist())
    users = "".join(f"{i}|{u.age}|{u.gender}|{u.occupation}|{u.region}2345\n" for i, u in enumerate(raw.users, 1))
    items = []
    for i, film in enumerate(raw.films, 1):
        flags = "|".join(str(int(flag)) for flag in film.genres)
        title = {267: "unknown", 1412: f"III: (1995) ({film.year}) (V)", 1201: f"Light ({film.year}) "}.get(
            i, f"Café {i} (O Título, 1812) ({film.year})"
        )
        where = "" if i == 267 else "http://us.imdb.com/M/title-exact?T%20(1900)"
        items.append(f"{i}|{title}|{'' if i == 267 else '01-Jan-1990'}||{where}|{flags}\n")
    return {"u.data": data.encode(), "u.user": users.encode(), "u.item": "".join(items).encode("latin-1")}


def recbole_files(raw):
    """ml-100k.inter, .user and .item as recbole writes them, its two odd years included."""
    inter = "".join("\t".join(map(str, row)) + "\n" for row in raw.ratings[::-1].tolist())
    users = "".join(f"{i}\t{u.age}\t{u.gender}\t{u.occupation}\t{u.region}2345\n" for i, u in enumerate(raw.users, 1))
    items = []
    for i, film in enumerate(raw.films, 1):
        genres = " ".join(genre for genre, flag in zip(sources.GENRES, film.genres, strict=True) if flag)
        title, year = {267: ("unkonwn", "unkonwn"), 1412: (f"III: ({film.year})", "V")}.get(i, ("Café", film.year))
        items.append(f"{i}\t{title}\t{year}\t{genres}\n")
    return {
        "inter": f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n{inter}",
        "user": f"user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n{users}",
        "item": f"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n{''.join(items)}",
    }


def zipped(files, prefix="ml-100k/"):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(raw):
    return grouplens_files(raw)


@pytest.fixture(scope="module")
def archive(files):
    return zipped(files)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, archive):
    """A cache folder that holds the data, read from a zip put beside it, which is still there."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "ml-100k.zip").write_bytes(archive)
    movielens.fetch(cache_dir=folder, sources=())
    return folder


@pytest.fixture
def cached(tmp_path, kept):
    """A copy of that cache, without the zip."""
    shutil.copytree(kept / "ml-100k", tmp_path / "ml-100k")
    return tmp_path


@contextmanager
def server(answer):
    """A GroupLens on the loopback: ``answer(handler)`` answers each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *args):
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *args):
            """A client that hangs up early is part of the test."""

    with Quiet(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/ml-100k.zip"
        finally:
            running.shutdown()


def sends(content, *, length=None):
    """The content with its length, or with the length given, or (0) with none."""

    def answer(handler):
        handler.send_response(200)
        if length != 0:
            handler.send_header("Content-Length", str(length or len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def refusal(tmp_path, answer, *, timeout_s=5.0, **options):
    """The text of the DataError with a GroupLens that answers so, and no other source."""
    with server(answer) as url, pytest.raises(DataError) as caught:
        movielens.fetch(cache_dir=tmp_path, sources=[sources.grouplens(url=url, **options)], timeout_s=timeout_s)
    assert not list(tmp_path.rglob("*")), "a refused source leaves nothing behind"
    return str(caught.value)


def same(a, b):
    return np.array_equal(a.ratings, b.ratings) and a.users == b.users and a.films == b.films


def wheel(folder, data):
    """A wheel with recbole's name and these data, that pip takes for the real one."""
    info = "recbole-1.2.1.dist-info/"
    files = {f"recbole/dataset_example/ml-100k/ml-100k.{name}": content for name, content in data.items()} | {
        f"{info}METADATA": "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        f"{info}WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}RECORD": "",
    }
    (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(zipped(files, prefix=""))
    return sources.recbole(pip_args=("--no-index", "--find-links", str(folder)))


def test_the_content_is_movielens_100k(raw):
    assert raw.ratings.shape == (100_000, 4) and raw.ratings.dtype == np.int64
    assert (len(raw.users), len(raw.films)) == (943, 1682)
    assert np.array_equal(np.bincount(raw.ratings[:, 2]), [0, 6110, 11370, 27145, 34174, 21201])
    assert raw.users[0] == movielens.User(24, "M", "technician", "8")
    assert raw.films[0].year == 1995
    assert [g for g, f in zip(sources.GENRES, raw.films[0].genres, strict=True) if f] == [
        *("Animation", "Children's", "Comedy")
    ]
    assert [i for i, film in enumerate(raw.films, 1) if film.year is None] == [267]
    assert raw.films[1411].year == 1995


def test_both_sources_give_the_same(tmp_path, raw, archive):
    with server(sends(archive)) as url:
        one = movielens.fetch(cache_dir=tmp_path / "one", sources=[sources.grouplens(url=url)])
    two = movielens.fetch(cache_dir=tmp_path / "two", sources=[wheel(tmp_path, recbole_files(raw))])
    assert same(one, raw) and same(two, raw)
    assert one.source == url and two.source == "the wheel of recbole==1.2.1"
    for name in movielens.SHA256:
        assert (tmp_path / "one/ml-100k" / name).read_bytes() == (tmp_path / "two/ml-100k" / name).read_bytes()


def test_the_cache_is_used_first(cached, raw):
    def never(scratch, timeout_s):
        raise AssertionError("the cache was not used")

    lines = []
    again = movielens.fetch(cache_dir=cached, sources=[sources.Source("never", never)], report=lines.append)
    assert same(again, raw) and again.source == "the cache"
    assert lines == [f"MovieLens-100K is from {again.source}"]
    assert sorted(path.name for path in (cached / "ml-100k").iterdir()) == sorted(movielens.SHA256)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("ratings.tsv", lambda good: bytes([good[0] ^ 1]) + good[1:], "has sha256"),
        ("users.tsv", lambda good: good[:-10], "has sha256"),
        ("films.tsv", lambda good: None, "cannot be read"),
    ],
)
def test_a_corrupt_cache_is_fetched_again(cached, kept, name, damage, message):
    path = cached / "ml-100k" / name
    good = path.read_bytes()
    path.unlink() if damage(good) is None else path.write_bytes(damage(good))
    with pytest.raises(DataError, match=rf"{name} {message}"):
        movielens.fetch(cache_dir=cached, sources=())
    shutil.copy(kept / "ml-100k.zip", cached)
    movielens.fetch(cache_dir=cached, sources=())
    assert path.read_bytes() == good


def test_a_refused_source_is_reported_and_the_next_one_taken(tmp_path, raw, archive):
    lines = []
    with server(lambda handler: handler.send_error(404)) as missing, server(sends(archive)) as url:
        both = [sources.grouplens(url=missing), sources.grouplens(url=url)]
        assert same(movielens.fetch(cache_dir=tmp_path, sources=both, report=lines.append), raw)
    assert any(missing in line and "404" in line for line in lines)
    assert lines[-1] == f"MovieLens-100K is from {url}"


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, raw, archive):
    (tmp_path / "file").write_text("")
    lines = []
    with server(sends(archive)) as url:
        found = movielens.fetch(
            cache_dir=tmp_path / "file" / "cache", sources=[sources.grouplens(url=url)], report=lines.append
        )
    assert same(found, raw)
    assert "is not kept in the cache" in lines[-1]


def test_no_such_page(tmp_path):
    assert "HTTP Error 404" in refusal(tmp_path, lambda handler: handler.send_error(404))


def test_a_host_that_hangs(tmp_path):
    done = threading.Event()
    started = time.monotonic()
    try:
        assert "timed out" in refusal(tmp_path, lambda handler: done.wait(10), timeout_s=0.2)
    finally:
        done.set()
    assert time.monotonic() - started < 3


def test_a_host_that_hangs_half_way(tmp_path):
    done = threading.Event()

    def answer(handler):
        sends(b"x" * 100, length=200)(handler)
        done.wait(10)

    started = time.monotonic()
    try:
        assert "timed out" in refusal(tmp_path, answer, timeout_s=0.2)
    finally:
        done.set()
    assert time.monotonic() - started < 3


def test_a_host_that_trickles(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOWNLOAD_S", 0.3)

    def answer(handler):
        sends(b"x", length=1000)(handler)
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    started = time.monotonic()
    assert "bytes came in 0.3 s" in refusal(tmp_path, answer, timeout_s=0.2)
    assert time.monotonic() - started < 1.5


def test_no_host(tmp_path):
    with server(lambda handler: None) as url:
        pass
    with pytest.raises(DataError, match="download failed"):
        movielens.fetch(cache_dir=tmp_path, sources=[sources.grouplens(url=url)])


@pytest.mark.parametrize("length", [None, 0])
def test_a_download_is_bounded(tmp_path, length):
    assert "longer than the 99999 bytes" in refusal(tmp_path, sends(b"x" * 100_000, length=length), max_bytes=99_999)


def test_a_file_in_the_zip_is_bounded(tmp_path, files, monkeypatch):
    bomb = zipped(files | {"u.item": b"0" * 3_000_000})
    monkeypatch.setattr(sources, "MAX_BYTES", 2_000_000)
    assert "u.item in ml-100k.zip is longer than" in refusal(tmp_path, sends(bomb))


def test_a_cut_connection(tmp_path, archive):
    assert "ended after 1000 of 2000 bytes" in refusal(tmp_path, sends(archive[:1000], length=2000))


def test_a_truncated_zip(tmp_path, archive):
    assert "damaged, or is no zip" in refusal(tmp_path, sends(archive[: len(archive) // 2]))


def test_a_zip_with_a_flipped_byte(tmp_path, archive):
    middle = len(archive) // 2
    flipped = archive[:middle] + bytes([archive[middle] ^ 0xFF]) + archive[middle + 1 :]
    assert "damaged, or is no zip" in refusal(tmp_path, sends(flipped))


def test_another_zip(tmp_path):
    assert "is not MovieLens-100K" in refusal(tmp_path, sends(zipped({"readme": b"hello"})))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("u.data", b"\t874965758\n", b"\t874965759\n", "ratings.tsv has sha256"),
        ("u.user", b"1|24|M|", b"1|25|M|", "users.tsv has sha256"),
        ("u.item", b"|0|0|0|1|1|1|", b"|0|0|0|1|1|0|", "films.tsv has sha256"),
        ("u.data", b"\t874965758\n", b"\tsoon\n", "not in GroupLens' form"),
        ("u.user", b"1|24|M|", b"1|M|", "not in GroupLens' form"),
    ],
)
def test_wrong_content(tmp_path, files, name, old, new, message):
    assert old in files[name]
    assert message in refusal(tmp_path, sends(zipped(files | {name: files[name].replace(old, new, 1)})))


def test_a_wheel_in_another_form(tmp_path):
    other = wheel(tmp_path, {"inter": "", "user": "user_id:token\tage:token\n1\t24\n", "item": "item_id:token\n"})
    with pytest.raises(DataError, match="not in recbole's form"):
        movielens.fetch(cache_dir=tmp_path / "cache", sources=[other])


def test_no_source_lists_every_reason_and_a_remedy(tmp_path):
    pip = sources.recbole(pip_args=("--no-index", "--find-links", str(tmp_path)))
    with server(lambda handler: handler.send_error(503)) as url, pytest.raises(DataError) as caught:
        movielens.fetch(cache_dir=tmp_path / "cache", sources=[sources.grouplens(url=url), pip])
    text = str(caught.value)
    for part in (
        "ratings.tsv cannot be read",
        "there is no such file",
        f"{url}: the download failed (HTTP Error 503",
        "recbole==1.2.1: pip download ended with code 1: ERROR: No matching distribution found",
        f"Put GroupLens' ml-100k.zip at {tmp_path / 'cache' / 'ml-100k.zip'}",
    ):
        assert part in text, text


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match="xdg/recpress/ml-100k.zip"):
        movielens.fetch(sources=())
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with pytest.raises(DataError, match="home/.cache/recpress/ml-100k.zip"):
        movielens.fetch(sources=())


def test_splits_are_disjoint_and_whole(raw, data):
    assert [len(part) for part in (data.train, data.valid, data.test)] == [80_000, 10_000, 10_000]
    pairs = torch.cat([part.sparse[:, :2] for part in (data.train, data.valid, data.test)])
    assert {(u + 1, f + 1) for u, f in pairs.tolist()} == {(u, f) for u, f in raw.ratings[:, :2].tolist()}
    stars = {(u - 1, f - 1): s for u, f, s, _ in raw.ratings.tolist()}
    for part in (data.train, data.valid, data.test):
        rows = zip(part.sparse[:500].tolist(), part.label[:500].tolist(), strict=True)
        assert all(label == float(stars[u, f] >= 4) for (u, f, *_), label in rows)


def test_columns(data):
    assert data.table_rows == (943, 1682, 2, 21, 19)
    assert data.sparse_names == ("user", "film", "gender", "occupation", "region")
    for part in (data.train, data.valid, data.test):
        assert (part.dense.dtype, part.sparse.dtype, part.label.dtype) == (torch.float32, torch.int64, torch.float32)
        assert part.dense.shape == (len(part), len(data.dense_names))
        assert part.sparse.shape == (len(part), len(data.table_rows))
        assert torch.isfinite(part.dense).all()
        assert (part.sparse >= 0).all() and (part.sparse < torch.tensor(data.table_rows)).all()
    everything = torch.cat([part.sparse for part in (data.train, data.valid, data.test)])
    assert [len(column.unique()) for column in everything.T] == list(data.table_rows)
    numbers, genres = data.train.dense[:, :6], data.train.dense[:, 6:]
    torch.testing.assert_close(numbers.mean(0), torch.zeros(6), rtol=0, atol=1e-3)
    torch.testing.assert_close(numbers.std(0), torch.ones(6), rtol=0, atol=1e-2)
    assert set(genres.unique().tolist()) == {0.0, 1.0}
    assert data.dense_names[6:] == sources.GENRES


def test_counts_are_of_the_other_train_rows(data):
    for column, name in enumerate(("log_user_count", "log_film_count")):
        count = torch.bincount(data.train.sparse[:, column], minlength=data.table_rows[column])
        truth = torch.log1p((count[data.train.sparse[:, column]] - 1).double())
        place = data.dense_names.index(name)
        expected = (truth - truth.mean()) / truth.std(correction=0)
        torch.testing.assert_close(data.train.dense[:, place].double(), expected, rtol=0, atol=1e-5)
        expected = (torch.log1p(count[data.test.sparse[:, column]].double()) - truth.mean()) / truth.std(correction=0)
        torch.testing.assert_close(data.test.dense[:, place].double(), expected, rtol=0, atol=1e-5)


def test_labels_do_not_leak(raw, data):
    """No feature depends on a label of validation or test, nor that of a train row on its own label."""
    held_out = {tuple(pair) for part in (data.valid, data.test) for pair in part.sparse[:, :2].tolist()}
    flip = np.array([(u - 1, f - 1) in held_out for u, f in raw.ratings[:, :2].tolist()])
    flipped = raw.ratings.copy()
    flipped[flip, 2] = 6 - flipped[flip, 2]
    other = movielens.prepare(movielens.Raw("flipped", flipped, raw.users, raw.films))
    for name in ("train", "valid", "test"):
        assert torch.equal(getattr(other, name).dense, getattr(data, name).dense)
    assert not torch.equal(other.test.label, data.test.label)

    ids = np.array([0, 0, 0, 1, 1, 0, 0, 1, 0, 1] * 10)
    train, label = np.arange(len(ids)), np.zeros(len(ids), dtype=np.float32)
    before = movielens._like_share(ids, label, train)
    for row in (0, 37, 99):
        changed = label.copy()
        changed[row] = 1
        after = movielens._like_share(ids, changed, train)
        assert after[row] == before[row]
        assert (after > before).sum() == 90, "only its tenth of the rows does not know of it"


def test_the_seed_decides_the_split(raw, data):
    again, other = movielens.prepare(raw), movielens.prepare(raw, seed=1)
    assert torch.equal(again.test.sparse, data.test.sparse) and torch.equal(again.train.dense, data.train.dense)
    assert not torch.equal(other.test.sparse, data.test.sparse)
