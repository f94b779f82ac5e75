"""A load test as a table on a terminal, and as a plot of latency against throughput."""

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from recpress.errors import MissingDependencyError
from recpress.loadtest.saved import PERCENTS, Saved, SavedStep

LINES = {50.0: ("#9aa5b8", "s"), 99.0: ("#0b7a75", "o"), 99.9: ("#b4540a", "^")}
"""Percentiles in the plot: each one's colour, and its marker for whoever sees or prints none."""
# Ticks are a factor of 2.5 apart at most, so that there is one even where all latencies are nearly the same.
_MARGIN = 1.6
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
INK, OBJECTIVE = "#1f2430", "#b3261e"


def print_test(test: Saved) -> None:
    """One line a load; below it what the figures mean, what the tester cost, and the first error of each kind."""
    console = Console(markup=False)
    console.print(table(test))
    deadlines = {f"{step.deadline_s * 1e3:g} ms" for step in test.steps if step.deadline_s is not None}
    in_time = f"; in time: within {', '.join(deadlines)}" if deadlines else ""
    worst = "infinite" if test.scores.worst is None else f"{test.scores.worst:.3g}"
    lines = [
        f"Latencies in ms, of all requests, from when each was due{in_time}. Late: sent by the tester, p99.",
        f"{test.rows}, {test.batch} a request, over {test.protocol}, {lasted(test)}; tester on {from_where(test)}.",
        f"{test.scores.rows:,} scores were checked; largest deviation {worst}.",
        "The tester's own processor time a request: "
        + ", ".join(f"{step.client_s * 1e6:.0f} us at {step.load}" for step in test.steps),
        *(f"{step.load}, {kind}: {text}" for step in test.steps for kind, text in step.errors.items()),
    ]
    if slow := [step.load for step in test.steps if tester_is_slow(step)]:
        lines.append(f"At {', '.join(slow)} the tester itself was late; give it a processor of its own.")
    console.print("\n".join(lines), highlight=False)


def table(test: Saved) -> Table:
    """Throughput, goodput, percentiles and errors of each load."""
    goodput = any(step.goodput is not None for step in test.steps)
    columns = ["sent", "right/s", *["in time/s"] * goodput, *map(percent_name, PERCENTS), "late"]
    title = f"{test.model} at {test.server}"
    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    shown.add_column("load", no_wrap=True)
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("errors")
    for step in test.steps:
        figures = [f"{step.requests:,}", f"{step.throughput or 0:.0f}", *[f"{step.goodput or 0:.0f}"] * goodput]
        latencies = [milliseconds(step.percentile(percent)) for percent in PERCENTS]
        shown.add_row(step.load, *figures, *latencies, milliseconds(step.sent_late_p99_s), errors(step))
    return shown


def lasted(test: Saved) -> str:
    """How long each load was measured, and after what: ``1 s each, after 0.25 s of warm-up``."""
    seconds, warm_up = ({f"{getattr(step, of):.3g}": None for step in test.steps} for of in ("seconds", "warm_up_s"))
    return f"{' or '.join(seconds)} s each, after {' or '.join(warm_up)} s of warm-up"


def from_where(test: Saved) -> str:
    """On which machine the tester ran, and whether the server did too."""
    host = test.server.rpartition(":")[0]
    shared = ", which the server shares" if host in _LOOPBACK else ""
    return f"{test.machine}{shared}"


def tester_is_slow(step: SavedStep) -> bool:
    """Whether a fifth of the 99th percentile, and more than a millisecond, is the tester's own delay."""
    late, p99 = step.sent_late_p99_s, step.percentile(99)
    return late is not None and late > max(1e-3, 0.2 * (p99 or 0.0))


def milliseconds(seconds: float | None) -> str:
    """Three digits, ``1.25``; ``never`` for what was not answered."""
    if seconds is None:
        return "never"
    return f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f}"


def percent_name(percent: float) -> str:
    """``p99``; ``max`` for all."""
    return "max" if percent == 100 else f"p{percent:g}"


def errors(step: SavedStep) -> str:
    """Counts by kind, in words."""
    return ", ".join(f"{count:,} {kind}" for kind, count in step.outcomes.items() if kind != "ok") or "none"


def require_plot() -> None:
    """Find out before a test that could not be plotted.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"a plot needs matplotlib ({error}); install it with: pip install 'recpress[demo]'"
        ) from None


def plot(test: Saved) -> str:
    """Percentiles of latency over throughput, one point a load, as an SVG.

    A load of too few requests to tell a percentile from the slowest one has no point of it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for percent, (color, marker) in LINES.items():
            if points := _points(test, percent):
                axes.plot(*zip(*points, strict=True), marker=marker, color=color, label=percent_name(percent))
        if test.objective_p99_s is not None:
            axes.axhline(test.objective_p99_s * 1e3, color=OBJECTIVE, linestyle="--", label="objective of p99")
        _dress(axes)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True
        )
    _, opening, rest = buffer.getvalue().partition("<svg")
    return opening + rest


def _points(test: Saved, percent: float) -> list[tuple[float, float]]:
    """Right answers a second, and ms."""
    fewest = 100 / (100 - percent)
    found = [(s.throughput, s.percentile(percent)) for s in test.steps if s.requests >= fewest - 1e-9]
    return [(x, y * 1e3) for x, y in found if x is not None and y is not None]


def _dress(axes) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=0)
    axes.set_xlabel("right answers a second", color=INK)
    axes.set_ylabel("latency, ms", color=INK)
    axes.tick_params(colors=INK, length=3)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    if latencies := [y for line in axes.lines for y in line.get_ydata()]:
        axes.set_ylim(min(latencies) / _MARGIN, max(latencies) * _MARGIN)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(axes.lines), frameon=False, labelcolor=INK,
            handlelength=1.6, columnspacing=1.2, borderpad=0.2,
        )  # fmt: skip
