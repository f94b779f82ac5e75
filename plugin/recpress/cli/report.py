"""``recpress report``: a page on a compressed model."""

import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recpress.errors import DataError, SourceError

if TYPE_CHECKING:
    from recpress.report.paired import Paired


def report(
    model: Annotated[str, typer.Argument(help="An artifact's folder, or MODULE:FUNCTION, which is compressed.")],
    output: Annotated[Path, typer.Option(help="The page, one file of HTML.")],
    recipe: Annotated[str, typer.Option(help="For MODULE:FUNCTION: a preset's name, or a YAML file.")] = "int8",
    original: Annotated[
        str | None, typer.Option(help="MODULE:FUNCTION of an artifact's original, to be timed beside it.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="Scores of both on the same rows, of numpy.savez: before, after, label, and maybe user."),
    ] = None,
    loadtest: Annotated[
        list[Path] | None, typer.Option(help="What loadtest --json wrote; may be repeated, to compare.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page; the model's name by default.")] = None,
) -> None:
    """Write a page: what was done to each layer and why not, sizes, quality, latency before and after, load tests."""
    from recpress.artifact.load import load
    from recpress.artifact.manifest import MANIFEST
    from recpress.files import replace, require_writable
    from recpress.latency import beside_original
    from recpress.loadtest.saved import read
    from recpress.report.html import Content, page
    from recpress_kernels.machine import processor

    require_writable(output)
    tests = tuple(read(path) for path in loadtest or ())
    quality = {} if scores is None else {"AUC": _auc(scores)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model)
        if not (folder / MANIFEST).is_file():
            if ":" not in model:
                raise SourceError(f"{model!r} is neither the folder of an artifact (no {MANIFEST}) nor MODULE:FUNCTION")
            folder, original = Path(scratch) / "artifact", model
            _export(model, recipe, folder)
        loaded = load(folder)
        local = {}
        if original is not None:
            from recpress.cli.source import make

            first, examples, _ = make(original)
            loaded.score(examples)  # refuses inputs that are not the artifact's
            local = beside_original(first.eval(), loaded.module, tuple(examples.values()))
    content = Content(
        title or Path(model).name, loaded.manifest, quality=quality, local=local, machine=processor(), tests=tests
    )
    replace(output, page(content))
    typer.echo(f"the report is {output}")


def _export(source: str, recipe: str, folder: Path) -> None:
    from recpress.artifact.export import export
    from recpress.cli.source import compress_source

    compressed, examples = compress_source(source, recipe)
    export(compressed, folder, example_inputs=tuple(examples.values()), input_names=tuple(examples))


def _auc(path: Path) -> "Paired":
    """AUC before and after, by DeLong, or where rows have users by a bootstrap over these.

    Raises:
        DataError: the file cannot be read, or is not as it should be.
    """
    import numpy as np

    from recpress.report.paired import paired_auc

    try:
        with np.load(path, allow_pickle=False) as file:
            given = {name: file[name] for name in ("before", "after", "label")}
            units = file.get("user")
        return paired_auc(given["before"], given["after"], given["label"], units=units)
    except KeyError as error:
        raise DataError(f"{path} lacks an array: {error.args[0]}; it must hold before, after and label") from None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not fit: {error}; give numpy.savez's before, after and label, a value a row"
        ) from None
