"""Load tests of the real server: scores, histograms, and what a user sees when something is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from support.small import small_inputs, small_model

import recpress
from recpress import demo
from recpress.cli import main
from recpress.errors import LoadTestError, ProbeError
from recpress.loadtest import run as run_module
from recpress.loadtest.engine import run
from recpress.loadtest.metrics import Metrics
from recpress.loadtest.outcomes import Outcome
from recpress.loadtest.result import Load
from recpress.loadtest.rows import read_requests
from recpress.loadtest.run import Endpoint, load_test
from recpress.loadtest.saved import read, saved
from recpress.loadtest.show import print_test
from recpress.loadtest.target import Target
from recpress.serving.metrics import read_histogram
from recpress.serving.server import Server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(artifact, tmp_path_factory):
    recpress.package(artifact, tmp_path_factory.mktemp("loaded") / "repo", name="small", max_batch_size=64)
    with Server(tmp_path_factory.getbasetemp() / "loaded0" / "repo") as running:
        yield running


@pytest.fixture
def call(monkeypatch, capsys):
    """Run ``recpress loadtest`` in this process: its exit code, output and errors."""

    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", ["recpress", "loadtest", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run_here


def quick(**changes) -> Load:
    return Load(**{"seconds": 0.6, "warm_up_s": 0.1, "drain_s": 10.0, **changes})


def numbers(text: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_both_kinds_of_load_over_both_protocols(server, artifact, protocol):
    endpoint = Endpoint(server.url(protocol), "small", protocol=protocol)
    test = load_test(artifact, endpoint, [quick(rate=60, deadline_s=5.0), quick(clients=3, deadline_s=5.0)], batch=5)
    by_rate, by_clients = test.steps
    assert test.problems == [] and test.scores.ok and test.scores.rows >= 5 * (by_rate.requests + by_clients.requests)
    assert 10 <= by_rate.requests <= 80 and by_rate.counts == {Outcome.OK: by_rate.requests}
    assert by_rate.goodput == pytest.approx(by_rate.requests / 0.6) and by_clients.throughput > 10
    for step in test.steps:
        assert 1e-4 < step.percentile(50) <= step.percentile(99) < 5 and 1e-5 < step.client_s < 0.1


def test_rows_of_a_file_are_sent_and_scored(server, artifact, tmp_path):
    dense, sparse = small_inputs(100, seed=7)
    np.savez(tmp_path / "rows.npz", dense=dense.numpy(), sparse=sparse.numpy())
    requests = read_requests(artifact, batch=7, rows=tmp_path / "rows.npz")
    sent = np.concatenate([request["dense"] for request in requests.inputs])
    assert len(np.unique(sent, axis=0)) == 100, "all rows are drawn"
    test = load_test(
        artifact, Endpoint(server.url("grpc"), "small"), [quick(clients=1)], batch=7, rows=tmp_path / "rows.npz"
    )
    assert test.problems == [] and test.scores.rows >= 7 and "100 rows of" in test.rows


def test_wrong_scores_are_counted(server, tmp_path, artifact):
    """The server has one model, the tester another's golden rows: before a test that ends it, in a test it counts."""
    model = small_model()
    model.top[2].weight.data *= 1.05
    recpress.export(
        recpress.compress(model, "int8"),
        tmp_path / "other",
        example_inputs=small_inputs(32),
        input_names=("dense", "sparse"),
        output_names=("logit",),
    )
    endpoint = Endpoint(server.url("grpc"), "small")
    with pytest.raises(ProbeError, match="other weights"):
        load_test(tmp_path / "other", endpoint, [quick(rate=10)])

    async def outcomes(folder):
        async with Target(endpoint.url, read_requests(folder), model="small") as target:
            return [await target.submit(i) for i in range(40)], target.checker.verdict

    wrong, verdict = run(outcomes(tmp_path / "other"))
    assert wrong.count(Outcome.WRONG) > 20 and not verdict.ok
    right, verdict = run(outcomes(artifact))
    assert set(right) == {Outcome.OK} and verdict.ok and verdict.rows == 40


def test_metrics_add_up_while_it_runs(server, artifact):
    """They are read before the second load; a client that has gone through 200 requests has observed 200."""
    texts = []
    with Metrics(0, model="small", protocol="grpc") as metrics:

        def begin(load: Load) -> None:
            texts.append(urllib.request.urlopen(f"http://{metrics.address}/metrics", timeout=10).read().decode())

        endpoint = Endpoint(server.url("grpc"), "small")
        loads = [quick(rate=100, warm_up_s=0.0), quick(clients=1, warm_up_s=0.0)]
        test = load_test(artifact, endpoint, loads, metrics=metrics, begin=begin)
    histogram = read_histogram(texts[1], "recpress_loadtest_request_seconds", {"model": "small", "protocol": "grpc"})
    step = test.steps[0]
    assert (
        histogram.count
        == step.requests
        == numbers(texts[1], 'recpress_loadtest_requests_total{model="small",outcome="ok"')
    )
    assert histogram.total == pytest.approx(step.latency.sum(), rel=1e-9)
    below = [int(np.searchsorted(step.latency, bound, side="right")) for bound in histogram.bounds]
    assert list(histogram.counts) == below
    assert numbers(texts[0], "recpress_loadtest_requests_total") == 0
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=texts[1], capture_output=True, text=True, check=False, timeout=60
        )
        ours = [line for line in (checked.stdout + checked.stderr).splitlines() if line.strip()]
        assert checked.returncode == 0 and not ours


def test_the_command_keeps_an_objective_or_fails(server, artifact, call, tmp_path):
    common = (artifact, "--name", "small", "--server", server.url("http"), "--http", "--clients", "1,2")
    common += ("--seconds", 0.4, "--warm-up", 0, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.svg")
    code, out, err = call(*common, "--p99", "9s", "--metrics-port", "0")
    kept = read(tmp_path / "a.json")
    assert code == 0, err
    assert [step.load for step in kept.steps] == ["1 client", "2 clients"] and kept.problems == ()
    assert "right/s" in out and "2 clients" in out and "processor time" in out and "metrics at http://127" in err
    spectrum = kept.steps[0].spectrum
    assert spectrum[0][0] == 0 and spectrum[-1] == (100.0, kept.steps[0].percentiles["100"])
    assert [percent for percent, _ in spectrum[:5]] == pytest.approx([0, 29.289, 50, 64.645, 75], abs=1e-3)
    seconds = [value for _, value in spectrum]
    assert seconds == sorted(seconds) and seconds[2] == kept.steps[0].percentile(50)
    plot = (tmp_path / "a.svg").read_text()
    assert plot.startswith("<svg") and "right answers a second" in plot and "objective of p99" in plot
    code, _, err = call(*common, "--p99", "10us")
    assert code == 1 and "p99 at 1 client is" in err and "the objective is 0.01 ms" in err
    assert len(read(tmp_path / "a.json").problems) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "10", "--clients", "1"], "give either --rate"),
        ([], "give either --rate"),
        (["--rate", "10,fast"], "--rate '10,fast' is not a list of numbers above 0"),
        (["--clients", "1.5"], "--clients '1.5' is not a list of whole numbers"),
        (["--rate", "-3"], "--rate '-3' is not a list"),
        (["--rate", "10", "--p99", "20"], "--p99 '20' is no time"),
        (["--rate", "10", "--p99", "fast"], "us, ms or s, such as 20ms"),
        (["--rate", "10", "--deadline", "0ms"], "--deadline '0ms' is no time"),
        (["--rate", "10", "--json", "/proc/none/a.json"], "/proc/none/a.json cannot be written"),
        (["--rate", "10", "--plot", "/"], "/ is a folder"),
        (["--rate", "10", "--name", "absent"], "refuses the request to 'absent'"),
        (["--rate", "10", "--version", "7"], "refuses the request to 'small'"),
        (["--rate", "10", "--rows", "absent.npz"], "absent.npz cannot be read"),
        (["--rate", "10", "--batch", "65"], "batch-size must be <= 64"),
        (["--rate", "900000", "--seconds", "3600"], "3,240,900,000 requests; 20,000,000 are the most"),
    ],
)
def test_what_cannot_be_tested_is_said_before_the_test(server, artifact, call, arguments, message):
    defaults = [artifact, "--name", "small", "--server", server.url("grpc")]
    code, out, err = call(*defaults, *arguments)
    assert code == 1 and message in err and err.count("\n") == 1 and not out


def test_no_server(artifact, call):
    code, _, err = call(artifact, "--name", "small", "--server", "127.0.0.1:9", "--http", "--rate", "10")
    assert code == 1 and "127.0.0.1:9" in err and "recpress serve" in err


def test_rows_that_are_not_the_models(artifact, tmp_path):
    dense, sparse = (t.numpy() for t in small_inputs(4))
    nan = dense.copy()
    nan[2, 0] = np.nan
    given = {
        "dense, sparse": {"dense": dense},
        "float32 of shape": {"dense": dense.astype("float64"), "sparse": sparse},
        "int64 of shape": {"dense": dense, "sparse": sparse[:, :3]},
        "the same number": {"dense": dense, "sparse": sparse[:3]},
        "at least one": {"dense": dense[:0], "sparse": sparse[:0]},
        "row 2 the first, score NaN": {"dense": nan, "sparse": sparse},
    }
    for message, arrays in given.items():
        np.savez(tmp_path / "rows.npz", **arrays)
        with pytest.raises(LoadTestError, match=message):
            read_requests(artifact, rows=tmp_path / "rows.npz")
    np.save(tmp_path / "one.npy", dense)
    with pytest.raises(LoadTestError, match="one array without a name"):
        read_requests(artifact, rows=tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("dense,sparse\n")
    with pytest.raises(LoadTestError, match="numpy.savez"):
        read_requests(artifact, rows=tmp_path / "text.npz")


def test_files_that_are_no_load_tests(tmp_path, server, artifact):
    good = saved(load_test(artifact, Endpoint(server.url("grpc"), "small"), [quick(clients=1)])).model_dump(mode="json")
    step = good["steps"][0]
    for changes, message in (
        ({"steps": []}, "at steps: .*at least 1 item"),
        ({"steps": [{**step, "client_s": float("nan")}]}, "at steps.0.client_s: .*finite"),
        ({"steps": [{**step, "rate": 10.0}]}, "at steps.0: .*either a rate or clients"),
        ({"steps": [{**step, "percentiles": {"50": 0.1}}]}, "at steps.0: .*percentiles are of 50, 90, 99, 99.9, 100"),
    ):
        (tmp_path / "a.json").write_text(json.dumps({**good, **changes}))
        with pytest.raises(LoadTestError, match=message):
            read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(LoadTestError, match="is not JSON"):
        read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(LoadTestError, match="at schema_version"):
        read(tmp_path / "a.json")


def test_brackets_in_names_are_shown(server, artifact, capsys):
    test = load_test(artifact, Endpoint(server.url("grpc"), "small"), [quick(clients=1)])
    print_test(saved(replace(test, endpoint=Endpoint("host:1", "ranker[red][/x]"))))
    assert "ranker[red][/x] at host:1" in capsys.readouterr().out


def test_sigint_keeps_what_was_measured(server, artifact):
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    loads = [Load(rate=50, seconds=60, warm_up_s=0.0), Load(rate=1)]
    test = load_test(artifact, Endpoint(server.url("grpc"), "small"), loads, begin=lambda load: timer.start())
    timer.join()
    assert time.monotonic() - begin < 50 and len(test.steps) == 1 and test.steps[0].counts[Outcome.OK] > 5
    assert any("it was interrupted" in problem for problem in test.problems)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_server_that_stands_still_is_seen_by_all_that_came_meanwhile(server, artifact):
    """0.4 s of 1.6: a quarter of the requests by a timetable are late, where a client that waits meets it once."""
    slow = []
    for load in (quick(rate=100, seconds=1.6), quick(clients=1, seconds=1.6)):

        def begin(_: Load) -> None:
            threading.Timer(0.5, server.process.send_signal, [signal.SIGSTOP]).start()
            threading.Timer(0.9, server.process.send_signal, [signal.SIGCONT]).start()

        test = load_test(artifact, Endpoint(server.url("grpc"), "small"), [load], begin=begin)
        (step,) = test.steps
        assert test.problems == [] and step.counts.keys() == {Outcome.OK}
        slow.append((step.latency > 0.1).sum())
        if load.rate is not None:
            assert 0.25 < step.percentile(99) < 2 and step.service[-1] > 0.25
    assert slow[0] >= 15 and 1 <= slow[1] <= slow[0] / 5


def test_one_wrong_golden_row_fails_the_test(server, artifact, call, tmp_path, monkeypatch):
    """Of 64 expected scores one is off by little more than is allowed in any row, after the server was proved."""

    def one_off(*given, **named):
        requests = read_requests(*given, **named)
        ((first,), *others) = requests.expected
        off = first + 2 * requests.tolerance.outlier_atol
        return replace(requests, expected=((off,), *others))

    monkeypatch.setattr(run_module, "read_requests", one_off)
    given = (artifact, "--name", "small", "--server", server.url("grpc"), "--rate", "300", "--seconds", "0.6")
    code, out, err = call(*given, "--warm-up", "0", "--json", tmp_path / "a.json")
    kept = read(tmp_path / "a.json")
    wrong = kept.steps[0].outcomes["wrong"]
    assert code == 1 and f"{wrong} of {kept.steps[0].requests} requests at 300/s were answered with wrong scores" in err
    assert 1 <= wrong <= 2 + kept.steps[0].requests / 64 and f"{wrong} wrong" in out and not kept.scores.ok


def test_what_cannot_be_kept_after_all_is_at_least_shown(server, artifact, call, tmp_path):
    """The folder of --json is gone when the test ends."""
    folder = tmp_path / "gone"
    folder.mkdir()
    timer = threading.Timer(0.7, folder.rmdir)
    given = (artifact, "--name", "small", "--server", server.url("grpc"), "--clients", "1", "--seconds", "1")
    timer.start()
    code, out, err = call(*given, "--json", folder / "a.json")
    timer.join()
    assert code == 1 and "a.json cannot be written" in err and "1 client " in out and "right/s" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "rate None and clients None"),
        ({"rate": 1.0, "clients": 1}, "rate 1.0 and clients 1"),
        ({"rate": float("nan")}, "a load of rate nan"),
        ({"clients": 0}, "a load of clients 0"),
        ({"rate": 1.0, "seconds": float("inf")}, "a load of seconds inf"),
        ({"rate": 1.0, "deadline_s": -1.0}, "a load of deadline_s -1"),
        ({"rate": 1e6, "seconds": 60}, "61,000,000 requests; 20,000,000 are the most"),
    ],
)
def test_loads_that_make_no_sense(changes, message):
    with pytest.raises(LoadTestError, match=message):
        Load(**changes)


def test_the_demo_s_load_finds_what_is_too_much_and_fails_when_interrupted(server, artifact, monkeypatch):
    monkeypatch.setattr(demo, "NAME", "small")
    monkeypatch.setattr(demo, "RATES", (20,))
    monkeypatch.setattr(demo, "OBJECTIVE_S", 1e-6)
    begun = []
    found = demo.under_load(artifact, server.url("grpc"), begin=begun.append)
    assert [str(load) for load in begun] == ["20/s"] and found.held is None
    assert len(found.problems) == 1 and "the objective is 0.001 ms" in found.problems[0]
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(LoadTestError, match="it was interrupted"):
        demo.under_load(artifact, server.url("grpc"), begin=lambda load: timer.start())
    timer.join()


def test_a_server_that_is_killed_meanwhile(artifact, tmp_path):
    """Under two tests: one over gRPC in a thread, one over HTTP by the command."""
    recpress.package(artifact, tmp_path / "repo", name="small", max_batch_size=64)
    found = []
    with Server(tmp_path / "repo") as server:
        command = [sys.executable, "-m", "recpress.cli", "loadtest", artifact, "--name", "small", "--http"]
        command += ["--server", server.url("http"), "--rate", "60,120", "--seconds", "60", "--warm-up", "0"]
        command += ["--timeout", "5", "--json", tmp_path / "kept.json"]
        told = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert told.stderr.readline() == "60/s, 60 s ...\n", told.communicate()

        def load() -> None:
            endpoint = Endpoint(server.url("grpc"), "small", timeout_s=5.0)
            loads = [Load(rate=60, seconds=60, warm_up_s=0.0, give_up_s=0.5)]
            found.append(load_test(artifact, endpoint, loads, begin=lambda load: under_way.wait(60)))

        under_way = threading.Barrier(2)
        thread = threading.Thread(target=load)
        thread.start()
        begin = time.monotonic()
        under_way.wait(60)
        time.sleep(0.7)
        server.process.kill()
        thread.join(60)
        out, err = told.communicate(timeout=60)
        assert time.monotonic() - begin < 60
    (step,) = saved(found[0]).steps
    assert "no server could be reached for 0.5 s" in found[0].problems[0]
    kept = read(tmp_path / "kept.json")
    assert told.returncode == 1 and "error: broken off at 60/s: no server could be reached for 3 s" in err
    assert len(kept.steps) == 1 and kept.problems and "60/s" in out and "unreachable" in out
    for partial in (step, kept.steps[0]):
        assert partial.outcomes["ok"] > 5 and partial.outcomes["unreachable"] > 5
        assert partial.broken_off and partial.seconds < 30 and partial.percentile(50) != 0
