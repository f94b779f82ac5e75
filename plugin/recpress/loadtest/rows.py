"""The rows that a load test sends, and the scores that must come back."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recpress.artifact import golden
from recpress.artifact.load import load, read_golden
from recpress.artifact.manifest import Golden, Manifest, read_manifest
from recpress.errors import LoadTestError

_REQUESTS, _FEWEST = 512, 16
_SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Requests:
    """Requests to draw from, each with as many rows.

    Attributes:
        inputs: of each request its arrays by name, ``[batch, *wire shape]``.
        expected: of each request its outputs, ``[batch, *wire shape]``, in the manifest's order.
        outputs: names of the outputs.
        tolerance: how far scores may lie from the expected ones.
        source: where the rows are from, in words.
    """

    inputs: tuple[dict[str, np.ndarray], ...]
    expected: tuple[tuple[Tensor, ...], ...]
    outputs: tuple[str, ...]
    tolerance: Golden
    source: str


def read_requests(artifact: str | Path, *, batch: int = 1, rows: str | Path | None = None, seed: int = 0) -> Requests:
    """Requests of ``batch`` rows, drawn without repetition until all rows are used, then again.

    Args:
        artifact: the folder of the artifact that is served.
        rows: a file of numpy's savez with an array ``[N, *shape]`` for each input, by name, as the manifest has its
            dtype and shape; the artifact is loaded to score them. None takes its golden rows and their stored scores.
        seed: of the order.

    Raises:
        LoadTestError: the file cannot be read, is not of these inputs, or has a row whose score is not finite.
        ArtifactError: the artifact is incomplete, changed or forged.
        IndexBoundsError: a row has an index outside its table.
    """
    manifest = read_manifest(artifact)
    if rows is None:
        inputs, expected = read_golden(artifact, manifest)
        source = f"{manifest.golden.rows} golden rows"
    else:
        inputs = _read_rows(Path(rows), manifest)
        expected = _score(artifact, inputs)
        source = f"{len(next(iter(inputs.values()))):,} rows of {rows}"
    count = len(next(iter(inputs.values())))
    order = _draw(count, batch, np.random.default_rng(seed))
    return Requests(
        inputs=tuple(
            {s.name: inputs[s.name][picked].reshape(-1, *s.wire_shape).numpy() for s in manifest.inputs}
            for picked in order
        ),
        expected=tuple(
            tuple(expected[s.name][picked].reshape(-1, *s.wire_shape) for s in manifest.outputs) for picked in order
        ),
        outputs=tuple(s.name for s in manifest.outputs),
        tolerance=manifest.golden,
        source=source,
    )


def _draw(rows: int, batch: int, generator: np.random.Generator) -> Tensor:
    """Which rows each request has, int64 ``[requests, batch]``."""
    requests = min(_REQUESTS, max(_FEWEST, rows // batch))
    shuffled = [generator.permutation(rows) for _ in range(-(-requests * batch // rows))]
    return torch.from_numpy(np.concatenate(shuffled)[: requests * batch].reshape(requests, batch))


def _read_rows(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    names = [spec.name for spec in manifest.inputs]
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            arrays = {"one array without a name": file}
        else:
            with file:
                arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LoadTestError(f"{path} cannot be read ({error}); give a file that numpy.savez wrote") from None
    if set(arrays) != set(names):
        held = ", ".join(sorted(arrays)) or "nothing"
        raise LoadTestError(f"{path} holds {held}; it must hold an array for each of {', '.join(names)}")
    for spec in manifest.inputs:
        given = arrays[spec.name]
        if str(given.dtype) != spec.dtype or given.shape[1:] != spec.shape:
            raise LoadTestError(
                f"{path}: {spec.name!r} is {given.dtype} of shape {given.shape}; the model takes {spec.dtype} of shape "
                f"{('rows', *spec.shape)}"
            )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or not min(lengths.values()):
        raise LoadTestError(f"{path} has rows {lengths}; all inputs must have the same number, and at least one")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _score(artifact: str | Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model = load(artifact)
    names = [spec.name for spec in model.manifest.inputs]

    def score(part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(model.score(dict(zip(names, part, strict=True))).values())

    scores = golden.in_batches(score, tuple(inputs[name] for name in names), _SCORED_AT_ONCE)
    unfit = torch.isinf(golden.deviations(scores, scores)).nonzero().flatten().tolist()
    if unfit:
        raise LoadTestError(
            f"{len(unfit)} of {len(scores[0])} rows, row {unfit[0]} the first, score NaN or infinity; leave them out"
        )
    return {spec.name: column for spec, column in zip(model.manifest.outputs, scores, strict=True)}


class Checker:
    """Compares answers with what is expected; a request is wrong when more of its rows deviate than golden.py allows.

    The rows of all answers are judged together as well, since one row alone may deviate further than most.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._exact = [tuple(t.numpy().tobytes() for t in expected) for expected in requests.expected]
        self._rows = [expected[0].shape[0] for expected in requests.expected]
        self._checked = self._beyond = 0
        self._worst = 0.0

    def right(self, request: int, outputs: tuple[np.ndarray | None, ...]) -> bool:
        """Whether ``outputs`` are right for request ``request``."""
        self._checked += self._rows[request]
        if all(x is not None and x.tobytes() == e for x, e in zip(outputs, self._exact[request], strict=True)):
            return True
        expected = self._requests.expected[request]
        got = tuple(torch.empty(0) if x is None else torch.from_numpy(x.copy()) for x in outputs)
        rows = golden.deviations(got, expected)
        tolerance = self._requests.tolerance
        beyond = int((rows > tolerance.atol).sum())
        self._beyond += beyond
        self._worst = max(self._worst, float(rows.max()))
        return float(rows.max()) <= tolerance.outlier_atol and beyond <= max(1, len(rows) // golden.OUTLIERS)

    @property
    def verdict(self) -> golden.Verdict:
        """On all rows so far."""
        allowed = self._beyond <= max(1, self._checked // golden.OUTLIERS)
        ok = allowed and self._worst <= self._requests.tolerance.outlier_atol
        return golden.Verdict(self._checked, self._worst, self._beyond, ok)
