"""Read the server's Prometheus metrics, and quantiles from its histograms.

The backend hands on what it counts every half second, so a reading is that late.
"""

import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from recpress.errors import MissingDependencyError, ServerError

EXECUTE_SECONDS = "recpress_execute_seconds"


@dataclass(frozen=True)
class Histogram:
    """A Prometheus histogram: ``counts[i]`` observations of at most ``bounds[i]`` seconds, cumulative."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> int:
        return int(self.counts[-1]) if self.counts else 0

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was observed after ``earlier``, a reading of the same histogram."""
        before = dict(zip(earlier.bounds, earlier.counts, strict=True))
        counts = tuple(count - before.get(bound, 0.0) for bound, count in zip(self.bounds, self.counts, strict=True))
        return Histogram(self.bounds, counts, self.total - earlier.total)

    def quantile(self, q: float) -> float:
        """The q-quantile in seconds, linear within its bucket, as PromQL's ``histogram_quantile`` has it.

        NaN without observations; beyond the last finite bound, that bound.
        """
        if not self.count:
            return math.nan
        rank = q * self.count
        below, start = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count >= rank:
                if math.isinf(bound):
                    return start
                return start + (bound - start) * (rank - below) / max(count - below, 1)
            below, start = count, bound
        return start


def fetch_text(address: str, timeout_s: float = 5.0) -> str:
    """The text of ``/metrics`` at ``host:port``.

    Raises:
        ServerError: it cannot be reached.
    """
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=timeout_s) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError) as error:
        raise ServerError(
            f"no metrics at http://{address}/metrics ({error}); is the server's metrics port right?"
        ) from None


def read_values(text: str, name: str, labels: Mapping[str, str]) -> list[tuple[dict[str, str], float]]:
    """The samples ``name`` in ``text`` that carry ``labels``: all their labels, and the value.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise MissingDependencyError(
            f"reading metrics needs prometheus-client ({error}); install it with: pip install 'recpress[serve]'"
        ) from None
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def read_histogram(text: str, name: str, labels: Mapping[str, str]) -> Histogram:
    """The histogram ``name`` in ``text``, added up over all series that carry ``labels``.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
        ServerError: there is no such histogram.
    """
    buckets: dict[float, float] = {}
    for found, value in read_values(text, f"{name}_bucket", labels):
        bound = float(found["le"])
        buckets[bound] = buckets.get(bound, 0.0) + value
    if not buckets:
        wanted = ", ".join(f'{key}="{value}"' for key, value in labels.items())
        raise ServerError(f"the metrics hold no histogram {name}{{{wanted}}}; is the model served by backend recpress?")
    total = sum(value for _, value in read_values(text, f"{name}_sum", labels))
    bounds = tuple(sorted(buckets))
    return Histogram(bounds, tuple(buckets[bound] for bound in bounds), total)
