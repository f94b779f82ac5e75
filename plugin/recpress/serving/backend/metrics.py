"""The backend's own metrics: counted while requests are answered, published by a thread of their own.

A call of the server's metrics crosses to the server's process and back: 52 us at the median, 22 us of them of this
process's CPU, and there is none that adds several observations at once. So requests only leave notes, and a thread
hands them on, every :data:`PUBLISH_S`: counters are exact; histograms hold every observation until :class:`_Budget`
is spent, and then a sample in which each request of the interval is equally likely.

Whatever fails here is logged once and dropped; it fails no request.
"""

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from recpress.artifact.golden import Verdict
from recpress.artifact.manifest import Manifest

PUBLISH_S = 0.5
SECONDS = (0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
STAGE_SECONDS = (0.00005, 0.0001, *SECONDS)
POWERS = tuple(float(2**i) for i in range(13))
SCORES = (-8, -6, -5, -4, -3, -2, -1.5, -1, -0.5, -0.25, 0, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8)
"""Bounds for logits and for probabilities."""
STAGES = ("check", "forward", "answer")

_HISTOGRAMS = {
    "recpress_execute_seconds": ("Time from the backend's execute to its answer, by request", SECONDS),
    "recpress_stage_seconds": ("Time of one stage of execute: check, forward or answer, by request", STAGE_SECONDS),
    "recpress_batch_rows": ("Rows that one execute scores together", POWERS),
    "recpress_batch_requests": ("Requests that one execute joins", POWERS),
    "recpress_score": ("Scores as answered, of the first output, sampled", SCORES),
}
_COUNTERS = {
    "recpress_requests_total": "Requests that reached the backend, rejected ones among them",
    "recpress_rows_total": "Rows scored",
    "recpress_executions_total": "Calls of execute",
    "recpress_rejected_requests_total": "Requests that the backend answered with an error, by reason",
}
_GAUGES = {
    "recpress_model_info": "What is served: recipe, schemes of the compressed layers, and what runs them; always 1",
    "recpress_model_bytes": "Bytes of the model's weights, in its original and its compressed form",
    "recpress_model_quality": "Quality from the manifest, in its original and its compressed form, by measure",
    "recpress_golden_deviation": "Largest difference of a golden row's score from the stored one, at load",
    "recpress_golden_deviation_limit": "What that difference may be at most",
}
_KEPT = 4096
"""Executions that notes are kept of between two rounds; older ones go. Three times what an instance has been seen to
do in 2 * PUBLISH_S."""
_SCORE_EVERY_S = 0.1
_SCORES_AT_ONCE = 8


class Laps:
    """How long the stages of one execute took, in seconds."""

    __slots__ = ("_at", "_begin", "rows", "seconds")

    def __init__(self) -> None:
        self._begin = self._at = time.perf_counter()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.rows = 0

    def end(self, stage: str) -> None:
        """Count what has passed since the last call to ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._at
        self._at = now

    @property
    def total(self) -> float:
        """From the beginning to the end of the last stage."""
        return self._at - self._begin


@dataclass
class _Budget:
    """How many observations of a kind may be handed on: ``rate`` a second, and ``burst`` that were saved up."""

    rate: float
    burst: int
    left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self._at = self.burst, time.monotonic()

    def take(self, wanted: int) -> int:
        """How many of ``wanted`` there are means for; they are spent."""
        now = time.monotonic()
        self.left = min(self.burst, self.left + self.rate * (now - self._at))
        self._at = now
        given = min(wanted, int(self.left))
        self.left -= given
        return given


class BackendMetrics:
    """Metrics of one instance of a model.

    Args:
        utils: the server's ``triton_python_backend_utils``, or None for no metrics at all.
        labels: ``model``, ``version`` and ``model_instance``, on every series.
    """

    def __init__(self, utils, labels: Mapping[str, str]) -> None:
        self._utils, self._labels = utils, dict(labels)
        self._families: dict[str, object] = {}
        self._metrics: dict[tuple, object] = {}
        self._executions: deque[tuple[Laps, int]] = deque(maxlen=_KEPT)
        self._scores: deque[float] = deque(maxlen=_KEPT)
        self._rejected: deque[str] = deque(maxlen=_KEPT)
        self._score_at = 0.0
        self._budgets = {
            "recpress_execute_seconds": _Budget(40, 1000),
            "recpress_stage_seconds": _Budget(10, 200),
            "recpress_batch_rows": _Budget(10, 200),
            "recpress_score": _Budget(20, 200),
        }
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if utils is None:
            return
        kinds = {"HISTOGRAM": _HISTOGRAMS, "COUNTER": _COUNTERS, "GAUGE": _GAUGES}
        for kind, names in kinds.items():
            for name, text in names.items():
                self._add_family(name, text[0] if kind == "HISTOGRAM" else text, kind)
        self._add_metrics()

    def start(self, manifest: Manifest, verdict: Verdict, kernels: str) -> None:
        """Publish what the manifest says of the model and how its golden rows scored at load, and begin to note."""
        schemes = {layer.scheme for layer in manifest.layers if layer.status == "compressed"}
        info = {"recipe": manifest.recipe.name, "scheme": "; ".join(sorted(schemes)) or "none", "kernels": kernels}
        self._call("recpress_model_info", "set", 1, **info)
        self._call("recpress_golden_deviation", "set", verdict.worst)
        self._call("recpress_golden_deviation_limit", "set", manifest.golden.outlier_atol)
        sizes, qualities = (
            {"original": manifest.bytes_before, "compressed": manifest.bytes_after},
            {"original": manifest.quality_before, "compressed": manifest.quality_after},
        )
        for form, size in sizes.items():
            self._call("recpress_model_bytes", "set", size, form=form)
        for form, quality in qualities.items():
            for measure, value in quality.items():
                self._call("recpress_model_quality", "set", value, form=form, measure=measure)
        if self._families:
            self._thread = threading.Thread(target=self._run, name="recpress-metrics", daemon=True)
            self._thread.start()

    def executed(self, laps: Laps, requests: int) -> None:
        """Note one execute that is about to answer ``requests`` requests."""
        if self._thread is not None:
            self._executions.append((laps, requests))

    def rejected(self, reason: str) -> None:
        """Note a request that is answered with an error."""
        if self._thread is not None:
            self._rejected.append(reason)

    def scored(self, output: Tensor) -> None:
        """Note some of the scores ``[rows, ...]``, ten times a second at most."""
        now = time.monotonic()
        if self._thread is None or now - self._score_at < _SCORE_EVERY_S:
            return
        self._score_at = now
        try:
            flat = output.reshape(-1)
            self._scores.extend(flat[:: max(1, flat.numel() // _SCORES_AT_ONCE)][:_SCORES_AT_ONCE].tolist())
        except Exception as error:
            self._score_at = math.inf
            self._log(f"no more scores are noted ({error})")

    def close(self) -> None:
        """Publish what is left, and stop."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def publish(self) -> None:
        """Hand on all that was noted since the last call."""
        executions = _drained(self._executions)
        counts = [requests for _, requests in executions]
        for name, value in (
            ("recpress_requests_total", sum(counts)),
            ("recpress_rows_total", sum(laps.rows for laps, _ in executions)),
            ("recpress_executions_total", len(executions)),
        ):
            if value:
                self._call(name, "increment", value)
        for reason, count in Counter(_drained(self._rejected)).items():
            self._call("recpress_rejected_requests_total", "increment", count, reason=reason)
        for laps in self._sample("recpress_execute_seconds", executions, counts):
            self._call("recpress_execute_seconds", "observe", laps.total)
        for laps in self._sample("recpress_stage_seconds", executions, counts):
            for stage in STAGES:
                self._call("recpress_stage_seconds", "observe", laps.seconds[stage], stage=stage)
        self._publish_sizes(executions)
        scores = _drained(self._scores)
        for score in random.sample(scores, self._budgets["recpress_score"].take(len(scores))):
            self._call("recpress_score", "observe", score)

    def _publish_sizes(self, executions: list[tuple[Laps, int]]) -> None:
        taken = self._budgets["recpress_batch_rows"].take(len(executions))
        for laps, requests in random.sample(executions, taken):
            self._call("recpress_batch_rows", "observe", laps.rows)
            self._call("recpress_batch_requests", "observe", requests)

    def _sample(self, name: str, executions: list[tuple[Laps, int]], counts: Sequence[int]) -> list[Laps]:
        """The laps of each request, or of as many as there are means for, each request equally likely."""
        everything = [laps for laps, requests in executions for _ in range(requests)]
        taken = self._budgets[name].take(len(everything))
        return everything if taken == len(everything) else random.sample(everything, taken)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopped.wait(PUBLISH_S)
            try:
                self.publish()
            except Exception as error:
                self._log(f"a round of metrics failed ({error})")

    def _add_family(self, name: str, description: str, kind: str) -> None:
        kinds = self._utils.MetricFamily
        try:
            self._families[name] = kinds(name=name, description=description, kind=getattr(kinds, kind))
        except Exception as error:
            self._drop(name, error)

    def _add_metrics(self) -> None:
        """Make what has no further labels at once, so that rates begin at 0."""
        for name in (*_HISTOGRAMS, *_COUNTERS):
            if name == "recpress_stage_seconds":
                for stage in STAGES:
                    self._metric(name, {"stage": stage})
            elif name != "recpress_rejected_requests_total":
                self._metric(name, {})

    def _metric(self, name: str, labels: Mapping[str, str]):
        key = (name, *sorted(labels.items()))
        if key not in self._metrics and name in self._families:
            options = {"buckets": list(map(float, _HISTOGRAMS[name][1]))} if name in _HISTOGRAMS else {}
            try:
                self._metrics[key] = self._families[name].Metric(labels=self._labels | dict(labels), **options)
            except Exception as error:
                self._drop(name, error)
        return self._metrics.get(key)

    def _call(self, name: str, verb: str, value: float, **labels: str) -> None:
        metric = self._metric(name, labels)
        if metric is None:
            return
        try:
            getattr(metric, verb)(value)
        except Exception as error:
            self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._families.pop(name, None)
        for key in [key for key in self._metrics if key[0] == name]:
            del self._metrics[key]
        self._log(f"no more metrics {name} ({error})")

    def _log(self, text: str) -> None:
        if self._utils is not None:
            self._utils.Logger.log_warn(f"recpress: {text}; requests are answered as before")


def _drained(notes: deque) -> list:
    taken = []
    while notes:
        taken.append(notes.popleft())
    return taken
