"""The report as a reader has it: in a real browser, on a phone, in the dark, on paper."""

import asyncio
import io
import json
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from support.browser import BINARY, browser

from recpress.artifact.golden import Verdict
from recpress.artifact.manifest import PrunedParameter, TrainingNote, read_manifest
from recpress.latency import Latency
from recpress.loadtest.engine import Record
from recpress.loadtest.outcomes import Outcome
from recpress.loadtest.result import Load, summarise
from recpress.loadtest.run import Endpoint, LoadTest
from recpress.loadtest.saved import saved, write
from recpress.loadtest.show import plot
from recpress.report.html import Content, Served, page
from recpress.report.paired import Paired
from recpress_kernels.machine import processor

HOSTILE = "<img src='http://example.com/x.png'><script>document.title='owned'</script>"
LONG = "a" * 90
SECTIONS = ("Before and after", "Under load", "Every parameter", "What pruning took", "How it was trained")
CONTRAST = """
(() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.getClientRects().length || element.closest("style")) continue;
    let behind = element;
    while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const style = getComputedStyle(element);
    const ink = light(numbers(element.closest("svg") ? style.fill : style.color));
    const paper = light(numbers(getComputedStyle(behind ?? document.body).backgroundColor));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found.push([ratio, text.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3).concat([[found.length, "texts"]]);
})()
"""
CUT = """
(() => {
  const width = document.documentElement.clientWidth;
  const sticksOut = e => e.getBoundingClientRect().right > width + 0.5;
  const overflows = e => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline";
  return [...document.querySelectorAll("body *")]
    .filter(e => !e.closest("svg, thead") && e.getClientRects().length && (sticksOut(e) || overflows(e)))
    .map(e => e.tagName + " " + e.textContent.slice(0, 40));
})()
"""
DANGLING = (
    "[...document.querySelectorAll('use')].filter(e => !document.querySelector(e.getAttribute('xlink:href'))).length"
)
BAD = """<!doctype html><meta name="viewport" content="width=device-width"><body style="background: #fff">
<img src="http://127.0.0.1:9/x.png"><p style="color: #999">faint</p><p style="width: 900px">wide</p>
<svg><use xlink:href="#nothing"></use></svg>"""


def a_test() -> LoadTest:
    """Two loads of known latencies: 1 to 100 ms in time, and half of the requests rejected."""
    steps = []
    for rate, outcomes in ((100.0, [Outcome.OK]), (200.0, [Outcome.OK, Outcome.REJECTED])):
        record = Record()
        for i in range(int(rate)):
            due = 10 + i / rate
            for column, value in ((record.due, due), (record.sent, due), (record.done, due + (1 + i % 100) / 1000)):
                column.append(value)
            record.outcome.append(outcomes[i % len(outcomes)])
        load = Load(rate=rate, seconds=1.0, warm_up_s=0.0, deadline_s=0.1)
        steps.append(summarise(record, load, begin=10.0, taken=1.1, client_s=3e-4))
    scores = Verdict(300, 1e-7, 0, True)
    return LoadTest(
        endpoint=Endpoint("h:1", HOSTILE),
        machine="a tester, 3 cores",
        started="2030-01-01T00:00:00+00:00",
        batch=1,
        rows="64 golden rows",
        objective_s=0.1,
        steps=tuple(steps),
        scores=scores,
    )


@pytest.fixture(scope="module")
def content(artifact):
    manifest = read_manifest(artifact)
    kept = manifest.layers[0].model_copy(
        update={"status": "kept", "reason": f"{HOSTILE} {LONG}", "names": (LONG, HOSTILE), "sqnr_db": 31.5}
    )
    pruning = (
        PrunedParameter(
            name="top.0.weight", status="pruned", reason="2:4 by magnitude", before=768, after=768, zeros=384
        ),
        PrunedParameter(name="top.0.bias", status="kept", reason="it is no weight", before=24, after=24, zeros=0),
    )
    training = TrainingNote(
        objective="distill", teacher="original", passes=3, steps=30, best_pass=2, seconds=1.0, settings={},
        valid_loss=(0.5, 0.4), control_valid_loss=None, quality_post_training={"auc": 0.7}, quality_control={},
    )  # fmt: skip
    shown = {"layers": (kept, *manifest.layers[1:]), "pruning": pruning, "training": training}
    fast, slow = Latency(0.001, 0.002, 300), Latency(0.002, 0.004, 300)
    return Content(
        title=f"Small {HOSTILE}",
        manifest=manifest.model_copy(update=shown),
        notes=("Made for a test.",),
        quality={"AUC": Paired(0.8, 0.79991, -0.0003, 0.00012)},
        local={1: {"original": slow, "compressed": fast}, 64: {"original": fast, "compressed": slow}},
        served=Served({1: slow}, fast, 1234, 2e-7),
        machine="a processor, 5 cores",
        tests=(saved(a_test()), saved(replace(a_test(), batch=64, endpoint=Endpoint("127.0.0.1:1", "here")))),
    )


@pytest.fixture(scope="module")
def extreme(content):
    """500 layers with long names, a metric that is no number and one that is large, and a model that became slower."""
    layers = content.manifest.layers
    names = [f"encoder.blocks.{i}.feed_forward.experts.{i % 7}.projection_of_the_hidden_states" for i in range(500)]
    many = tuple(
        layers[i % len(layers)].model_copy(
            update={"names": (name,), "parameters": 10 ** (i % 9), "bytes_after": 1 << 20}
        )
        for i, name in enumerate(names)
    )
    return Content(
        title="W" * 200,
        manifest=content.manifest.model_copy(update={"layers": many, "pruning": (), "training": None}),
        quality={"AUC": Paired(*[math.nan] * 4), "clicks": Paired(1234567.0, 1234560.0, -9.0, -5.0)},
        local={1: {"original": Latency(0.01, 0.1, 3), "compressed": Latency(13.1, 200.0, 3)}},
    )


@pytest.fixture(scope="module")
def seen(content, extreme, tmp_path_factory):
    """What the browser says of the page, opened once for all tests."""
    if BINARY is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(page(content), encoding="utf-8")

    async def look() -> dict:
        found = {}
        async with browser(folder / "profile") as tab:
            for name, width, dark in (("desktop", 1200, False), ("dark", 1200, True), ("phone", 390, False)):
                await tab.shape(width, 844, dark=dark, phone=name == "phone")
                await tab.open(folder / "page.html")
                found[name] = {
                    "width": await tab.ask("document.documentElement.scrollWidth"),
                    "cut": await tab.ask(CUT),
                    "contrast": await tab.ask(CONTRAST),
                    "text": await tab.ask("document.body.innerText"),
                    "picture": await tab.screenshot(),
                }
            found["requests"] = set(tab.requests)
            found["pdf"] = await tab.pdf()
            found["title"] = await tab.ask("document.title")
            found["rows"] = await tab.ask("[...document.querySelectorAll('tbody')].map(t => t.rows.length)")
            found["ids"] = await tab.ask("[...document.querySelectorAll('[id]')].map(e => e.id)")
            found["paper"] = await tab.ask("getComputedStyle(document.body).backgroundColor")
            found["links"] = await tab.ask(DANGLING)
            (folder / "extreme.html").write_text(page(extreme), encoding="utf-8")
            for name, width in (("extreme desktop", 1200), ("extreme phone", 390)):
                await tab.shape(width, 844, phone=width < 1000)
                await tab.open(folder / "extreme.html")
                asked = {"width": "document.documentElement.scrollWidth", "cut": CUT, "text": "document.body.innerText"}
                found[name] = {key: await tab.ask(expression) for key, expression in asked.items()}
            (folder / "bad.html").write_text(BAD, encoding="utf-8")
            tab.requests.clear()
            await tab.open(folder / "bad.html")
            bad = {"width": "document.documentElement.scrollWidth", "cut": CUT, "contrast": CONTRAST, "links": DANGLING}
            found["bad"] = {name: await tab.ask(expression) for name, expression in bad.items()}
            found["bad"]["requests"] = set(tab.requests)
        return found

    return asyncio.run(look())


@pytest.mark.parametrize(("shape", "width"), [("desktop", 1200), ("dark", 1200), ("phone", 390)])
def test_nothing_sticks_out_and_all_can_be_read(seen, shape, width):
    assert seen[shape]["width"] == width and seen[shape]["cut"] == []
    *worst, (texts, _) = seen[shape]["contrast"]
    assert worst[0][0] >= 4.5 and texts > 150, worst
    assert seen[shape]["picture"].startswith(b"\x89PNG") and len(seen[shape]["picture"]) > 20_000


@pytest.mark.parametrize(("shape", "width"), [("extreme desktop", 1200), ("extreme phone", 390)])
def test_extremes_stay_on_the_page(seen, extreme, shape, width):
    assert seen[shape]["width"] == width and seen[shape]["cut"] == []
    text = seen[shape]["text"]
    for name in (layer.names[0] for layer in extreme.manifest.layers):
        assert name in text
    assert "not a number" in text and not re.search(r"\bnan\b", text)
    assert "1,234,560.0" in text and "-7.00000" in text and "0.00× the speed, a loss" in text


def test_a_bad_page_is_seen_to_be_bad(seen):
    bad = seen["bad"]
    assert bad["width"] > 390 and any("wide" in text for text in bad["cut"]) and bad["links"] == 1
    assert bad["contrast"][0][0] < 4.5 and bad["contrast"][0][1] == "faint"
    assert "http://127.0.0.1:9/x.png" in bad["requests"]


def test_colours_follow_the_reader(seen):
    assert seen["dark"]["picture"] != seen["desktop"]["picture"]
    assert seen["paper"] == "rgb(255, 255, 255)", "the last shape was a phone by day"


@pytest.mark.parametrize("shape", ["desktop", "phone"])
def test_all_is_there(seen, content, shape):
    text = seen[shape]["text"]
    for section in (*SECTIONS, "How it was checked"):
        assert section in text
    layers = content.manifest.layers
    assert seen["rows"] == [1 + len(content.metrics) + 2 + 2, 2, 2, len(layers) + 1, 2]
    for layer in layers:
        assert ", ".join(layer.names) in text
    assert "0.50× the speed, a loss" in text and "-0.00030 to +0.00012" in text and "not known" in text
    assert "never" in text and "100 rejected" in text and "100 of 200 requests at 200/s got no right answer" in text
    assert f"{sum(layer.parameters for layer in layers):,}" in text and "1,234 requests" in text


def test_a_plot_has_percentiles_that_enough_requests_tell():
    """Of 100 and 200 requests p99.9 is the slowest one; and of those where half got no answer p99 has no bound."""
    svg = plot(saved(a_test()))
    assert ">p50<" in svg and ">p99<" in svg and ">p99.9<" not in svg and ">objective of p99<" in svg
    first, second = a_test().steps
    nobody = replace(second, latency=second.latency[:0], throughput=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = plot(saved(replace(a_test(), steps=(nobody,), objective_s=None)))
        alike = replace(first, latency=np.linspace(1.3e-3, 1.8e-3, 100))
        narrow = plot(saved(replace(a_test(), steps=(alike,), objective_s=None)))
    assert "latency, ms" in bare and ">p50<" not in bare
    assert narrow.count(">2<") == 1 and ">5<" not in narrow, "between 1.3 and 1.8 ms there is no tick"


def test_it_says_where_and_how_long_was_measured(seen):
    text = seen["desktop"]["text"]
    assert "on one thread, on a machine with a processor, 5 cores" in text
    first, second = text.split("The tester ran on a tester, 3 cores")[1:]
    assert first.startswith(". So short a test") and second.startswith(", which the server shares. So short a test")
    assert text.count("Measured 1 s each, after 0 s of warm-up, from 2030-01-01 00:00:00 UTC") == 2


def test_text_is_text_and_nothing_is_fetched(seen, content):
    assert seen["requests"] == {next(iter(seen["requests"]))} and next(iter(seen["requests"])).startswith("file:")
    assert seen["title"].startswith("recpress: Small <img") and HOSTILE in seen["desktop"]["text"]
    html = page(content)
    assert "<script" not in html and "<img" not in html and html.count("&lt;script&gt;") >= 4
    assert not re.search(r"(src|href)=[\"']?(https?:|//)|@import|url\((?!#)", html)


def test_ids_are_unique_and_plots_are_whole(seen):
    assert len(set(seen["ids"])) == len(seen["ids"]) > 20 and seen["links"] == 0


def test_it_prints_with_all_sections(seen):
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(seen["pdf"]))
    text = " ".join(re.sub(r"\s+", " ", sheet.extract_text()) for sheet in reader.pages)
    for words in (*SECTIONS, "How it was checked", "what was done, or why not", "top.0.weight", "never"):
        assert words in text, words
    width, height = (float(x) for x in reader.pages[0].mediabox[2:])
    assert width == pytest.approx(595, abs=2) and height == pytest.approx(842, abs=2) and len(reader.pages) < 9


MODEL = """
from support.small import small_inputs, small_model

def build():
    dense, sparse = small_inputs(16)
    return small_model(), {"dense": dense, "sparse": sparse}, lambda m: {"mean": m(dense, sparse).mean()}
"""


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run ``recpress report``, in a folder with the module ``reported``: its exit code and errors."""
    import signal
    import sys

    from recpress.cli import main

    (tmp_path / "reported.py").write_text(MODEL)

    def run_here(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["recpress", "report", *map(str, arguments)])
        monkeypatch.delitem(sys.modules, "reported", raising=False)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return ended.value.code, capsys.readouterr().err

    return run_here


def test_the_command_reports_an_artifact_with_all_there_is(artifact, call, tmp_path):
    label = np.arange(400) % 2
    before = label + np.random.default_rng(0).normal(size=400)
    np.savez(tmp_path / "scores.npz", before=before, after=before + 0.01 * np.cos(before), label=label)
    write(tmp_path / "load.json", saved(a_test()))
    given = ("--original", "reported:build", "--scores", "scores.npz", "--loadtest", "load.json", "--output", "a.html")
    code, err = call(artifact, *given)
    assert code == 0, err
    html = (tmp_path / "a.html").read_text()
    assert "in process, batch 64" in html and "AUC" in html and "<svg" in html and "small</h1>" in html
    assert f"on a machine with {processor()}" in html and "a tester, 3 cores" in html
    assert re.search(r"0\.\d{5}</td>.*[+-]0\.\d{5} to [+-]0\.\d{5}", html)


def test_the_command_reports_a_model(call, tmp_path):
    code, err = call("reported:build", "--output", "b.html", "--title", "Mine")
    html = (tmp_path / "b.html").read_text()
    assert code == 0 and "Mine</h1>" in html and "in process, batch 1" in html and "mean" in html, err


def test_what_cannot_be_reported(artifact, call, tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"schema_version": 1, "steps": 3}))
    np.savez(tmp_path / "bare.npz", before=np.zeros(3), after=np.zeros(3))
    np.savez(tmp_path / "ones.npz", before=np.zeros(3), after=np.zeros(3), label=np.ones(3))
    for arguments, message in (
        (["absent", "--output", "a.html"], "neither the folder of an artifact"),
        ([artifact, "--output", "none/a.html"], "none/a.html cannot be written"),
        ([artifact, "--output", "a.html", "--loadtest", "old.json"], "old.json, at"),
        ([artifact, "--output", "a.html", "--scores", "bare.npz"], "it must hold before, after and label"),
        ([artifact, "--output", "a.html", "--scores", "ones.npz"], "AUC needs rows of both labels"),
        ([artifact, "--output", "a.html", "--scores", "none.npz"], "none.npz is not fit"),
        ([artifact, "--output", "a.html", "--original", "reported:absent"], "has no 'absent'"),
    ):
        code, err = call(*arguments)
        assert code == 1 and message in err and not (tmp_path / "a.html").exists(), err


def test_little_is_known_of_a_bare_artifact(artifact):
    manifest = read_manifest(artifact).model_copy(update={"quality_before": {}, "quality_after": {}})
    html = page(Content("bare", manifest))
    assert "No quality was measured." in html and "was not timed" in html and "<svg" not in html
    assert "Under load" not in html
