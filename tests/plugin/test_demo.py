"""The whole demo as a user runs it, and its parts that must refuse."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from support.processes import processes_of

import recpress
from recpress import demo
from recpress.data import movielens
from recpress.errors import DataError, ProbeError, RepositoryError
from recpress.loadtest.saved import read
from recpress.zoo.dlrm import DLRM


@pytest.fixture(scope="module")
def data():
    try:
        return movielens.load()
    except DataError as error:
        pytest.skip(f"MovieLens-100K cannot be had here: {error}")


@pytest.mark.demo
@pytest.mark.server
def test_demo_from_data_to_report(data, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "recpress.cli", "demo", "--output", str(output)]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    printed, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, printed + complaints
    assert time.monotonic() - begin < 180, "the README promises 3 minutes"
    result = json.loads((output / "result.json").read_text())
    before, after = result["quality"]["original"], result["quality"]["compressed"]
    assert before["auc"] >= 0.78 and after["auc"] >= 0.999 * before["auc"]
    assert result["size"]["compressed"] < 0.3 * result["size"]["original"]
    assert result["requests"] == 1000 and result["deviation"] <= 0.1 and result["atol"] < 1e-3
    assert result["execute"]["count"] == 1000 and 0 < result["execute"]["p50"] <= result["execute"]["p99"]
    model = recpress.load(output / "artifact")
    parameters = sum(layer.parameters for layer in model.manifest.layers)
    assert f"{parameters:,} parameters" in (output / "report.html").read_text()
    assert f"{before['auc']:.5f}" in printed and f"{after['auc']:.5f}" in printed
    page = (output / "report.html").read_text()
    assert f"{after['auc']:.5f}" in page and "95 % interval" in page and not re.search(r"<script|src=|href=.http", page)
    load = read(output / "load.json")
    assert [step.rate for step in load.steps] == list(demo.RATES) and load.steps[0].outcomes == {"ok": ANY}
    assert load.scores.ok and load.scores.rows > 1000 and f"{load.scores.rows:,} scores were checked" in page
    assert "<svg" in page and "1600/s" in page and "1600/s" in printed and load.machine in page
    assert not processes_of(output) and not list(Path("/dev/shm").glob(f"recpress_{process.pid}_*"))


@pytest.mark.demo
@pytest.mark.server
@pytest.mark.parametrize("step", ["training", "requests"])
def test_an_interrupt_leaves_nothing_running(data, tmp_path, step):
    # Whatever the demo is at, found by what it has written so far.
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "recpress.cli",
        "demo",
        "--output",
        str(output),
        "--requests",
        "100000",
        "--epochs",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 150
        reached = (lambda: output.exists()) if step == "training" else (lambda: len(processes_of(output)) >= 3)
        while not reached():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    finally:
        process.terminate()
        process.wait(60)
    assert not processes_of(output)


def test_a_folder_that_is_not_the_demo_s_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(RepositoryError, match="was not made by the demo"):
        demo.run(tmp_path)
    assert (tmp_path / "mine").read_text() == "x"


class FakeClient:
    """Answers with the local model's scores, all but one of them."""

    def __init__(self, model, wrong_at):
        self.model, self.wrong_at, self.calls = model, wrong_at, 0

    def score(self, name, inputs):
        scores = self.model.score({k: torch.from_numpy(v) for k, v in inputs.items()})["logit"].numpy().reshape(-1, 1)
        self.calls += 1
        if self.calls == self.wrong_at:
            scores = scores.copy()
            scores[-1] += 2 * self.model.manifest.golden.outlier_atol
        return {"logit": scores}


def test_one_wrong_score_among_the_requests_is_caught(artifact):
    from support.small import small_inputs

    model = recpress.load(artifact)
    dense, sparse = small_inputs(500)
    rows = movielens.Rows(dense, sparse, torch.zeros(500))
    latencies, verdict = demo.send(FakeClient(model, None), model, rows, 10)
    assert verdict.ok and verdict.rows == 5 * 65 and {b: x.calls for b, x in latencies.items()} == {1: 5, 64: 5}
    with pytest.raises(ProbeError, match="1 of 325 rows beyond"):
        demo.send(FakeClient(model, 7), model, rows, 10)


def test_the_demo_s_model_and_rows_are_what_auto_takes(data, monkeypatch):
    def untrained(given, *, seed, epochs):
        torch.manual_seed(seed)
        return DLRM(num_dense=len(given.dense_names), table_rows=given.table_rows)

    monkeypatch.setattr(demo, "_dlrm", untrained)
    material = demo.material()
    examples = material.pop("examples")
    assert sum(len(label) for _, label in material["rows"]) == len(data.test)
    found = recpress.auto(**material, share=0.9, candidates=["int8-tables"], show=False)
    assert found.accepted().model(*examples.values()).shape == (4096,) and found.trials[1].paired.low < 0.1
