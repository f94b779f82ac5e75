"""Pictures of what a real Prometheus has been filled with: odd names, no numbers, one moment, very many lines."""

import shutil
import subprocess
import time
import urllib.request
import warnings

import pytest
from support.processes import free_port

from recpress.dashboards import picture
from recpress.dashboards.panels import BOARDS, OWNERS, Board, Panel, Query
from recpress.errors import DashboardError, OutputError

pytest.importorskip("matplotlib")
TOOLS = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = pytest.mark.skipif(
    None in TOOLS, reason="no prometheus; Debian: apt-get install --no-install-recommends prometheus"
)
ODD = r"_odd $x^$ .\d"
MEAN = -0.25


def samples(end: float) -> str:
    """Some minutes of OpenMetrics, a sample every 15 s: scores below zero, and what is named in the tests below."""
    times = [end - 600 + 15 * i for i in range(41)]
    escaped = ODD.replace("\\", r"\\")
    labels = f'model="{escaped}",version="1"'
    series = {f'recpress_model_info{{{labels},recipe="{"r" * 150}",scheme="s"}}': lambda i: 1}
    series[f"recpress_score_count{{{labels}}}"] = lambda i: 40 * i
    series[f"recpress_score_sum{{{labels}}}"] = lambda i: MEAN * 40 * i
    series["nothing"] = lambda i: "NaN"
    series["endless"] = lambda i: "+Inf" if i < 30 else 0.002
    for n in range(30):
        series[f'many{{n="{n}"}}'] = lambda i, n=n: 3e6 * (n + 1)
    lines = [f"{name} {value(i)} {at:.3f}" for name, value in series.items() for i, at in enumerate(times)]
    moment = [f'moment_bucket{{le="{le}"}} {count} {end:.3f}' for le, count in (("0.1", 0), ("0.2", 5), ("+Inf", 5))]
    return "\n".join([*lines, *moment, "# EOF\n"])


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    (folder / "samples").write_text(samples(time.time()))
    (folder / "prometheus.yml").write_text("scrape_configs: []\n")
    fill = [TOOLS[1], "tsdb", "create-blocks-from", "openmetrics", folder / "samples", folder / "data"]
    subprocess.run(fill, check=True, capture_output=True, timeout=60)
    address = f"127.0.0.1:{free_port()}"
    files = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([TOOLS[0], *files, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def draw(prometheus, tmp_path, monkeypatch):
    """Draw a board without a warning; how many panels are empty, and matplotlib's figure."""

    def drawn(*panels, minutes=60.0):
        figures = []
        made = picture._figure
        monkeypatch.setattr(picture, "_figure", lambda *given: figures.append(made(*given)) or figures[-1])
        board = Board("b", "A board", panels)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            empty = picture.draw(board, prometheus, tmp_path / "b.png", minutes=minutes)
        monkeypatch.undo()
        return empty, figures[0]

    return drawn


def lines(expr, legend="{{model}}", unit="short", **options):
    return Panel(expr, unit, (Query(expr, legend),), **options)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_a_mean_of_negative_scores_is_their_mean(draw):
    (panel,) = (panel for panel in OWNERS.panels if panel.title == "Mean score")
    _, figure = draw(panel)
    line = figure.axes[0].lines[0]
    numbers = [y for y in line.get_ydata() if y == y]
    assert len(numbers) > 15 and numbers == pytest.approx([MEAN] * len(numbers))
    assert figure.axes[0].get_ylim() == pytest.approx((1.08 * MEAN, 0))


def test_odd_names_are_shown_as_they_are(draw):
    _, figure = draw(lines("recpress_model_info", "{{model}}: {{recipe}}"))
    (shown,) = (text.get_text() for text in figure.axes[0].get_legend().get_texts())
    assert shown.strip().startswith(ODD) and shown.endswith("rrr…") and len(shown) < 90


def test_a_model_is_asked_for_by_any_regular_expression(prometheus, tmp_path):
    for model in (r"_odd \$x\^\$ \.\\d", ".*", r'.*"|_odd.*'):
        assert picture.draw(BOARDS[1], prometheus, tmp_path / "x.png", model=model) < len(BOARDS[1].panels)
    with pytest.raises(DashboardError, match="has nothing of model"):
        picture.draw(BOARDS[1], prometheus, tmp_path / "x.png", model='"')


@pytest.mark.parametrize(("path", "message"), [("absent/x.png", "x.png cannot be written"), ("", "is a folder")])
def test_a_file_that_cannot_be_written_is_refused_first(tmp_path, path, message):
    with pytest.raises(OutputError, match=message):
        picture.draw(BOARDS[1], "http://127.0.0.1:1", tmp_path / path)


def test_what_is_no_number_is_a_gap(draw):
    empty, figure = draw(lines("nothing"), lines("endless", unit="s"), lines("absent"))
    nothing, endless, absent = figure.axes
    assert empty == 1 and texts(nothing) == texts(absent) == ["no data"] and not texts(endless)
    numbers = [y for y in endless.lines[0].get_ydata() if y == y]
    assert set(numbers) == {2.0} and endless.get_ylabel() == "ms" and endless.get_ylim()[0] == 0


def test_a_heatmap_of_one_moment(draw):
    empty, figure = draw(lines("moment_bucket", "{{le}}", "s", kind="heatmap"))
    axes = figure.axes[0]
    (mesh,) = axes.collections
    shown = mesh.get_array().compressed()
    assert empty == 0 and sorted(set(shown)) == [0, 5] and (shown == 5).sum() == 1
    assert [label.get_text() for label in axes.get_yticklabels()] == ["100", "200", "inf"]
    empty, figure = draw(lines("absent_bucket", "{{le}}", "s", kind="heatmap"))
    assert empty == 1 and texts(figure.axes[0]) == ["no data"]


def test_names_cover_nothing_and_stay_inside(draw):
    wide = lines("recpress_model_info", "{{recipe}}", width=12)
    empty, figure = draw(
        lines("many", "line {{n}}", "bytes"), lines("many", "{{n}}", "bytes"), wide, wide, lines("many")
    )
    figure.canvas.draw()
    axes = figure.axes
    names = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert len(names) == 13 and names[-1] == "and 18 more" and all(name.startswith("line ") for name in names[:12])
    assert len(axes[0].lines) == 31 and axes[0].get_ylabel() == "MiB" and empty == 0
    looks = {(line.get_color(), line.get_linestyle()) for line in axes[0].lines[:28]}
    assert len(looks) == 28
    legends = [one.get_legend().get_window_extent() for one in axes]
    plots = [one.get_tightbbox(bbox_extra_artists=[], for_layout_only=True) for one in axes]
    for i, legend in enumerate(legends):
        assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0
        assert not any(legend.overlaps(other) for other in plots if other is not plots[i])
        assert not legend.overlaps(axes[i].get_window_extent())
        assert not any(legend.overlaps(other) for other in legends[:i])
