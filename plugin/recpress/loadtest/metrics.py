"""The tester's own ``/metrics`` while it runs: end-to-end latency as a histogram that adds up over testers."""

from collections.abc import Callable
from types import TracebackType

from recpress.errors import LoadTestError, MissingDependencyError
from recpress.loadtest.outcomes import Outcome

BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class Metrics:
    """Serves ``recpress_loadtest_*`` on ``host:port``; a context manager.

    Args:
        model, protocol: labels of all series.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
        LoadTestError: the port is taken.
    """

    def __init__(self, port: int, *, model: str, protocol: str, host: str = "127.0.0.1") -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
        except ImportError as error:
            raise MissingDependencyError(
                f"metrics need prometheus-client ({error}); install it with: pip install 'recpress[serve]'"
            ) from None
        registry = CollectorRegistry()
        labels = {"model": model, "protocol": protocol}
        latency = Histogram(
            "recpress_loadtest_request_seconds",
            "From when a request was due to its right answer",
            labels,
            buckets=BUCKETS_S,
            registry=registry,
        )
        requests = Counter(
            "recpress_loadtest_requests_total", "Requests by outcome", [*labels, "outcome"], registry=registry
        )
        under_way = Gauge(
            "recpress_loadtest_requests_under_way", "Requests sent and not answered", labels, registry=registry
        )
        self._latency, self._under_way = latency.labels(**labels), under_way.labels(**labels)
        self._counts = {outcome: requests.labels(**labels, outcome=outcome.label) for outcome in Outcome}
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise LoadTestError(f"no metrics on {host}:{port} ({error}); give another --metrics-port") from None
        self.address = f"{host}:{self._server.server_port}"

    def observe(self, seconds: float, outcome: Outcome) -> None:
        """Count an answer."""
        self._counts[outcome].inc()
        if outcome is Outcome.OK:
            self._latency.observe(seconds)

    def follow(self, under_way: Callable[[], float]) -> None:
        """Show what ``under_way()`` returns from now on, a number of requests."""
        self._under_way.set_function(under_way)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
