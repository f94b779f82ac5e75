"""The demo's report as one self-contained page: tables and a plot, no script and nothing fetched."""

import io
from importlib.resources import files
from pathlib import Path

from recpress import __version__
from recpress.artifact.manifest import Manifest
from recpress.demo import Result
from recpress.report.demo_table import rows
from recpress.report.tables import human_bytes, training_lines, what_was_done

_INK, _BEFORE, _AFTER = "#1f2430", "#9aa5b8", "#0b7a75"


def write_page(path: Path, manifest: Manifest, result: Result) -> None:
    """Write the page to ``path``."""
    from jinja2 import Environment

    template = files("recpress.report").joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    text = page.render(
        rows=rows(result),
        layers=manifest.layers,
        parameters=sum(layer.parameters for layer in manifest.layers),
        human_bytes=human_bytes,
        what_was_done=what_was_done,
        training_lines=training_lines,
        manifest=manifest,
        result=result,
        plot=plot(manifest, result),
        version=__version__,
    )
    path.write_text(text, encoding="utf-8")


def plot(manifest: Manifest, result: Result) -> str:
    """Bytes of each layer, and median latencies in process, before and after: an SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    sizes, times = figure.subplots(1, 2, width_ratios=(3, 2))
    layers = [layer for layer in manifest.layers if layer.bytes_before]
    _pairs(
        sizes,
        [", ".join(layer.names) for layer in layers],
        [
            [layer.bytes_before / 1024 for layer in layers],
            [layer.bytes_after / 1024 for layer in layers],
        ],
    )
    sizes.set_title("KiB of each layer", loc="left", color=_INK)
    local = result.local
    _pairs(
        times,
        [f"batch {batch}" for batch in local],
        [
            [variants["original"].p50 * 1e3 for variants in local.values()],
            [variants["compressed"].p50 * 1e3 for variants in local.values()],
        ],
    )
    times.set_title("median ms in process, one thread", loc="left", color=_INK)
    sizes.legend(["original", "compressed"], frameon=False, loc="best")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def _pairs(axes, labels: list[str], series: list[list[float]]) -> None:
    for values, color, shift in zip(series, (_BEFORE, _AFTER), (-0.2, 0.2), strict=True):
        axes.barh([i + shift for i in range(len(labels))], values, height=0.38, color=color)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.tick_params(length=0, colors=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
