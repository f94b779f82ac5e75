"""The demo's figures as rows of text, for the terminal."""

from recpress.demo import Result
from recpress.latency import Latency
from recpress.report.tables import human_bytes

Row = tuple[str, str, str, str]


def rows(result: Result) -> list[Row]:
    """``(what, original, compressed, change)``: sizes, quality, and latencies as p50 / p99, medians compared."""
    return [_size(result), *_quality(result), *_local(result), *_served(result)]


def _size(result: Result) -> Row:
    before, after = result.size["original"], result.size["compressed"]
    return ("size", human_bytes(before), human_bytes(after), f"{after / before:.1%} of the bytes")


def _quality(result: Result) -> list[Row]:
    found = []
    for metric, before in result.quality["original"].items():
        after = result.quality["compressed"][metric]
        found.append((f"test {metric}", f"{before:.5f}", f"{after:.5f}", f"{after - before:+.5f}"))
    return found


def _local(result: Result) -> list[Row]:
    found = []
    for batch, variants in result.local.items():
        before, after = variants["original"], variants["compressed"]
        ratio = before.p50 / after.p50
        verdict = f"{ratio:.2f}× the speed" + ("" if ratio >= 1 else ", a loss")
        found.append((f"in process, batch {batch}", _milliseconds(before), _milliseconds(after), verdict))
    return found


def _served(result: Result) -> list[Row]:
    found = [(f"served, batch {batch}", "", _milliseconds(latency), "") for batch, latency in result.served.items()]
    inside = Latency(result.execute["p50"], result.execute["p99"], int(result.execute["count"]))
    return [*found, ("of that in the backend", "", _milliseconds(inside), "all batches")]


def _milliseconds(latency: Latency) -> str:
    return f"{latency.p50 * 1e3:.2f} / {latency.p99 * 1e3:.2f} ms"
