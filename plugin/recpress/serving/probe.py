"""Prove a running server: send it an artifact's golden rows and compare its scores with the stored ones."""

from pathlib import Path

import torch

from recpress.artifact import golden
from recpress.artifact.load import read_golden
from recpress.artifact.manifest import read_manifest
from recpress.errors import ProbeError
from recpress.serving.client import Client


def replay_golden(client: Client, model: str, artifact: str | Path, *, batch: int = golden.ROWS) -> golden.Verdict:
    """Send the golden rows of ``artifact`` to ``model``, ``batch`` at a time, and compare.

    Raises:
        ProbeError: the scores deviate by more than the manifest allows, or the answer has another form.
        RequestError, ServerError: the server refuses, or cannot be reached.
    """
    manifest = read_manifest(artifact)
    inputs, expected = read_golden(artifact, manifest)
    parts = []
    for begin in range(0, manifest.golden.rows, batch):
        part = slice(begin, begin + batch)
        sent = {s.name: inputs[s.name][part].reshape(-1, *s.wire_shape).numpy() for s in manifest.inputs}
        answer = client.score(model, sent)
        for spec in manifest.outputs:
            if answer.get(spec.name) is None:
                raise ProbeError(
                    f"{model} at {client.url} answers without output {spec.name!r}; is it this artifact's model?"
                )
        # Copies: the client hands out views of buffers that are not writable.
        got = tuple(torch.from_numpy(answer[spec.name].copy()) for spec in manifest.outputs)
        want = tuple(expected[spec.name][part].reshape(-1, *spec.wire_shape) for spec in manifest.outputs)
        parts.append(golden.deviations(got, want))
    verdict = golden.judge_rows(torch.cat(parts), manifest.golden)
    if not verdict.ok:
        raise ProbeError(
            f"{model} at {client.url} ({client.protocol}) does not score its golden rows as stored: {verdict}; it "
            "serves other weights: take it out of service"
        )
    return verdict
