"""Load an artifact: check it, then put its mapped weights back into its graph.

This is what runs inside the server; it imports nothing that trains or compresses.
"""

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import recpress_kernels  # noqa: F401 - registers the ops that the graph calls
from recpress.artifact import golden, ragged
from recpress.artifact.archive import check_archive
from recpress.artifact.fold_weights import fold_weights
from recpress.artifact.graph import build_module
from recpress.artifact.lower import lower
from recpress.artifact.lower_gpu import lower_to_gpu
from recpress.artifact.manifest import DTYPES, GOLDEN, GRAPH, WEIGHTS, Manifest, check_hashes, read_manifest
from recpress.errors import ArtifactError
from recpress_kernels.int8_mlp.choice import Choice
from recpress_kernels.sparse24_linear.fragments import form


@dataclass(frozen=True)
class LoadedModel:
    """A model loaded from an artifact.

    Attributes:
        module: the graph; called with the inputs in the manifest's order, it answers with the outputs in theirs.
        manifest: what the artifact says of itself.
        device: where it runs.
        kernels: what runs its int8 layers, and why not something faster.
        choices: for each 2:4 layer on a CPU, the form that it runs in, and the figures that decided it.
        verdict: how its golden rows scored when it was loaded.
    """

    module: torch.nn.Module
    manifest: Manifest
    device: torch.device
    kernels: str
    choices: tuple[Choice, ...] = ()
    verdict: golden.Verdict | None = None

    def score(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name for inputs by name, each ``[batch, *shape]`` as in the manifest, bags as :mod:`ragged` says.

        Raises:
            ArtifactError: an input is missing, unknown, or of another dtype, shape or batch.
            IndexBoundsError: an index is outside its table.
        """
        tensors = self._checked(inputs)
        with torch.inference_mode():
            outputs = self.module(*ragged.arguments(self.manifest.ragged, tensors))
        return {spec.name: output for spec, output in zip(self.manifest.outputs, outputs, strict=True)}

    def _checked(self, inputs: Mapping[str, Tensor]) -> ragged.Rows:
        names = ragged.names(self.manifest)
        if set(inputs) != set(names):
            raise ArtifactError(f"inputs are {', '.join(sorted(inputs)) or 'none'}; the model takes {', '.join(names)}")
        tensors = []
        for spec in (*self.manifest.inputs, *ragged.lengths_specs(self.manifest)):
            given = inputs[spec.name]
            if given.dtype != DTYPES[spec.dtype] or tuple(given.shape[1:]) != spec.shape or given.dim() == 0:
                raise ArtifactError(
                    f"input {spec.name!r} is {given.dtype} of shape {tuple(given.shape)}; the model takes "
                    f"{spec.dtype} of shape {('batch', *spec.shape)}"
                )
            tensors.append(given.to(self.device))
        if len({t.shape[0] for t in tensors}) > 1:
            given = ", ".join(f"{name}: {t.shape[0]}" for name, t in zip(names, tensors, strict=False))
            raise ArtifactError(f"inputs differ in their number of rows ({given}); give the same for all")
        if self.manifest.ragged is None:
            return tuple(tensors)
        if problem := ragged.problem(self.manifest.ragged, tensors[-1], inputs[ragged.VALUES]):
            raise ArtifactError(problem)
        return (*tensors, ragged.trimmed(tensors[-1], inputs[ragged.VALUES]).to(self.device))


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> LoadedModel:
    """Load the artifact in ``folder`` and replay its golden rows.

    The weights stay mapped from ``weights.safetensors``: they are read as they are used, and processes that load
    the same artifact share them.

    Raises:
        ArtifactError: the artifact is incomplete, changed, forged, of another version, or scores its golden rows
            otherwise than when it was exported.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_hashes(folder, manifest)
    program, weights = check_archive(folder / GRAPH), read_tensors(folder / WEIGHTS)
    with _no_collection():
        module = build_module(program, weights, folder / GRAPH, torch.device(device))
    del program, weights
    decoded = fold_weights(module)
    kernels, choices = lower(module) if torch.device(device).type == "cpu" else _lower_to_gpu(module, device)
    kernels += f"; weights of {decoded} layers decoded to float" if decoded else ""
    # The new module holds the tensors that its graph reads now, no others.
    module = torch.fx.GraphModule(module, module.graph)
    model = LoadedModel(module, manifest, torch.device(device), kernels, tuple(choices))
    return replace(model, verdict=check_golden(model, folder))


def _lower_to_gpu(module: torch.fx.GraphModule, device: str | torch.device) -> tuple[str, list[Choice]]:
    device = torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else torch.device(device)
    return lower_to_gpu(module, torch.cuda.get_device_name(device), form(device))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Reading a graph makes a hundred thousand objects that stay; looking for garbage among them takes 0.2 s of 0.9."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name, mapped, not copied.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); export the model again") from None


def read_golden(folder: str | Path, manifest: Manifest) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The golden rows of an artifact and their scores: inputs by name and outputs by name.

    The values of bags are ``[N]``: :func:`recpress.artifact.ragged.wire_rows` makes of them what a client sends.

    Raises:
        ArtifactError: they cannot be read, or do not fit the manifest.
    """
    tensors = read_tensors(Path(folder) / GOLDEN)
    groups = (("input", (*manifest.inputs, *ragged.lengths_specs(manifest))), ("output", manifest.outputs))
    wanted = {f"{kind}:{spec.name}": spec for kind, specs in groups for spec in specs}
    for name, spec in wanted.items():
        shape, dtype = (manifest.golden.rows, *spec.shape), DTYPES[spec.dtype]
        if name not in tensors or tuple(tensors[name].shape) != shape or tensors[name].dtype != dtype:
            raise ArtifactError(f"{Path(folder) / GOLDEN} does not hold {name!r} as {dtype} {shape}; export again")
    if manifest.ragged is not None and not _bags_fit(manifest, tensors):
        raise ArtifactError(f"{Path(folder) / GOLDEN} holds bags that do not fit their lengths; export again")
    inputs = {name: tensors[f"input:{name}"] for name in ragged.names(manifest)}
    outputs = {spec.name: tensors[f"output:{spec.name}"] for spec in manifest.outputs}
    return inputs, outputs


def _bags_fit(manifest: Manifest, tensors: Mapping[str, Tensor]) -> bool:
    values, lengths = tensors.get(f"input:{ragged.VALUES}"), tensors[f"input:{ragged.LENGTHS}"]
    dtype = DTYPES[manifest.ragged.dtype]
    return values is not None and values.dtype == dtype and values.shape == (int(lengths.sum()),)


def check_golden(model: LoadedModel, folder: str | Path) -> golden.Verdict:
    """Score the golden rows and compare them with the stored scores.

    Raises:
        ArtifactError: they differ by more than the manifest allows.
    """
    inputs, expected = read_golden(folder, model.manifest)
    everything = slice(0, model.manifest.golden.rows)
    scores = model.score(ragged.wire_rows(model.manifest, inputs, everything))
    verdict = golden.judge(tuple(t.cpu() for t in scores.values()), tuple(expected.values()), model.manifest.golden)
    if not verdict.ok:
        raise ArtifactError(
            f"the golden rows of {folder} do not score as stored: {verdict}; the weights or the software that runs "
            "them are not those exported"
        )
    return verdict
