"""End-to-end latency of all requests, from nginx' log of them: ``recpress exporter --proxy-log``.

nginx has no histograms, but sends a line a request as a datagram (syslog over UDP), which touches no disk and waits for
nobody. Its times are whole milliseconds, so that few lines differ: they are counted as they come, and each different
one is read once a scrape.

What nginx cannot know is the model of a request over gRPC, which is in its message: the label is empty there, and for
names that the repository does not hold.
"""

import contextlib
import os
import re
import select
import socket
import threading
import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from pathlib import Path

from recpress.errors import MissingDependencyError, ServerError
from recpress.serving.config import CONFIG
from recpress.serving.proxy import check_address

try:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString
except ImportError as missing:
    raise MissingDependencyError(
        f"the exporter needs prometheus-client ({missing}); install it with: pip install 'recpress[serve]'"
    ) from None

# Between whole milliseconds, so that interpolating within a bucket is not off by half of one.
SECONDS = (
    0.0005, 0.0015, 0.0025, 0.0035, 0.0055, 0.0075, 0.0105, 0.0155, 0.0205, 0.0305, 0.0505, 0.0755, 0.1005, 0.2505,
    0.5005, 1.0005, 2.5005, 5.0005, 10.0005,
)  # fmt: skip
_LINE = re.compile(rb"(http|grpc) (\d{3}) (-|\d{3}) -?(\d{0,2})-? (\d{1,9}\.\d{3}) (-|\d{1,9}\.\d{3}) ([ -~]+)")
_LONGEST = 2048
_BUFFER_BYTES = 4 << 20
# What Linux counts for a line of 90 bytes, with some room; and what the buffer must be enough for between two readings.
_LINE_BYTES = 1024
_LINES_PER_S = 20_000
_LONGEST_PAUSE_S = 0.1
_AT_ONCE = 4096
_DIFFERENT = 50_000
_WAKE_MS = 200
# gRPC's status codes: the client's fault, INVALID_ARGUMENT and so on; then RESOURCE_EXHAUSTED and UNAVAILABLE.
_GRPC_REFUSED, _GRPC_UNAVAILABLE = (3, 5, 6, 7, 9, 11, 12, 16), (8, 14)


class ProxyLog:
    """Takes nginx' lines on ``address`` within ``with``, as a collector of prometheus-client.

    Args:
        address: ``host:port`` of UDP; port 0 takes a free one.
        repository: the folder of models that the server serves, whose names are what the label ``model`` may be.

    Attributes:
        address: as given, with the port that was taken.

    Raises:
        ServerError: the address cannot be listened on.
    """

    def __init__(self, address: str, repository: Path) -> None:
        self._repository = repository
        self._socket = _listen(address)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        held = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) / _LINE_BYTES
        self._pause_s = min(_LONGEST_PAUSE_S, held / _LINES_PER_S)
        self._lock = threading.Lock()
        self._lines: Counter[bytes] = Counter()
        self._seconds: dict[tuple[str, str, str], list] = {}
        self._upstream: dict[tuple[str, str], list] = {}
        self._taken = self._parse_errors = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy-log", daemon=True)

    def __enter__(self) -> "ProxyLog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        receive = self._socket.recv
        while not self._stopped.is_set():
            if not poll.poll(_WAKE_MS):
                continue
            time.sleep(self._pause_s)  # waking up costs more than a line, and disturbs others on a busy machine
            datagrams: list[bytes] = []
            with contextlib.suppress(BlockingIOError):
                while len(datagrams) < _AT_ONCE:
                    datagrams.append(receive(_LONGEST))
            with self._lock:
                # Without what syslog puts before it, which changes each second.
                self._lines.update([datagram.partition(b": ")[2] for datagram in datagrams])
                if len(self._lines) > _DIFFERENT:
                    self._read()

    def _read(self) -> None:
        lines, self._lines = self._lines, Counter()
        models = {path.parent.name for path in self._repository.glob(f"*/{CONFIG}")}
        for line, count in lines.items():
            self._taken += count
            found = _LINE.fullmatch(line)
            if found is None:
                self._parse_errors += count
                continue
            protocol, status, upstream, grpc, seconds, waited, model = (field.decode() for field in found.groups())
            outcome = outcome_of(protocol, int(status), upstream, grpc)
            labels = model if model in models else "", protocol
            _add(self._seconds, (*labels, outcome), float(seconds), count)
            if outcome == "ok" and waited != "-":
                _add(self._upstream, labels, float(waited), count)

    def collect(self) -> list[CounterMetricFamily | HistogramMetricFamily]:
        """The families, with all lines that have come."""
        with self._lock:
            self._read()
            found = [
                _histogram(
                    "recpress_proxy_seconds",
                    "Time from a request's first byte to its answer's last, as nginx sees it, in whole milliseconds",
                    ["model", "protocol", "outcome"],
                    self._seconds,
                ),
                _histogram(
                    "recpress_proxy_upstream_seconds",
                    "The part of it that the server took, of requests that were answered",
                    ["model", "protocol"],
                    self._upstream,
                ),
            ]
            taken, parse_errors = self._taken, self._parse_errors
        for name, text, value in (
            ("lines", "Datagrams that were taken", taken),
            ("parse_errors", "Those of them that are no lines of recpress proxy", parse_errors),
            ("dropped", "Datagrams that the kernel dropped, as they came faster than they were taken", self._drops()),
        ):
            if value is not None:
                found.append(CounterMetricFamily(f"recpress_proxy_log_{name}", text, value=value))
        return found

    def _drops(self) -> int | None:
        """What the kernel counted for this socket; None without ``/proc``."""
        inode = str(os.fstat(self._socket.fileno()).st_ino)
        table = "udp6" if self._socket.family is socket.AF_INET6 else "udp"
        try:
            rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        except OSError:
            return None
        return next((int(row[12]) for row in rows if row[9] == inode), None)


def outcome_of(protocol: str, status: int, upstream: str, grpc: str) -> str:
    """What became of a request, as far as the proxy can tell; ``ok`` alone is a success.

    ``rejected`` had no room in the proxy, ``unavailable`` was turned away by the server, as when it would be late,
    ``refused`` is the client's fault, ``unreachable`` and ``timeout`` got no answer of the server, ``cancelled`` was
    given up by the client, and ``failed`` is any other.

    Args:
        protocol: ``http`` or ``grpc``.
        status: HTTP's; answers of gRPC have 200, but for what was broken off.
        upstream: HTTP's status of the server, or nginx' where that gave none; "-" where it was not asked.
        grpc: gRPC's status code, or nothing.
    """
    if status == 499:
        return "cancelled"
    if upstream in ("502", "504"):
        return "unreachable" if upstream == "502" else "timeout"
    if protocol == "grpc" and status == 200:
        code = int(grpc or -1)
        ok, refused, unavailable = code == 0, code in _GRPC_REFUSED, code in _GRPC_UNAVAILABLE
    else:
        ok, refused, unavailable = status == 200, 400 <= status < 500, status == 503
    if unavailable:
        return "rejected" if upstream == "-" else "unavailable"
    if refused or upstream == "-":
        return "refused"
    return "ok" if ok else "failed"


def _listen(address: str) -> socket.socket:
    check_address(address)
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        listening = socket.socket(family, kind)
        try:
            listening.bind(where)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ServerError(
            f"the exporter cannot take the proxy's log on {address} ({error.strerror or error}); give another address "
            "by --proxy-log, and the same to recpress proxy by --log"
        ) from None
    listening.setblocking(False)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    return listening


def _add(histograms: dict, labels: tuple[str, ...], seconds: float, count: int) -> None:
    counts, total = histograms.setdefault(labels, ([0] * (len(SECONDS) + 1), [0.0]))
    counts[bisect_left(SECONDS, seconds)] += count
    total[0] += seconds * count


def _histogram(name: str, text: str, labels: list[str], histograms: dict) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    bounds = [floatToGoString(bound) for bound in (*SECONDS, float("inf"))]
    for values, (counts, total) in histograms.items():
        family.add_metric(values, list(zip(bounds, accumulate(counts), strict=True)), total[0])
    return family
