"""Trained weights kept by a hash of all that they come from, so that training again is reading them."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VERSION = 1
"""Of the training code: raise it where the same options would give other weights."""


def trained(
    model: nn.Module,
    train: Callable[[], object],
    *,
    rows: Iterable[Tensor],
    options: Mapping[str, object],
    folder: Path,
) -> bool:
    """Put the weights into ``model`` that ``train()``, which trains it in place, gives: from ``folder`` if kept there.

    Args:
        model: as it starts: its structure and its first weights are part of the hash.
        rows: all that it learns and is judged by.
        options: those of the training, its seed too; what JSON can hold.
        folder: made where it does not exist; a file that cannot be read is made anew.

    Returns:
        Whether the weights were kept. The model is in eval mode either way.
    """
    digest = hashlib.sha256()
    for text in (str(VERSION), torch.__version__, str(model), json.dumps(dict(options), sort_keys=True)):
        digest.update(text.encode() + b"\0")
    for name, tensor in (*model.state_dict().items(), *(("", row) for row in rows)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    path = folder / f"{type(model).__name__}-{digest.hexdigest()[:24]}.safetensors"
    state = _read(path)
    if state is None:
        train()
        _write(path, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    else:
        model.load_state_dict(state)
    model.eval()
    return state is not None


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write(path: Path, state: dict[str, Tensor]) -> None:
    """Staged beside its place, then renamed: another process may be writing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as staging:
        staged = Path(staging) / path.name
        save_file(state, staged)
        staged.replace(path)
