"""Prove a running server: send it an artifact's golden rows and compare its scores with the stored ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recpress.artifact import golden
from recpress.artifact.load import read_golden
from recpress.artifact.manifest import Golden, Manifest, read_manifest
from recpress.artifact.ragged import wire_rows
from recpress.errors import ProbeError, RecpressError, RepositoryError
from recpress.serving.client import Client
from recpress.serving.config import CONFIG, instances_of, read_config, served_versions


@dataclass(frozen=True)
class Probed:
    """What a probe found of one version of a model; ``problem`` is None where it scores as stored."""

    model: str
    version: int
    problem: str | None


def probe_models(client: Client, repository: str | Path, models: Sequence[str] | None = None) -> list[Probed]:
    """Replay the golden rows of every version that ``repository`` has the server serve.

    Args:
        client: a connection to the server.
        repository: the folder of models that it serves.
        models: names of the models to ask; all by default.

    Raises:
        RepositoryError: the repository holds no such model, or none at all.
    """
    names = models or sorted(path.parent.name for path in Path(repository).glob(f"[!.]*/{CONFIG}"))
    absent = [name for name in names if not (Path(repository) / name / CONFIG).is_file()]
    if absent or not names:
        raise RepositoryError(f"{repository} holds no model {', '.join(absent)}".rstrip() + f" (no */{CONFIG})")
    return [
        _probed(client, Path(repository) / name, v) for name in names for v in served_versions(Path(repository) / name)
    ]


def _probed(client: Client, model: Path, version: int) -> Probed:
    try:
        prove(client, model / str(version))
    except RecpressError as error:
        return Probed(model.name, version, str(error))
    return Probed(model.name, version, None)


def prove(client: Client, version: Path, *, named: bool = True) -> golden.Verdict:
    """Replay the golden rows of the version folder ``version``, in at least as many requests as it has instances.

    With ``named=False`` as a client that names no version, and so gets the one in service.

    Raises:
        ProbeError, RequestError, ServerError: as :func:`replay_golden`.
    """
    named_version = version.name if named else ""
    return replay_golden(client, version.parent.name, version, batch=_batch(version), version=named_version)


def replay_golden(
    client: Client, model: str, artifact: str | Path, *, batch: int = golden.ROWS, version: str = ""
) -> golden.Verdict:
    """Send the golden rows of ``artifact`` to ``model``, ``batch`` at a time, and compare.

    Raises:
        ProbeError: the scores deviate by more than the manifest allows, or the answer has another form.
        RequestError, ServerError: the server refuses, or cannot be reached.
    """
    verdict = _replay(client, model, artifact, read_manifest(artifact), batch, version)
    if not verdict.ok:
        raise ProbeError(
            f"{model} at {client.url} ({client.protocol}) does not score its golden rows as stored: {verdict}; it "
            "serves other weights: take it out of service"
        )
    return verdict


def measure_golden(client: Client, version: Path, *, taken: Callable[[float], None]) -> tuple[golden.Verdict, Golden]:
    """As :func:`prove`, but a deviation is what it finds, not an error; with the bounds that it was judged by.

    Args:
        taken: called with the seconds that each answered request took.

    Raises:
        ArtifactError, ProbeError, RequestError, ServerError: there is nothing to compare.
    """
    manifest = read_manifest(version)
    batch = _batch(version)
    return _replay(client, version.parent.name, version, manifest, batch, version.name, taken), manifest.golden


def _batch(version: Path) -> int:
    config = read_config(version.parent)
    return max(1, min(config.max_batch_size, golden.ROWS // instances_of(config)))


def _replay(
    client: Client,
    model: str,
    artifact: str | Path,
    manifest: Manifest,
    batch: int,
    version: str,
    taken: Callable[[float], None] = lambda _: None,
) -> golden.Verdict:
    inputs, expected = read_golden(artifact, manifest)
    parts = []
    for begin in range(0, manifest.golden.rows, batch):
        part = slice(begin, begin + batch)
        sent = wire_rows(manifest, inputs, part)
        sent = {name: (rows if rows.dim() > 1 else rows[:, None]).numpy() for name, rows in sent.items()}
        sent_at = time.perf_counter()
        answer = client.score(model, sent, version=version)
        taken(time.perf_counter() - sent_at)
        for spec in manifest.outputs:
            if answer.get(spec.name) is None:
                raise ProbeError(
                    f"{model} at {client.url} answers without output {spec.name!r}; is it this artifact's model?"
                )
        # Copies: the client hands out views of buffers that are not writable.
        got = tuple(torch.from_numpy(answer[spec.name].copy()) for spec in manifest.outputs)
        want = tuple(expected[spec.name][part].reshape(-1, *spec.wire_shape) for spec in manifest.outputs)
        parts.append(golden.deviations(got, want))
    return golden.judge_rows(torch.cat(parts), manifest.golden)
