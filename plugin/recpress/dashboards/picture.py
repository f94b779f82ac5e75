"""A dashboard as a picture, drawn from a running Prometheus: for whoever has no Grafana."""

import http.client
import io
import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recpress.dashboards.panels import MV, WIDTH, Board, Panel
from recpress.errors import DashboardError, MissingDependencyError
from recpress.files import replace, require_writable

_POINTS = 120
_UNITS = {
    "s": (1e3, "ms"),
    "percentunit": (100, "%"),
    "reqps": (1, "requests a second"),
    "rowsps": (1, "rows a second"),
}
# M. Okabe and K. Ito, "Color Universal Design", 2008: told apart by whoever sees no red or no green.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_NAMES = 12
# Inches: the picture's width and heading; beside a plot; the plot; above and below it, and each line of names.
_WIDE, _HEAD, _LEFT, _RIGHT, _TITLE, _PLOT, _TIME, _NAME_LINE = 17.0, 0.45, 0.8, 0.15, 0.35, 2.2, 0.65, 0.17
_HANDLE, _LETTER = 0.5, 0.058
_LEAST = 1e-6


@dataclass(frozen=True)
class Window:
    """The ``minutes`` up to ``end``, in seconds since 1970, which Prometheus is asked of every ``step`` seconds."""

    end: float
    minutes: float

    @property
    def step(self) -> float:
        return max(1.0, 60 * self.minutes / _POINTS)

    @property
    def ago(self) -> np.ndarray:
        """The minutes from each step to the end, negative, ``[steps]``."""
        steps = math.floor(60 * self.minutes / self.step + 1e-6) + 1
        return -self.minutes + np.arange(steps) * self.step / 60

    def regular(self, values: list) -> np.ndarray:
        """``[steps]`` from the pairs of time and text of Prometheus; NaN where it has none, or no finite number."""
        found = np.full(len(self.ago), np.nan)
        for at, text in values:
            found[round((float(at) - self.end + 60 * self.minutes) / self.step)] = float(text)
        return np.where(np.isfinite(found), found, np.nan)


@dataclass(frozen=True)
class Answered:
    """A panel, and of each of its queries the series, as Prometheus answers them."""

    panel: Panel
    series: list[list[dict]]

    @property
    def inches(self) -> float:
        return _WIDE * self.panel.width / WIDTH

    @property
    def names(self) -> list[str]:
        """Of the lines, as far as there is room; a heatmap's buckets stand at its axis."""
        if self.panel.kind == "heatmap":
            return []
        pairs = zip(self.panel.queries, self.series, strict=True)
        room = int((self.inches - _LEFT - _HANDLE) / _LETTER)
        names = [_name(query.legend, one["metric"], room) for query, found in pairs for one in found]
        more = len(names) - _NAMES
        return names if more <= 0 else [*names[:_NAMES], f"and {more} more"]

    @property
    def columns(self) -> int:
        """How many names stand side by side below the plot."""
        return max(1, int((self.inches - _LEFT) / (_HANDLE + _LETTER * max(map(len, self.names), default=1))))

    @property
    def height(self) -> float:
        """In inches, with its title and names."""
        return _TITLE + _PLOT + _TIME + _NAME_LINE * math.ceil(len(self.names) / self.columns)


def draw(
    board: Board, prometheus: str, output: Path, *, model: str = ".*", version: str = ".*", minutes: float = 60
) -> int:
    """Draw the last ``minutes`` of ``board`` to the file ``output``; how many panels have no data.

    Args:
        prometheus: its address, ``http://host:port``.
        model, version: regular expressions of what is shown.

    Raises:
        DashboardError: Prometheus cannot be asked, or knows no such model.
        OutputError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingDependencyError(f"a picture needs matplotlib ({error}); pip install 'recpress[demo]'") from None
    require_writable(output)
    window = Window(time.time(), minutes)

    def ask(expr: str) -> list[dict]:
        return ask_range(prometheus, filled(expr, model, version), window.end, minutes)

    if not ask(f"recpress_model_info{{{MV}}}"):
        raise DashboardError(
            f"the Prometheus at {prometheus} has nothing of model {model!r}, version {version!r}, in the last "
            f"{minutes:g} minutes; does it scrape the server's metrics?"
        )
    found = [[Answered(panel, [ask(query.expr) for query in panel.queries]) for panel in row] for row in board.rows]
    until = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(window.end))
    # Names of models and recipes are no mathematics, whatever dollars they hold.
    with rc_context({"text.parse_math": False, "font.size": 9}):
        figure = _figure(found, window, f"{board.title}, {minutes:g} minutes to {until}")
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    replace(output, picture.getvalue())
    return sum(not any(one.series) for row in found for one in row)


def _figure(found: list[list[Answered]], window: Window, title: str):
    """The panels row by row, as a dashboard has them."""
    from matplotlib.figure import Figure

    heights = [max(one.height for one in row) for row in found]
    tall = _HEAD + sum(heights)
    figure = Figure(figsize=(_WIDE, tall), dpi=110)
    figure.suptitle(title, x=_LEFT / _WIDE, y=1 - 0.2 / tall, ha="left", fontsize=13)
    top = tall - _HEAD
    for row, height in zip(found, heights, strict=True):
        left = 0.0
        for one in row:
            inches = np.array([left + _LEFT, top - _TITLE - _PLOT, one.inches - _LEFT - _RIGHT, _PLOT])
            place = figure.add_axes(inches / [_WIDE, tall, _WIDE, tall])
            (_heatmap if one.panel.kind == "heatmap" else _lines)(place, one, window)
            left += one.inches
        top -= height
    return figure


def filled(expr: str, model: str, version: str) -> str:
    """An expression with its variables filled in, as PromQL's strings have them."""
    values = {"$model": model, "$version": version}
    escaped = {name: text.replace("\\", r"\\").replace('"', r"\"") for name, text in values.items()}
    return re.sub(r"\$(model|version)\b", lambda found: escaped[found[0]], expr)


def ask_range(prometheus: str, expr: str, end: float, minutes: float) -> list[dict]:
    """The series of ``expr`` up to ``end``, as Prometheus answers them: ``metric`` and ``values``.

    Raises:
        DashboardError: it cannot be reached, or refuses the expression.
    """
    asked = {"query": expr, "start": end - 60 * minutes, "end": end, "step": Window(end, minutes).step}
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


def _lines(place, one: Answered, window: Window) -> None:
    """One line a series: colours tell series of a query apart, dashes the queries."""
    curves = [window.regular(line["values"]) for found in one.series for line in found]
    low, high = _ends(curves)
    scale, unit = _unit(one.panel, high)
    handles = []
    for nth, found in enumerate(one.series):
        for i in range(len(found)):
            turn, color = divmod(i, len(_COLORS))
            style = _STYLES[(nth + turn) % len(_STYLES)]
            # A point between gaps has no line, so that each has a dot.
            look = {"color": _COLORS[color], "linestyle": style, "marker": ".", "markersize": 2}
            handles += place.plot(window.ago, scale * curves[len(handles)], **look)
    # From zero; and what is constant is not drawn by the rounding of its last digits.
    tall = max(abs(low), abs(high)) * scale
    place.set_ylim(1.08 * scale * min(0.0, low), 1.08 * scale * max(0.0, high) if tall > _LEAST else 1.0)
    place.grid(alpha=0.3)
    _dress(place, one.panel, window, unit, empty=all(np.isnan(curve).all() for curve in curves))
    if handles:
        _legend(place, handles, one)


def _heatmap(place, one: Answered, window: Window) -> None:
    """Each bucket's own rate, from the cumulative ones that Prometheus keeps; buckets beyond all data are left out."""
    (found,) = one.series
    found = sorted(found, key=lambda bucket: float(bucket["metric"]["le"]))
    bounds = [float(bucket["metric"]["le"]) for bucket in found]
    below = np.array([window.regular(bucket["values"]) for bucket in found]).reshape(len(found), len(window.ago))
    # Buckets are of slightly different moments, so that differences may come out below zero.
    own = np.diff(below, axis=0, prepend=0.0).clip(min=0.0)
    used = np.flatnonzero(np.nan_to_num(own).any(axis=1))
    scale, unit = _unit(one.panel, max((b for b in bounds if math.isfinite(b)), default=1.0))
    if len(used):
        first, last = max(0, used[0] - 1), min(len(bounds), used[-1] + 2)
        half = window.step / 120
        sides = np.append(window.ago - half, window.ago[-1] + half)
        shown = place.pcolormesh(sides, np.arange(first, last + 1), own[first:last], cmap="Blues", vmin=0)
        place.figure.colorbar(shown, ax=place, pad=0.01, label="a second")
        ticks = range(first, last, max(1, (last - first) // 12))
        place.set_yticks([t + 1 for t in ticks], [f"{scale * bounds[t]:g}" for t in ticks])
    _dress(place, one.panel, window, f"up to, {unit}" if unit else "up to", empty=not len(used))


def _ends(curves: list[np.ndarray]) -> tuple[float, float]:
    """The least and the largest number, 0 where there is none."""
    numbers = np.concatenate([*curves, np.empty(0)])
    numbers = numbers[~np.isnan(numbers)]
    return (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 0.0)


def _unit(panel: Panel, high: float) -> tuple[float, str]:
    """What numbers are multiplied by, and the unit that they then have."""
    if panel.unit != "bytes":
        return _UNITS.get(panel.unit, (1.0, ""))
    power = min(3, int(math.log2(high) // 10)) if high >= 1 else 0
    return 1024.0**-power, ("B", "KiB", "MiB", "GiB")[power]


def _name(legend: str, labels: dict[str, str], letters: int) -> str:
    """What a line is called, in so many letters at most."""
    name = re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend).strip()
    name = name if len(name) <= letters else name[: letters - 1] + "…"
    # matplotlib leaves out names that begin with an underscore.
    return f" {name}" if name.startswith("_") else name


def _legend(place, handles: list, one: Answered) -> None:
    """Below the plot, where it covers no line."""
    if len(handles) > _NAMES:
        handles = [*handles[:_NAMES], *place.plot([], [], linestyle="")]
    place.legend(
        handles, one.names, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=one.columns, fontsize=8, frameon=False,
        borderaxespad=0, handlelength=2.4, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip


def _dress(place, panel: Panel, window: Window, unit: str, *, empty: bool) -> None:
    place.set_title(panel.title, loc="left", fontsize=11)
    place.set_xlim(-window.minutes, window.step / 120)
    place.set_xlabel("minutes to the end")
    place.set_ylabel(unit)
    if empty:
        place.set_yticks([])
        place.text(0.5, 0.5, "no data", ha="center", transform=place.transAxes)
