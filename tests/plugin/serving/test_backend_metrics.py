"""The backend's metrics: what is counted, what is sampled, and that none of it fails a request."""

import random
import shutil
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recpress.artifact.golden import Verdict
from recpress.artifact.manifest import read_manifest
from recpress.errors import RequestError
from recpress.serving.backend import metrics as module
from recpress.serving.backend.metrics import PUBLISH_S, BackendMetrics, Laps
from recpress.serving.client import Client
from recpress.serving.metrics import fetch_text, read_histogram, read_values

LABELS = {"model": "m", "version": "1", "model_instance": "m_0"}
PROMTOOL = shutil.which("promtool")


class Utils:
    """What the server gives its backend, kept in memory; names in ``broken`` raise when they are observed."""

    def __init__(self, broken=(), absent=()):
        self.values, self.logged, self.broken, self.absent = {}, [], broken, absent
        self.Logger = SimpleNamespace(log_warn=self.logged.append)
        self.MetricFamily = self._family()

    def _family(self):
        utils = self

        class MetricFamily:
            HISTOGRAM, COUNTER, GAUGE = range(3)

            def __init__(self, name, description, kind):
                if name in utils.absent:
                    raise RuntimeError(f"{name} exists as another kind")
                self.name = name

            def Metric(self, labels, buckets=None):
                extra = tuple(v for k, v in sorted(labels.items()) if k not in LABELS)
                values = utils.values.setdefault((self.name, *extra), [])

                def call(value):
                    if self.name in utils.broken:
                        raise RuntimeError("the other side is gone")
                    values.append(value)

                return SimpleNamespace(observe=call, increment=call, set=call)

        return MetricFamily

    def total(self, *key):
        return sum(self.values.get(key, ()))

    def count(self, *key):
        return len(self.values.get(key, ()))


def laps(seconds, rows):
    made = Laps()
    made.rows, made.seconds = rows, {"check": 0.0, "forward": seconds, "answer": 0.0}
    made._at = made._begin + seconds
    return made


@pytest.fixture
def started(artifact, monkeypatch):
    """Metrics whose thread never wakes by itself."""
    monkeypatch.setattr(module, "PUBLISH_S", 3600)
    made = []

    def start(utils):
        made.append(BackendMetrics(utils, LABELS))
        made[-1].start(read_manifest(artifact), Verdict(64, 1e-7, 0, True), "native")
        return made[-1]

    yield start
    for metrics in made:
        metrics.close()
        assert not metrics._thread or not metrics._thread.is_alive()


def test_few_requests_are_counted_one_by_one(started):
    utils = Utils()
    metrics = started(utils)
    metrics.executed(laps(0.002, rows=12), requests=3)
    metrics.executed(laps(0.004, rows=1), requests=1)
    metrics.rejected("not_finite")
    metrics.publish()
    assert sorted(utils.values["recpress_execute_seconds",]) == pytest.approx([0.002] * 3 + [0.004])
    assert sorted(utils.values["recpress_stage_seconds", "forward"]) == [0.002] * 3 + [0.004]
    assert sorted(utils.values["recpress_batch_rows",]) == [1, 12]
    assert utils.total("recpress_requests_total") == 4 and utils.total("recpress_rows_total") == 13
    assert utils.total("recpress_executions_total") == 2
    assert utils.total("recpress_rejected_requests_total", "not_finite") == 1
    metrics.publish()
    assert utils.total("recpress_requests_total") == 4, "nothing is counted twice"


def test_many_requests_are_counted_exactly_and_observed_by_a_fair_sample(started):
    """One execute of ten requests in each ten: half of all requests must come from those."""
    random.seed(0)
    utils = Utils()
    metrics = started(utils)
    for i in range(4000):
        many = i % 11 == 0
        metrics.executed(laps(0.1 if many else 0.001, rows=1), requests=10 if many else 1)
    metrics.publish()
    observed = utils.values["recpress_execute_seconds",]
    assert utils.total("recpress_requests_total") == 4000 + 9 * 364 and utils.total("recpress_executions_total") == 4000
    assert 1000 <= len(observed) < 1100, "the budget"
    assert np.mean(np.array(observed) > 0.01) == pytest.approx(3640 / 7276, abs=0.06)
    assert utils.count("recpress_batch_rows") < 400


def test_scores_are_noted_now_and_then_from_all_of_the_batch(started):
    utils = Utils()
    metrics = started(utils)
    metrics.scored(torch.arange(64.0).reshape(64, 1))
    metrics.scored(torch.full((3,), 99.0))
    metrics.publish()
    assert sorted(utils.values["recpress_score",]) == [0, 8, 16, 24, 32, 40, 48, 56]


def test_what_the_manifest_says(started, artifact):
    utils, manifest = Utils(), read_manifest(artifact)
    started(utils)
    assert utils.total("recpress_model_bytes", "original") == manifest.bytes_before
    assert utils.total("recpress_model_bytes", "compressed") == manifest.bytes_after
    assert utils.total("recpress_model_quality", "compressed", "mean") == manifest.quality_after["mean"]
    assert utils.total("recpress_golden_deviation") == 1e-7
    assert utils.total("recpress_golden_deviation_limit") == manifest.golden.outlier_atol
    kernels, recipe, scheme = next(key[1:] for key in utils.values if key[0] == "recpress_model_info")
    assert (kernels, recipe) == ("native", "int8") and "int8 rows" in scheme


@pytest.mark.parametrize("how", ["broken", "absent"])
def test_a_family_that_raises_is_dropped_alone(started, how):
    utils = Utils(**{how: ("recpress_execute_seconds", "recpress_model_bytes", "recpress_rows_total")})
    metrics = started(utils)
    for _ in range(2):
        metrics.executed(laps(0.001, rows=5), requests=2)
        metrics.publish()
    assert utils.total("recpress_requests_total") == 4 and utils.count("recpress_batch_rows") == 2
    assert not utils.values.get(("recpress_execute_seconds",)) and not utils.total("recpress_rows_total")
    assert len([line for line in utils.logged if "recpress_execute_seconds" in line]) == 1, "said once"


def test_an_output_that_cannot_be_read_stops_scores_alone(started):
    utils = Utils()
    metrics = started(utils)
    metrics.scored(None)
    metrics.executed(laps(0.001, 1), 1)
    metrics.publish()
    assert utils.total("recpress_requests_total") == 1 and len(utils.logged) == 1


def test_without_a_server_nothing_is_noted(artifact):
    metrics = BackendMetrics(None, LABELS)
    metrics.start(read_manifest(artifact), Verdict(64, 0.0, 0, True), "native")
    metrics.executed(laps(0.001, 1), 1)
    metrics.rejected("x")
    metrics.scored(torch.zeros(1))
    assert not metrics._executions and not metrics._rejected and not metrics._scores
    metrics.close()


def rows_of(count, value=0.5):
    return {"dense": np.full((count, 5), value, np.float32), "sparse": np.zeros((count, 4), np.int64)}


@pytest.mark.server
def test_on_the_real_server(server):
    labels = {"model": "small"}

    def read():
        time.sleep(3 * PUBLISH_S)
        text = fetch_text(server.url("metrics"))
        values = {
            name: sum(v for _, v in read_values(text, name, labels))
            for name in ("recpress_requests_total", "recpress_rows_total")
        }
        rejected = {found["reason"]: v for found, v in read_values(text, "recpress_rejected_requests_total", labels)}
        return text, values, rejected, read_histogram(text, "recpress_execute_seconds", labels)

    _, before, rejected_before, histogram_before = read()
    with Client(server.url("grpc")) as client:
        for _ in range(20):
            client.score("small", rows_of(3))
        for bad in (rows_of(2, np.nan), rows_of(2) | {"sparse": np.full((2, 4), 10**6)}):
            with pytest.raises(RequestError):
                client.score("small", bad)
    text, after, rejected, histogram = read()
    assert after["recpress_requests_total"] - before["recpress_requests_total"] == 22
    assert after["recpress_rows_total"] - before["recpress_rows_total"] == 60
    for reason in ("not_finite", "out_of_range"):
        assert rejected[reason] - rejected_before.get(reason, 0) == 1
    assert histogram.since(histogram_before).count == 22
    assert {found["form"] for found, _ in read_values(text, "recpress_model_bytes", labels)} == {
        "original",
        "compressed",
    }
    if PROMTOOL:
        said = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        complaints = (said.stdout + said.stderr).splitlines()
        assert any(line.startswith("nv_") for line in complaints), "it looked"
        assert not [line for line in complaints if line.startswith("recpress_")]
