"""``recpress tune``: tables of what is fastest on the machine at hand, which loading looks up."""

from pathlib import Path

import torch
import typer

from recpress.errors import MissingDependencyError, SourceError


def tune_forms(folder: Path | None) -> None:
    """Measure 2:4 and dense layers on every instruction set of this CPU and, where there is one, on the GPU."""
    from recpress_kernels.int8_mlp import choice, tune

    path = choice.path() if folder is None else folder / choice.FILE_NAME
    tune.main(["--table", str(path)])
    if torch.cuda.is_available():
        from recpress_kernels.int8_sparse24_linear.tune import seconds_on_gpu
        from recpress_kernels.int8_sparse24_linear.tune import tune as tune_sparse

        gpu = torch.cuda.get_device_name()
        choice.write(tune.merged(choice.read(path), list(tune_sparse(gpu, seconds_on_gpu)), gpu), path)
    typer.echo(f"kept in {path}")


def tune_gpu(texts: list[str], folder: Path | None) -> None:
    """Measure each ``M,N,K`` and add what was found to the GPU's table.

    Raises:
        SourceError: a shape is not three whole numbers of at least 1.
        MissingDependencyError: there is no GPU.
    """
    shapes = [_shape(text) for text in texts]
    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "tuning times kernels on a GPU, and torch sees none here; run it where there is one"
        )
    from recpress_kernels.int8_linear import cuda, tuned
    from recpress_kernels.int8_linear.tune import time_on_gpu, tune

    gpu = torch.cuda.get_device_name()
    path = (folder or tuned.folder()) / tuned.file_name(gpu)
    entries = tune(shapes, cuda.device_facts(torch.device("cuda", 0)), time_on_gpu, on_shape=_print)
    kept = tuned.read(path).entries if path.is_file() else ()
    replaced = {(e.m, e.n, e.k, e.aligned, e.quantized) for e in entries}
    others = tuple(e for e in kept if (e.m, e.n, e.k, e.aligned, e.quantized) not in replaced)
    tuned.write(tuned.Table(gpu, (*others, *entries)), path)
    typer.echo(f"{len(entries)} shapes in {path}")


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise SourceError(f"shape {text!r} is not M,N,K of whole numbers of at least 1, such as 64,512,256")
    m, n, k = map(int, parts)
    return m, n, k


def _print(entry) -> None:
    typer.echo(f"{entry.m} x {entry.n} x {entry.k}: {entry.seconds * 1e6:.1f} us, {entry.config.route} {entry.config}")
