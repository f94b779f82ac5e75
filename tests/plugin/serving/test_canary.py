"""A canary beside its model in the real server: shares, abort, promotion, and the verdict on it."""

import threading
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import recpress
from recpress.artifact.load import load, read_golden
from recpress.artifact.manifest import read_manifest
from recpress.cli.main import app
from recpress.errors import ProbeError, RepositoryError
from recpress.serving import canary
from recpress.serving.client import Client
from recpress.serving.compare import Scores, Served, judge, requests_needed, tail
from recpress.serving.config import served_versions, versions_in
from recpress.serving.metrics import Histogram
from recpress.serving.server import Server
from recpress.serving.split import Split, SplitClient

SHARE = 0.3


class Clients:
    """Eight clients that split their traffic by user, and note who was answered by whom, by the scores."""

    def __init__(self, server, artifacts):
        manifest = read_manifest(artifacts[0])
        inputs, _ = read_golden(artifacts[0], manifest)
        self.rows = {name: t[:4].numpy() for name, t in inputs.items()}
        self.expected = [load(a).score({k: t[:4] for k, t in inputs.items()})["logit"].numpy() for a in artifacts]
        self.tolerance = manifest.golden.outlier_atol
        assert np.abs(self.expected[0] - self.expected[1]).min() > 4 * self.tolerance
        self.server, self.answers, self.failures = server, [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(8)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, i):
        protocol = "grpc" if i % 2 else "http"
        with Client(self.server.url(protocol), protocol=protocol) as connection:
            client = SplitClient(connection, "small", refresh_s=0.2)
            turn = i
            while not self._stop.is_set():
                user = f"user {turn % 400}"
                turn += 8
                begin = time.monotonic()
                try:
                    got = client.score(self.rows, key=user)["logit"][:, 0]
                    fits = [np.abs(got - want).max() <= self.tolerance for want in self.expected]
                    self.answers.append((begin, user, fits.index(True)))
                except Exception as error:
                    self.failures.append(repr(error))

    def since(self, begin, count=1200):
        """The next answers to requests that were sent after ``begin``."""
        deadline = time.monotonic() + 60
        while True:
            kept = [(user, by) for sent, user, by in list(self.answers) if sent > begin]
            if len(kept) >= count:
                return kept
            assert time.monotonic() < deadline and not self.failures, self.failures[:3]
            time.sleep(0.02)


@pytest.mark.server
def test_a_share_of_the_users_is_taken_and_given_back(artifact, other, tmp_path):
    repository = tmp_path / "repo"
    recpress.package(artifact, repository, name="small", max_batch_size=64)
    with Server(repository) as server, Clients(server, [artifact, other]) as clients:
        control = server.control
        done = canary.start(other, repository, name="small", share=SHARE, server=control)
        assert (done.before, done.now) == (1, 2)
        with Client(server.url("grpc")) as plain:
            got = plain.score("small", clients.rows)["logit"][:, 0]
            assert np.abs(got - clients.expected[0]).max() <= clients.tolerance, "who names no version gets the model"
        split = canary.split_of(repository, name="small")
        time.sleep(0.5)
        seen = clients.since(time.monotonic())
        assert all((by == 1) == split.takes(user) for user, by in seen), "a user sees one version"
        users = {user for user, _ in seen}
        taken = sum(split.takes(user) for user in users)
        assert len(users) == 400 and abs(taken - SHARE * 400) < 4 * (400 * SHARE * (1 - SHARE)) ** 0.5

        grpc, metrics = server.url("grpc"), server.url("metrics")
        verdicts = canary.compare(repository, name="small", address=grpc, metrics=metrics)
        first = next(verdicts)
        assert first.requests < 100 and not first.good
        clients.since(time.monotonic(), 400)
        deadline = time.monotonic() + 30
        while np.isnan((second := next(verdicts)).p99_s).any():
            assert time.monotonic() < deadline, "the backend hands its histograms on every half second"
            time.sleep(0.05)
        assert first.requests < second.requests < second.needed and second.failed == (0, 0) and min(second.p99_s) > 0
        assert second.scores.rows == 64 and second.scores.shift != 0

        canary.abort(repository, name="small", server=control)
        assert {by for _, by in clients.since(time.monotonic(), 400)} == {0}, "abort takes effect at once"
        assert not (repository / "small-canary").exists()

        canary.start(other, repository, name="small", share=SHARE, server=control)
        assert canary.promote(repository, name="small", server=control).now == 2
        assert {by for _, by in clients.since(time.monotonic(), 400)} == {1}
        assert served_versions(repository / "small") == [1, 2] and not (repository / "small-canary").exists()
    assert not clients.failures and len(clients.answers) > 2000


def test_a_larger_share_keeps_its_users():
    users = [str(i) for i in range(20_000)]
    small, large, another = Split(0.05, "a"), Split(0.2, "a"), Split(0.05, "b")
    taken = {user for user in users if small.takes(user)}
    assert abs(len(taken) - 1000) < 4 * (20_000 * 0.05 * 0.95) ** 0.5
    assert taken < {user for user in users if large.takes(user)}
    both = sum(another.takes(user) for user in taken)
    assert both < 0.1 * len(taken), "another canary takes other users"
    assert not any(Split(0.0, "a").takes(user) for user in users) and all(Split(1.0, "a").takes(u) for u in users)


def test_only_files_and_what_is_refused(artifact, other, tmp_path):
    repository, run = tmp_path / "repo", CliRunner().invoke
    recpress.package(artifact, repository, name="m")
    words = [str(repository), "--name", "m"]
    with pytest.raises(RepositoryError, match="m has no canary in .*; begin with: recpress canary start"):
        canary.abort(repository, name="m")
    with pytest.raises(RepositoryError, match="holds no model 'absent' to have a canary"):
        canary.start(other, repository, name="absent", share=0.1)
    for share in (1.5, -0.1, float("nan")):
        with pytest.raises(RepositoryError, match="give a number from 0 to 1"):
            canary.start(other, repository, name="m", share=share)
    assert "version 2, is a canary for 5% beside version 1" in run(app, ["canary", "start", str(other), *words]).output
    assert versions_in(repository / "m-canary") == [2] and versions_in(repository / "m") == [1]
    with pytest.raises(RepositoryError, match="has a canary already"):
        canary.start(other, repository, name="m", share=0.1)
    salt = canary.split_of(repository, name="m").salt
    assert "takes 25%" in run(app, ["canary", "share", *words, "--share", "25%"]).output
    assert canary.split_of(repository, name="m") == Split(0.25, salt)
    refused = run(app, ["canary", "share", *words, "--share", "much"])
    assert isinstance(refused.exception, RepositoryError) and "'much'" in str(refused.exception)
    assert "version 2, is in service" in run(app, ["canary", "promote", *words]).output
    assert served_versions(repository / "m") == [1, 2] and not (repository / "m-canary").exists()


def served(requests, failed=0, slow=0):
    """``slow`` requests take 9 ms, of the others one in 200 takes 3 ms and the rest 1 ms."""
    late = (requests - slow) // 200
    counts = (requests - slow - late, requests - slow, requests - slow, requests)
    return Served(requests - failed, failed, Histogram((0.001, 0.003, 0.005, 0.01), counts, 0.0))


SAME = Scores(64, 0.1, 0.1, 1.0, 0.001, 0.02)


def test_verdicts():
    needed = judge(served(10_000), served(1), SAME).needed
    assert 1000 < needed < 3000
    assert judge(served(10_000), served(needed), SAME).good
    few = judge(served(10_000), served(needed - 1), SAME)
    assert not few.good and str(few) == f"undecided: {needed - 1} requests of {needed} that are needed"
    failing = judge(served(10_000), served(needed, failed=60), SAME)
    assert not failing.good and f"60 of its {needed} requests fail" in str(failing)
    assert judge(served(10_000, failed=300), served(needed, failed=60), SAME).worse == (), "as its model"
    slower = judge(served(10_000), served(needed, slow=60), SAME)
    assert not slower.good and "of its executions take over 3 ms" in str(slower)
    moved = judge(served(10_000), served(needed), Scores(64, 0.1, 0.5, 1.0, 0.4, 0.02))
    assert not moved.good and "+0.4 ± 0.02 from the model's" in str(moved)
    noisy = judge(served(10_000), served(needed), Scores(64, 0.1, 0.5, 1.0, 0.4, 0.3))
    assert noisy.worse == ()


def test_the_requests_needed_find_out_what_is_worse():
    n, draw = requests_needed(0.01, 0.02), np.random.default_rng(0)
    alarm = np.array([tail(k, n, 0.01) < 0.01 for k in range(80)])
    found = alarm[draw.binomial(n, 0.02, 1000)].mean()
    false = alarm[draw.binomial(n, 0.01, 1000)].mean()
    assert 0.85 < found < 0.95 and false < 0.02
    assert tail(0, 10, 0.3) == 1 and tail(2, 3, 0.5) == pytest.approx(0.5)


def test_the_command_fails_on_a_canary_that_is_not_fit(artifact, other, tmp_path, monkeypatch):
    recpress.package(artifact, tmp_path / "repo", name="m")
    canary.start(other, tmp_path / "repo", name="m", share=0.1)
    worse = judge(served(10_000), served(3000, failed=60), SAME)
    monkeypatch.setattr(canary, "compare", lambda *_, **__: iter([worse]))
    result = CliRunner().invoke(app, ["canary", "compare", str(tmp_path / "repo"), "--name", "m"])
    assert isinstance(result.exception, ProbeError) and "60 of its 3000 requests fail" in result.output
