"""Metrics of what the server cannot say of itself: ``recpress exporter``.

A thread goes round: golden rows of every served version over the wire, the server's processes in ``/proc``, and the
repository. A scrape answers with what the last round found and never waits for one.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recpress.errors import MissingDependencyError, ProbeError, RecpressError, RepositoryError, ServerError
from recpress.serving.client import Client
from recpress.serving.config import WITHDRAWN, instances_of, read_config, served_versions, versions_in
from recpress.serving.probe import measure_golden
from recpress.serving.processes import Process, serving
from recpress.serving.repository import STAGING
from recpress.serving.server import models_of

PORT = 8003
CLIENT_SECONDS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

try:
    from prometheus_client import CollectorRegistry, Histogram, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as missing:
    raise MissingDependencyError(
        f"the exporter needs prometheus-client ({missing}); install it with: pip install 'recpress[serve]'"
    ) from None


@dataclass(frozen=True)
class Probe:
    """How the golden rows of a version came back; ``reason`` is empty where they score as stored."""

    model: str
    version: int
    reason: str
    seconds: float
    deviation: float
    limit: float


@dataclass(frozen=True)
class Round:
    """What one round found; ``states`` are (model, version, state), ``expected`` is instances by (model, version)."""

    probes: tuple[Probe, ...] = ()
    processes: tuple[Process, ...] | None = None
    states: tuple[tuple[str, str, str], ...] = ()
    expected: tuple[tuple[str, int, int], ...] = ()
    problem: str = ""


class Exporter:
    """Goes round and keeps what it found, as a collector of prometheus-client.

    Args:
        repository: the folder of models that the server serves.
        connect: opens a client of that server.
        models: names of the models to look at; all by default.
        report: called with a line when a version begins or ceases to fail.

    Raises:
        RepositoryError: there is no such repository, or no such model in it.
    """

    def __init__(
        self,
        repository: Path,
        connect: Callable[[], Client],
        *,
        models: list[str] | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        unknown = set(models or ()) - set(there := models_of(repository))
        if unknown:
            absent = ", ".join(sorted(unknown))
            raise RepositoryError(f"{repository} holds no model {absent}; it holds {', '.join(there)}")
        self.repository, self.connect, self.models, self.report = repository, connect, models, report
        self.registry = CollectorRegistry()
        self.latest = Round()
        self._rounds, self._round_at = 0, time.monotonic()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._failures: Counter[tuple[str, str, str]] = Counter()
        self._said: dict[tuple[str, int], str] = {}
        self._latency = Histogram(
            "recpress_client_seconds",
            "Time from sending a request of golden rows to its answer, as the exporter's client sees it",
            ["model", "version"],
            buckets=CLIENT_SECONDS,
            registry=self.registry,
        )
        self.registry.register(self)

    def go_round(self) -> Round:
        """Look at everything once; what fails is part of what is found."""
        probes: list[Probe] = []
        expected: list[tuple[str, int, int]] = []
        states: list[tuple[str, str, str]] = []
        problems = []
        try:
            models = self.models or models_of(self.repository)
        except (RecpressError, OSError) as error:
            models = []
            problems.append(str(error))
        for model in models:
            # What is wrong with one model must not hide the others.
            try:
                folder = self.repository / model
                states += _states(folder)
                instances = instances_of(read_config(folder))
                for version in served_versions(folder):
                    expected.append((model, version, instances))
                    probes.append(self._probe(folder, version))
            except (RecpressError, OSError) as error:
                problems.append(str(error))
        problem = "; ".join(problems)
        self._tell("the repository", 0, problem)
        processes = serving(self.repository)
        self.latest = Round(
            tuple(probes), None if processes is None else tuple(processes), tuple(states), tuple(expected), problem
        )
        self._rounds, self._round_at = self._rounds + 1, time.monotonic()
        return self.latest

    def _probe(self, model: Path, version: int) -> Probe:
        name, reason, deviation, limit = (model.name, str(version)), "", float("nan"), float("nan")

        def taken(seconds: float) -> None:
            self._requests[name] += 1
            self._latency.labels(*name).observe(seconds)

        begin = time.monotonic()
        problem = ""
        try:
            with self.connect() as client:
                verdict, golden = measure_golden(client, model / str(version), taken=taken)
            deviation, limit = verdict.worst, golden.outlier_atol
            if not verdict.ok:
                reason, problem = "deviates", f"golden rows do not score as stored: {verdict}"
        except RecpressError as error:
            reason, problem = _reason(error), str(error)
        if reason:
            self._failures[(*name, reason)] += 1
        self._tell(model.name, version, problem)
        return Probe(model.name, version, reason, time.monotonic() - begin, deviation, limit)

    def _tell(self, what: str, version: int, problem: str) -> None:
        before, self._said[what, version] = self._said.get((what, version), ""), problem
        if bool(problem) != bool(before):
            name = f"{what}, version {version}" if version else what
            self.report(f"{name}: {problem or 'as it should be again'}")

    def collect(self):
        """The families, of the last round."""
        found, gauge, counter = self.latest, GaugeMetricFamily, CounterMetricFamily
        by_version = ["model", "version"]
        age = gauge("recpress_exporter_round_age_seconds", "Time since the exporter last went all round")
        age.add_metric([], time.monotonic() - self._round_at)
        rounds = counter("recpress_exporter_rounds", "How often the exporter went round")
        rounds.add_metric([], self._rounds)
        yield from (age, rounds)
        requests = counter("recpress_probe_requests", "Requests of golden rows that were answered", labels=by_version)
        for labels, count in list(self._requests.items()):
            requests.add_metric(labels, count)
        failures = counter("recpress_probe_failures", "Probes that failed", labels=[*by_version, "reason"])
        for labels, count in list(self._failures.items()):
            failures.add_metric(labels, count)
        yield from (requests, failures)
        for name, text, value in (
            ("success", "1 where the golden rows score as stored, else 0", lambda p: float(not p.reason)),
            ("duration_seconds", "What the last probe took", lambda p: p.seconds),
            ("golden_deviation", "Largest difference of a golden row's score over the wire", lambda p: p.deviation),
            ("golden_deviation_limit", "What that difference may be at most", lambda p: p.limit),
        ):
            family = gauge(f"recpress_probe_{name}", text, labels=by_version)
            for probe in found.probes:
                family.add_metric([probe.model, str(probe.version)], value(probe))
            yield family
        states = gauge("recpress_version_state", "1 for each version and its state", labels=[*by_version, "state"])
        for labels in found.states:
            states.add_metric(labels, 1)
        yield states
        yield from _of_processes(found)


def _of_processes(found: Round):
    by_version = ["model", "version"]
    if found.processes is None:
        return
    stubs = GaugeMetricFamily("recpress_stubs", "Stubs that are alive", labels=by_version)
    expected = GaugeMetricFamily("recpress_stubs_expected", "Instances in config.pbtxt", labels=by_version)
    memory = GaugeMetricFamily(
        "recpress_pss_bytes", "Memory of the server and of stubs", labels=["process", *by_version]
    )
    cpu = CounterMetricFamily(
        "recpress_cpu_seconds", "CPU of the server and of each stub", labels=["process", *by_version, "pid"]
    )
    alive = Counter((p.model, p.version) for p in found.processes)
    for model, version, instances in found.expected:
        stubs.add_metric([model, str(version)], alive[model, version])
        expected.add_metric([model, str(version)], instances)
    bytes_of: Counter[tuple[str, str, str]] = Counter()
    for p in found.processes:
        labels = ("server", "", "") if p.version is None else ("stub", p.model, str(p.version))
        bytes_of[labels] += p.pss_bytes
        cpu.add_metric([*labels, str(p.pid)], p.cpu_seconds)
    for labels, value in bytes_of.items():
        memory.add_metric(labels, value)
    up = GaugeMetricFamily("recpress_server_processes", "Processes of the server on this repository")
    up.add_metric([], sum(p.version is None for p in found.processes))
    yield from (up, stubs, expected, memory, cpu)


def _reason(error: RecpressError) -> str:
    if isinstance(error, ServerError):
        return "unreachable"
    return "deviates" if isinstance(error, ProbeError) else "refused"


def _states(model: Path) -> list[tuple[str, str, str]]:
    """(model, version, state) of all version folders: served, kept, withdrawn, or staged by what was cut short."""
    served = served_versions(model)
    found = [(model.name, str(v), "served" if v in served else "kept") for v in versions_in(model)]
    found += [(model.name, p.name.removeprefix(WITHDRAWN), "withdrawn") for p in sorted(model.glob(WITHDRAWN + "*"))]
    return found + [(model.name, p.name.removeprefix(STAGING), "staged") for p in sorted(model.glob(STAGING + "*"))]


def export_until_stopped(exporter: Exporter, *, host: str, port: int, interval_s: float) -> None:
    """Serve ``/metrics`` on ``host:port`` and go round every ``interval_s`` seconds, for ever.

    Raises:
        ServerError: the port cannot be used.
    """
    try:
        server, thread = start_http_server(port, host, registry=exporter.registry)
    except OSError as error:
        raise ServerError(
            f"the exporter cannot listen on {host}:{port} ({error.strerror or error}); give another, by --port"
        ) from None
    exporter.report(f"metrics at http://{host}:{server.server_port}/metrics")
    try:
        pause = threading.Event()
        while True:
            begin = time.monotonic()
            exporter.go_round()
            pause.wait(max(0.0, interval_s - (time.monotonic() - begin)))
    finally:
        with contextlib.suppress(OSError):
            server.shutdown()
            server.server_close()
        thread.join(timeout=2.0)
