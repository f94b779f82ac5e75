"""Trained weights kept by a hash of all that they come from, so that training again is reading them."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

VERSION = 1
"""Of the training code: raise it where the same options would give other weights."""
_STEPS = "optimiser_steps"


@dataclass(frozen=True)
class Kept:
    """Whether weights were ``read`` or trained just now, and the optimiser's ``steps`` of their training."""

    read: bool
    steps: int


def trained(
    model: nn.Module,
    train: Callable[[], int],
    *,
    rows: Iterable[Tensor],
    options: Mapping[str, object],
    folder: Path,
) -> Kept:
    """Put the weights into ``model`` that ``train()`` gives: from ``folder`` if kept there.

    Args:
        model: as it starts: its structure and its first weights are part of the hash.
        train: trains ``model`` in place, and returns how many steps of the optimiser that took.
        rows: all that it learns and is judged by.
        options: those of the training, its seed too; what JSON can hold.
        folder: made where it does not exist; a file that cannot be read, or lacks the steps, is made anew.

    The model is in eval mode either way.
    """
    digest = hashlib.sha256()
    for text in (str(VERSION), torch.__version__, str(model), json.dumps(dict(options), sort_keys=True)):
        digest.update(text.encode() + b"\0")
    for name, tensor in (*model.state_dict().items(), *(("", row) for row in rows)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    path = folder / f"{type(model).__name__}-{digest.hexdigest()[:24]}.safetensors"
    found = _read(path)
    if found is None:
        steps = train()
        _write(path, {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, steps)
    else:
        state, steps = found
        model.load_state_dict(state)
    model.eval()
    return Kept(found is not None, steps)


def _read(path: Path) -> tuple[dict[str, Tensor], int] | None:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()[_STEPS])  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _write(path: Path, state: dict[str, Tensor], steps: int) -> None:
    """Staged beside its place, then renamed: another process may be writing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as staging:
        staged = Path(staging) / path.name
        save_file(state, staged, {_STEPS: str(steps)})
        staged.replace(path)
