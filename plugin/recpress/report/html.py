"""One self-contained page on a compressed model: no script, and nothing fetched."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from recpress import __version__
from recpress.artifact.manifest import Manifest
from recpress.errors import MissingDependencyError
from recpress.latency import Latency
from recpress.loadtest import show
from recpress.loadtest.saved import PERCENTS, Saved
from recpress.report.paired import Paired
from recpress.report.tables import human_bytes, training_lines, what_was_done

if TYPE_CHECKING:
    from markupsafe import Markup

_THEMED = {show.INK: "var(--ink)", show.OBJECTIVE: "var(--alarm)"} | dict(
    zip((color for color, _ in show.LINES.values()), ("var(--before)", "var(--after)", "var(--tail)"), strict=True)
)

# Of a layer's name, from which on it gets more of the page's width.
_LONG = 24
_PLOT = "Latency over right answers a second, one point a load; the table above has the figures."


@dataclass(frozen=True)
class Served:
    """What requests of ``batch`` rows, one at a time, took a client of the server, and the backend of that."""

    client: Mapping[int, Latency]
    execute: Latency
    requests: int
    deviation: float


@dataclass(frozen=True)
class Content:
    """What the page says beyond the manifest.

    Attributes:
        title: of the page.
        notes: sentences below it.
        quality: metrics of the original and the compressed model, each with the interval of their difference; what the
            manifest has beside them is shown without one.
        local: in process, by batch size: of ``original`` and ``compressed``.
        served: by the demo's client.
        machine: the processor and cores that ``local`` and ``served`` were measured on.
        tests: load tests of the served model, and of others to compare with.
    """

    title: str
    manifest: Manifest
    notes: tuple[str, ...] = ()
    quality: Mapping[str, Paired] = field(default_factory=dict)
    local: Mapping[int, Mapping[str, Latency]] = field(default_factory=dict)
    served: Served | None = None
    machine: str = ""
    tests: tuple[Saved, ...] = ()

    @property
    def metrics(self) -> list["Metric"]:
        """Those with an interval, then those of which the manifest has but a figure before and after."""
        found = [Metric(name, p.before, p.after, (p.low, p.high)) for name, p in self.quality.items()]
        known = {name.lower() for name in self.quality}
        after = self.manifest.quality_after
        bare = self.manifest.quality_before.items()
        return found + [Metric(name, x, after[name], None) for name, x in bare if name.lower() not in known]


class Metric(NamedTuple):
    """A metric of the original and the compressed model, and the 95 % interval of its change where that is known."""

    name: str
    before: float
    after: float
    interval: tuple[float, float] | None


def page(content: Content) -> str:
    """The page as HTML; all text of ``content`` is escaped.

    Raises:
        MissingDependencyError: jinja2 is not installed, or matplotlib where there are load tests.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError(
            f"a report needs jinja2 ({error}); install it with: pip install 'recpress[demo]'"
        ) from None
    if content.tests:
        show.require_plot()
    layers = content.manifest.layers
    template = files("recpress.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.tests["slow_tester"] = show.tester_is_slow
    environment.filters |= {
        "bytes": human_bytes,
        "ms": show.milliseconds,
        "percent_name": show.percent_name,
        "figure": _figure,
        "change": lambda value: _figure(value, "+"),
        "breakable": _breakable,
    }
    return environment.from_string(template).render(
        content=content,
        manifest=content.manifest,
        parameters=sum(layer.parameters for layer in layers),
        largest=max((size for layer in layers for size in (layer.bytes_before, layer.bytes_after)), default=0),
        long_names=any(len(", ".join(layer.names)) > _LONG for layer in layers),
        calibrated=any(layer.sqnr_db is not None or layer.error_share is not None for layer in layers),
        slowest=max((one.p50 for pair in content.local.values() for one in pair.values()), default=0.0),
        plots=[_themed(show.plot(test), i) for i, test in enumerate(content.tests)],
        errors=show.errors,
        lasted=show.lasted,
        from_where=show.from_where,
        percents=PERCENTS,
        what_was_done=what_was_done,
        training_lines=training_lines,
        version=__version__,
    )


def _figure(value: float, sign: str = "") -> str:
    """Five digits behind the point, as an AUC needs, one of what is large; ``sign`` "+" shows the sign of a gain."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return f"{value:{sign},.{5 if abs(value) < 1000 else 1}f}"


def _breakable(name: str) -> "Markup | str":
    """The name of a layer; a long one, escaped, with places at which a line may end."""
    from markupsafe import Markup, escape

    return name if len(name) <= _LONG else Markup(re.sub(r"([._,])", r"\1<wbr>", str(escape(name))))


def _themed(svg: str, number: int) -> str:
    """An SVG of matplotlib whose colours follow the page, light or dark, and whose ids are its own."""
    for color, variable in _THEMED.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r'\bid="', f'id="plot{number}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>plot{number}-", svg)
    opening = rf'<svg viewBox="\1" role="img" aria-labelledby="plot{number}"><title id="plot{number}">{_PLOT}</title>'
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, svg, count=1)
