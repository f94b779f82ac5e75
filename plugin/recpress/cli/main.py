"""The command line: parses, calls the library, and turns its errors into one message and exit code 1."""

import signal
import sys
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from recpress.cli import canary, loadtest, monitoring, report, retention, serving
from recpress.errors import RecpressError

app = typer.Typer(
    help="Compress PyTorch recommenders and serve them from NVIDIA Triton Inference Server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Source = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FUNCTION",
        help="A function that returns (model, {input name: example tensor}), or with a third item: evaluate(model).",
    ),
]
RecipeOption = Annotated[str, typer.Option(help="A preset's name, or a YAML file.")]


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except RecpressError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


def _terminated(*_: object) -> None:
    # As an exception, so that what is running is stopped and removed on the way out.
    raise SystemExit(128 + signal.SIGTERM)


@app.command()
def compress(source: Source, recipe: RecipeOption = "int8") -> None:
    """Compress a model and print what became of each layer; nothing is written."""
    from recpress.cli.source import compress_source
    from recpress.report.tables import print_report

    compressed, _ = compress_source(source, recipe)
    print_report(compressed.report)


@app.command()
def export(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="The artifact's folder; it must not exist.")],
    recipe: RecipeOption = "int8",
) -> None:
    """Compress a model and write it as an artifact."""
    from recpress.artifact.export import export as write
    from recpress.cli.source import compress_source
    from recpress.report.tables import print_manifest, print_report

    compressed, examples = compress_source(source, recipe)
    manifest = write(compressed, folder, example_inputs=tuple(examples.values()), input_names=tuple(examples))
    print_report(compressed.report)
    print_manifest(manifest, folder)


@app.command()
def auto(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns a mapping of recpress.auto's arguments: model, train, valid, rows or "
            "evaluate and so on; and, to export, examples: {input name: example tensor}.",
        ),
    ],
    share: Annotated[float | None, typer.Option(help="What is asked, as a share of the original's metric.")] = None,
    at_least: Annotated[float | None, typer.Option(help="What is asked, as a value of the metric.")] = None,
    candidate: Annotated[list[str] | None, typer.Option(help="A preset or YAML file to try; in this order.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of optimisers that may be taken in all.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds after which nothing new is begun.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every training.")] = None,
    folder: Annotated[Path | None, typer.Option("--export", help="Write what is found as an artifact there.")] = None,
) -> None:
    """Find the smallest compressed model that keeps a quality; print what was tried; fail where none does."""
    from recpress.cli.source import auto_source

    options = {"share": share, "at_least": at_least, "candidates": candidate}
    options |= {"steps": steps, "seconds": seconds, "seed": seed}
    auto_source(source, {name: value for name, value in options.items() if value is not None}, folder)


@app.command()
def load(folder: Annotated[Path, typer.Argument(help="The artifact's folder.")]) -> None:
    """Load an artifact, replay its golden rows, and print what it holds."""
    from recpress.artifact.load import check_golden
    from recpress.artifact.load import load as read
    from recpress.report.tables import print_choices, print_manifest

    model = read(folder)
    print_manifest(model.manifest, folder, verdict=check_golden(model, folder))
    print_choices(model.choices)
    typer.echo(f"runs here: {model.kernels}")


@app.command()
def package(
    folder: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    repository: Annotated[Path, typer.Argument(help="The model repository.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    max_batch_size: Annotated[int | None, typer.Option(help="Rows of the largest batch; 1024.")] = None,
    instances: Annotated[int | None, typer.Option(help="Processes that serve the model; 1.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each instance; 1.")] = None,
    queue_delay_us: Annotated[int | None, typer.Option(help="Microseconds a request may wait for others; 0.")] = None,
    device: Annotated[str | None, typer.Option(help="Where it is served: cpu or cuda; cpu.")] = None,
) -> None:
    """Add an artifact to a model repository, as the next version of a model; options stay as they were by default."""
    from recpress.serving.repository import package as add

    version = add(
        folder,
        repository,
        name=name,
        max_batch_size=max_batch_size,
        instances=instances,
        threads=threads,
        queue_delay_us=queue_delay_us,
        device=device,
    )
    typer.echo(f"{name}, version {version.name}, is in {repository}; serve it with: recpress serve {repository}")


VERBS = (
    serving.serve,
    serving.deploy,
    serving.rollback,
    serving.probe,
    serving.proxy,
    retention.versions,
    retention.prune_versions,
    loadtest.loadtest,
    report.report,
    monitoring.exporter,
    monitoring.dashboard,
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(canary.app, name="canary")


class Benchmark(str, Enum):
    """Benchmarks by name; each is a module with options of its own, in ``recpress_kernels.bench`` or, of compressing
    and of serving, in ``recpress.bench``."""

    int8 = "int8"
    sparse24 = "sparse24"
    tables = "tables"
    dlrm = "dlrm"
    quantize = "quantize"
    ptq = "ptq"
    quality = "quality"
    metrics = "metrics"
    overhead = "overhead"
    loadtest = "loadtest"
    overload = "overload"
    proxy_log = "proxy_log"
    prune = "prune"
    serve = "serve"
    soak = "soak"


IN_KERNELS = (Benchmark.int8, Benchmark.sparse24, Benchmark.tables, Benchmark.dlrm)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context, name: Benchmark) -> None:
    """Measure, beside other libraries or the original, and print: bench NAME [--json FILE]; bench NAME --help lists
    more."""
    package = "recpress_kernels.bench" if name in IN_KERNELS else "recpress.bench"
    import_module(f"{package}.{name.value}").main(context.args)


@app.command()
def tune(
    shapes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[M,N,K...]", help="Batch, outputs, inputs of layers; none: 2:4 against dense."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the table goes; the package's own by default.")] = None,
) -> None:
    """Measure on this machine, for loading to choose by: of given shapes int8_linear's configurations on the GPU, else
    2:4 against dense layers on the CPU and the GPU."""
    from recpress.cli.tune import tune_forms, tune_gpu

    tune_gpu(shapes, folder) if shapes else tune_forms(folder)


@app.command()
def doctor() -> None:
    """Print what is there for compressing and serving, and what is missing with its remedy."""
    from recpress.cli.doctor import examine

    raise typer.Exit(examine())


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the artifact, repository and report.")] = Path(
        "recpress-demo"
    ),
    requests: Annotated[int, typer.Option(help="Requests to send to the server.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    epochs: Annotated[int, typer.Option(help="Passes of training at most; it stops early.", min=1)] = 12,
) -> None:
    """Train a DLRM on MovieLens-100K, compress it, serve it from the real server, and report."""
    from recpress.demo import run

    run(output, requests=requests, seed=seed, epochs=epochs)
