"""Prove a running server: send it an artifact's golden rows and compare its scores with the stored ones."""

from dataclasses import dataclass
from pathlib import Path

import torch

from recpress.artifact import golden
from recpress.artifact.load import read_golden
from recpress.artifact.manifest import read_manifest
from recpress.errors import ProbeError
from recpress.serving.client import Client


@dataclass(frozen=True)
class Probe:
    """What a replay saw: rows sent, the largest deviation from the stored scores, and how much was allowed."""

    rows: int
    deviation: float
    atol: float


def replay_golden(client: Client, model: str, artifact: str | Path, *, batch: int = golden.ROWS) -> Probe:
    """Send the golden rows of ``artifact`` to ``model``, ``batch`` at a time, and compare.

    Raises:
        ProbeError: a score deviates by more than the manifest allows, or the answer has another form.
        RequestError, ServerError: the server refuses, or cannot be reached.
    """
    manifest = read_manifest(artifact)
    inputs, expected = read_golden(artifact, manifest)
    worst = 0.0
    for begin in range(0, manifest.golden.rows, batch):
        part = slice(begin, begin + batch)
        sent = {s.name: inputs[s.name][part].reshape(-1, *s.wire_shape).numpy() for s in manifest.inputs}
        answer = client.score(model, sent)
        for spec in manifest.outputs:
            if answer.get(spec.name) is None:
                raise ProbeError(
                    f"{model} at {client.url} answers without output {spec.name!r}; is it this artifact's model?"
                )
            want = expected[spec.name][part].reshape(-1, *spec.wire_shape)
            # A copy: the client hands out views of a buffer that is not writable.
            got = torch.from_numpy(answer[spec.name].copy())
            worst = max(worst, golden.deviation((got,), (want,)))
    if worst > manifest.golden.atol:
        raise ProbeError(
            f"{model} at {client.url} ({client.protocol}) scores golden rows up to {worst:.3g} away from their stored "
            f"scores; allowed are {manifest.golden.atol:.3g}; it serves other weights: take it out of service"
        )
    return Probe(manifest.golden.rows, worst, manifest.golden.atol)
