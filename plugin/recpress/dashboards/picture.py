"""A dashboard as a picture, drawn from a running Prometheus: for whoever has no Grafana."""

import http.client
import json
import math
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from recpress.dashboards.panels import Board, Panel
from recpress.errors import DashboardError, MissingDependencyError

_POINTS = 120
_UNITS = {
    "s": (1e3, "ms"),
    "bytes": (1 / 2**20, "MiB"),
    "percentunit": (100, "%"),
    "reqps": (1, "1/s"),
    "rowsps": (1, "1/s"),
}
_LEGEND = 44
_LEAST = 1e-6


def draw(
    board: Board, prometheus: str, output: Path, *, model: str = ".*", version: str = ".*", minutes: float = 60
) -> int:
    """Draw the last ``minutes`` of ``board`` to the file ``output``; how many panels have no data.

    Args:
        prometheus: its address, ``http://host:port``.
        model, version: regular expressions of what is shown.

    Raises:
        DashboardError: Prometheus cannot be asked, knows no such model, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"a picture needs matplotlib ({error}); pip install 'recpress[demo]'") from None
    end = time.time()
    known = ask_range(prometheus, f'recpress_model_info{{model=~"{model}", version=~"{version}"}}', end, minutes)
    if not known:
        raise DashboardError(
            f"the Prometheus at {prometheus} has nothing of model {model!r}, version {version!r}, in the last "
            f"{minutes:g} minutes; does it scrape the server's metrics?"
        )
    rows = math.ceil(len(board.panels) / 3)
    figure = Figure(figsize=(18, 3.4 * rows), layout="constrained", dpi=90)
    figure.suptitle(f"{board.title}, {minutes:g} minutes to {time.strftime('%Y-%m-%d %H:%M', time.localtime(end))}")
    places = figure.subplots(rows, 3, squeeze=False).ravel()
    empty = 0
    for place, panel in zip(places, board.panels, strict=False):
        series = {
            query: ask_range(prometheus, filled(query.expr, model, version), end, minutes) for query in panel.queries
        }
        empty += not any(series.values())
        (_heatmap if panel.kind == "heatmap" else _lines)(place, panel, series, end)
        place.set_title(panel.title, loc="left", fontsize=10)
        place.set_xlabel("minutes to the end", fontsize=8)
    for place in places[len(board.panels) :]:
        place.set_axis_off()
    _write(figure, output)
    return empty


def filled(expr: str, model: str, version: str) -> str:
    """An expression with its variables filled in."""
    return expr.replace("$model", model).replace("$version", version)


def ask_range(prometheus: str, expr: str, end: float, minutes: float) -> list[dict]:
    """The series of ``expr`` up to ``end``, as Prometheus answers them: ``metric`` and ``values``.

    Raises:
        DashboardError: it cannot be reached, or refuses the expression.
    """
    asked = {"query": expr, "start": end - 60 * minutes, "end": end, "step": max(1.0, 60 * minutes / _POINTS)}
    url = f"{prometheus.rstrip('/')}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise DashboardError(
            f"the Prometheus at {prometheus} refuses {expr!r}: {error.read().decode()[:300]}"
        ) from None
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        raise DashboardError(
            f"no Prometheus answers at {prometheus} ({error}); give its address as http://host:port"
        ) from None


def _points(values: list, end: float, scale: float) -> tuple[list[float], list[float]]:
    return [(float(at) - end) / 60 for at, _ in values], [scale * float(value) for _, value in values]


def _lines(place, panel: Panel, series: dict, end: float) -> None:
    scale, unit = _UNITS.get(panel.unit, (1, ""))
    for query, found in series.items():
        for one in found:
            name = re.sub(r"{{(\w+)}}", lambda m, labels=one["metric"]: labels.get(m[1], ""), query.legend).strip()
            place.plot(
                *_points(one["values"], end, scale), label=name if len(name) <= _LEGEND else name[:_LEGEND] + "…"
            )
    if place.lines:
        place.legend(fontsize=7, loc="upper left", framealpha=0.6)
    else:
        place.text(0.5, 0.5, "no data", ha="center", transform=place.transAxes)
    place.set_ylabel(unit, fontsize=8)
    # Room above the lines for their names; and what is constant is not drawn by the rounding of its last digits.
    top = max((max(line.get_ydata()) for line in place.lines), default=1.0)
    place.set_ylim(min(0.0, place.get_ylim()[0]), 1.35 * top if top > _LEAST else 1.0)
    place.tick_params(labelsize=7)
    place.grid(alpha=0.3)


def _heatmap(place, panel: Panel, series: dict, end: float) -> None:
    """Each bucket's own share, from the cumulative ones that Prometheus keeps."""
    found = sorted(next(iter(series.values())), key=lambda one: float(one["metric"]["le"]))
    if not found:
        place.text(0.5, 0.5, "no data", ha="center", transform=place.transAxes)
        return
    times = sorted({float(at) for one in found for at, _ in one["values"]})
    grid, below = [], dict.fromkeys(times, 0.0)
    for one in found:
        values = {float(at): float(value) for at, value in one["values"]}
        grid.append([max(0.0, values.get(at, 0.0) - below[at]) for at in times])
        below = {at: values.get(at, 0.0) for at in times}
    place.imshow(
        grid,
        aspect="auto",
        origin="lower",
        cmap="Blues",
        extent=((times[0] - end) / 60, (times[-1] - end) / 60, 0, len(grid)),
    )
    scale, unit = _UNITS.get(panel.unit, (1, ""))
    names = [f"{scale * float(one['metric']['le']):g}" for one in found]
    place.set_yticks(range(1, len(names) + 1)[::2], names[::2], fontsize=7)
    place.set_ylabel(f"up to, {unit}" if unit else "up to", fontsize=8)
    place.tick_params(labelsize=7)


def _write(figure, output: Path) -> None:
    staged = None
    try:
        descriptor, staged = tempfile.mkstemp(prefix=".dashboard-", suffix=".png", dir=output.parent)
        os.close(descriptor)
        figure.savefig(staged)
        Path(staged).replace(output)
    except OSError as error:
        raise DashboardError(
            f"{output} cannot be written ({error.strerror or error}); give another by --output"
        ) from None
    finally:
        if staged is not None:
            Path(staged).unlink(missing_ok=True)
