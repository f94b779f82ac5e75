"""The demo: MovieLens-100K to scores from the real server, through the library's own verbs."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from recpress.artifact.golden import Verdict, deviations, judge_rows
from recpress.errors import LoadTestError, MissingDependencyError, ProbeError, RepositoryError
from recpress.latency import Latency, beside_original, one_thread
from recpress_kernels.machine import processor

if TYPE_CHECKING:
    from recpress.artifact.manifest import Manifest
    from recpress.loadtest.saved import Saved
    from recpress.report.html import Content
    from recpress.report.paired import Paired

NAME = "movielens_dlrm"
BATCHES = (1, 64)
DIM, BOTTOM, TOP = 16, (256, 128), (512, 256)
RATES, CANDIDATES, OBJECTIVE_S = (100, 200, 400, 800, 1600), 16, 0.010
"""Of the load test: requests a second, rows of each, and what their p99 is to keep to."""
_MARKER = ".recpress-demo"


@dataclass(frozen=True)
class Result:
    """What the demo measured; latencies in seconds, by batch size.

    Attributes:
        quality: ``auc`` and ``logloss`` on the test rows, of ``original`` and ``compressed``.
        size: bytes of parameters and buffers of both.
        local: in this process, on one thread: the original in eager torch, and the loaded artifact.
        served: by a client of the server, over gRPC, one request at a time.
        execute: inside the server's backend, from its histogram.
        deviation: largest difference of a served score from the local one, and ``atol`` what is allowed.
    """

    source: str
    seed: int
    quality: dict[str, dict[str, float]]
    size: dict[str, int]
    local: dict[int, dict[str, Latency]]
    served: dict[int, Latency]
    execute: dict[str, float]
    requests: int
    deviation: float
    atol: float


def run(output: Path, *, requests: int = 1000, seed: int = 0, epochs: int = 12) -> Result:
    """Run the demo and leave artifact, repository, ``result.json``, ``load.json`` and ``report.html`` in ``output``.

    Raises:
        MissingDependencyError: the extra ``demo`` is not installed.
        DataError: MovieLens-100K cannot be had.
        RepositoryError: ``output`` exists and was not made by the demo.
        ServerError, ProbeError: the server does not start, or answers with other scores.
        LoadTestError: the load test is broken off, or meets a wrong score.
    """
    _require_extra()
    from recpress.loadtest.show import print_test
    from recpress.serving.server import Server

    _prepare(output)
    console = Console()
    with one_thread(), _progress(console) as step:
        data, model = _train(step, seed, epochs)
        report, loaded = _package(step, output, data, model)
        step("timing in process")
        local = beside_original(model, loaded.module, (data.test.dense, data.test.sparse), batches=BATCHES)
        step("starting the server")
        artifact = output / "artifact"
        with Server(output / "model_repository") as server:
            served, execute, verdict = _send_and_compare(step, server, artifact, loaded, data.test, requests)
            load_test = under_load(artifact, server.url("grpc"), begin=lambda load: step(f"load, {load}"))
        step("writing the report")
        result = Result(
            source=data.source,
            seed=seed,
            quality={"original": report.quality_before, "compressed": report.quality_after},
            size={"original": report.bytes_before, "compressed": report.bytes_after},
            local=local,
            served=served,
            execute=execute,
            requests=requests,
            deviation=verdict.worst,
            atol=loaded.manifest.golden.atol,
        )
        _write(output, data, model, loaded, result, load_test)
    print_result(console, result, output)
    print_test(load_test)
    return result


def _package(step: "_Step", output: Path, data, model: torch.nn.Module):
    """Compress, export to ``artifact`` and package; the report of compression and the artifact as loaded."""
    from recpress.artifact.export import export
    from recpress.artifact.load import load
    from recpress.pipeline import compress
    from recpress.serving.repository import package
    from recpress.zoo.quality import quality

    step("compressing and evaluating")
    examples = {"dense": data.train.dense[:4096], "sparse": data.train.sparse[:4096]}
    compressed = compress(model, "int8", calibration=[examples], evaluate=lambda m: quality(m, data.test))
    step("exporting, loading back and comparing")
    artifact = output / "artifact"
    inputs = {"example_inputs": tuple(examples.values()), "input_names": tuple(examples)}
    export(compressed, artifact, **inputs, output_names=("logit",))
    loaded = load(artifact)
    package(artifact, output / "model_repository", name=NAME)
    return compressed.report, loaded


def _write(output: Path, data, model: torch.nn.Module, loaded, result: Result, load_test: "Saved") -> None:
    """All figures as JSON, and the page."""
    from recpress.loadtest.saved import write
    from recpress.report.html import page
    from recpress.report.paired import paired_auc
    from recpress.zoo.quality import score

    (output / "result.json").write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    write(output / "load.json", load_test)
    after = score(lambda dense, sparse: loaded.score({"dense": dense, "sparse": sparse})["logit"], data.test)
    auc = paired_auc(score(model, data.test), after, data.test.label)
    (output / "report.html").write_text(page(_content(loaded.manifest, result, auc, load_test)), encoding="utf-8")


def _require_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import torchmetrics  # noqa: F401
        import tritonclient.grpc  # noqa: F401
        from prometheus_client import parser  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"the demo needs a package that is not installed ({error}); install it with: pip install 'recpress[demo]'"
        ) from None


def _prepare(output: Path) -> None:
    if output.exists():
        if not (output / _MARKER).is_file():
            raise RepositoryError(f"{output} exists and was not made by the demo; give another folder with --output")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / _MARKER).touch()


@contextmanager
def _progress(console: Console) -> Iterator["_Step"]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield _Step(progress)


class _Step:
    """The bar of the step at hand; the one before it is closed when a new one begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._task = progress, None

    def __call__(self, description: str, total: int | None = 1) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=1, completed=1)
        self._task = self._progress.add_task(description, total=total, note="")

    def advance(self, done: int, total: int, note: str = "") -> None:
        self._progress.update(self._task, total=total, completed=done, note=note)


def _train(step: _Step, seed: int, epochs: int):
    from recpress.data import movielens

    step("fetching MovieLens-100K")
    data = movielens.load()
    step.advance(1, 1, data.source)
    step("training a DLRM")
    return data, _dlrm(data, seed, epochs, lambda *args: step.advance(*args))


def _dlrm(data, seed: int, epochs: int, on_epoch: Callable[[int, int, str], object] | None = None) -> torch.nn.Module:
    from recpress.zoo.dlrm import DLRM
    from recpress.zoo.train import train

    torch.manual_seed(seed)
    model = DLRM(num_dense=len(data.dense_names), table_rows=data.table_rows, dim=DIM, bottom=BOTTOM, top=TOP)
    train(model, data.train, data.valid, seed=seed, epochs=epochs, on_epoch=on_epoch)
    return model


def material() -> dict[str, object]:
    """Arguments of recpress.auto: ``recpress auto recpress.demo:material --share 0.999``.

    The demo's DLRM, which is trained first, judged on the test rows.
    """
    _require_extra()
    from recpress.data import movielens

    data = movielens.load()

    def batches(rows) -> list[tuple]:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(512)
        return [((rows.dense[batch], rows.sparse[batch]), rows.label[batch]) for batch in order]

    return {
        "model": lambda: _dlrm(data, seed=0, epochs=12),
        "train": batches(data.train),
        "valid": batches(data.valid),
        "rows": batches(data.test),
        "lr": 1e-3,
        "examples": {"dense": data.train.dense[:4096], "sparse": data.train.sparse[:4096]},
    }


def _send_and_compare(step: _Step, server, artifact: Path, loaded, rows, requests: int):
    """Golden rows over both protocols, then ``requests`` requests of real rows; all scores must be the local ones."""
    from recpress.serving.backend.metrics import PUBLISH_S
    from recpress.serving.client import Client
    from recpress.serving.metrics import EXECUTE_SECONDS, fetch_text, read_histogram
    from recpress.serving.probe import replay_golden

    step("replaying golden rows")
    for protocol in ("http", "grpc"):
        with Client(server.url(protocol), protocol=protocol) as client:
            replay_golden(client, NAME, artifact)
    step("sending requests")

    def observed():
        time.sleep(3 * PUBLISH_S)  # what was just answered is among the metrics that much later
        return read_histogram(fetch_text(server.url("metrics")), EXECUTE_SECONDS, {"model": NAME})

    before = observed()
    with Client(server.url("grpc")) as client:
        served, verdict = send(client, loaded, rows, requests, step.advance)
    mine = observed().since(before)
    return served, {"count": mine.count, "p50": mine.quantile(0.5), "p99": mine.quantile(0.99)}, verdict


def send(client, loaded, rows, requests: int, advance=lambda *_: None) -> tuple[dict[int, Latency], Verdict]:
    """Send rows in batches of 1 and 64 in turn and compare the scores with the local ones.

    Raises:
        ProbeError: they differ by more than the manifest allows.
    """
    seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    parts = []
    for i in range(requests):
        batch = BATCHES[i % len(BATCHES)]
        begin = (i * batch) % (len(rows.label) - batch)
        inputs = {"dense": rows.dense[begin : begin + batch], "sparse": rows.sparse[begin : begin + batch]}
        expected = loaded.score(inputs)["logit"]
        sent = {name: tensor.numpy() for name, tensor in inputs.items()}
        start = time.perf_counter()
        answer = client.score(NAME, sent)["logit"]
        seconds[batch].append(time.perf_counter() - start)
        parts.append(deviations((torch.from_numpy(answer.copy()),), (expected[:, None],)))
        advance(i + 1, requests)
    verdict = judge_rows(torch.cat(parts), loaded.manifest.golden)
    if not verdict.ok:
        raise ProbeError(f"the server's scores are not those computed here: {verdict}")
    return {batch: Latency.of(np.array(taken)) for batch, taken in seconds.items() if taken}, verdict


def under_load(artifact: Path, address: str, *, begin: Callable[[object], None]) -> "Saved":
    """Some seconds of Poisson arrivals at rising rates; beyond which of them p99 is kept is a finding, no failure.

    Args:
        address: of the server, gRPC.
        begin: told of each load before it starts.

    Raises:
        LoadTestError: it is broken off, or meets a wrong score.
    """
    from recpress.loadtest.result import Load
    from recpress.loadtest.run import Endpoint, load_test
    from recpress.loadtest.saved import saved

    loads = [Load(rate=rate, seconds=1.0, warm_up_s=0.25, drain_s=5.0) for rate in RATES]
    test = load_test(artifact, Endpoint(address, NAME), loads, batch=CANDIDATES, objective_s=OBJECTIVE_S, begin=begin)
    if failures := replace(test, objective_s=None).problems:
        raise LoadTestError("; ".join(failures))
    return saved(test)


def _content(manifest: "Manifest", result: Result, auc: "Paired", load_test: "Saved") -> "Content":
    from recpress.report.html import Content, Served

    execute = Latency(result.execute["p50"], result.execute["p99"], int(result.execute["count"]))
    return Content(
        title="DLRM on MovieLens-100K, compressed",
        manifest=manifest,
        notes=(
            f"Data: MovieLens-100K, from {result.source}; GroupLens, University of Minnesota.",
            "F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, 2015.",
            f"Label: rating of 4 or more. Seed {result.seed}.",
        ),
        quality={"AUC": auc},
        local=result.local,
        served=Served(result.served, execute, result.requests, result.deviation),
        machine=processor(),
        tests=(load_test,),
    )


def print_result(console: Console, result: Result, output: Path) -> None:
    """The demo's table, losses included, and where everything is."""
    from recpress.report.demo_table import rows

    table = Table("", "original", "compressed", "change", title=f"DLRM on MovieLens-100K (from {result.source})")
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"Latencies are p50 / p99; in process on one thread; served: over gRPC, one request at a time.\n"
        f"{result.requests} requests served; scores differ from the local ones by at most {result.deviation:.2g} "
        f"(allowed: {result.atol:.2g}). Report: {output / 'report.html'}\n"
        f"Serve it yourself: recpress serve {output / 'model_repository'}"
    )
