"""The manifest of an artifact: what it holds, for whom, and how to know that it is whole."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from recpress.errors import ArtifactError
from recpress.recipe import Recipe

SCHEMA = 1
MANIFEST = "manifest.json"
GRAPH = "graph.pt2"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Spec(_Frozen):
    name: str
    dtype: Literal["float32", "float16", "int32", "int64", "bool"]
    shape: tuple[int, ...]

    @property
    def wire_shape(self) -> tuple[int, ...]:
        """The shape of one row as a server sends it: a scalar travels as ``(1,)``."""
        return self.shape or (1,)


class InputSpec(_Spec):
    """One input. ``shape`` leaves out the batch; the lists hold one entry a column of the flattened shape.

    Attributes:
        low, high: the range that golden rows are drawn from: that of the example inputs, or the table's.
        table_low, table_high: range of a column that indexes a table, both ends in; None where the column indexes
            none. What lies outside is refused, but for columns of ``any_id``.
        any_id: columns whose tables all have a row that answers for ids out of vocabulary; empty where there are none.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    table_low: tuple[int | None, ...]
    table_high: tuple[int | None, ...]
    any_id: tuple[bool, ...] = ()

    @property
    def bounds(self) -> tuple[tuple[int | None, int | None], ...]:
        """What is allowed of each column, both ends in; None where any number is."""
        free = self.any_id or (False,) * len(self.table_low)
        ends = zip(self.table_low, self.table_high, strict=True)
        return tuple((None, None) if any_id else end for end, any_id in zip(ends, free, strict=True))


class BagSpec(_Frozen):
    """A feature of any number of ids a row, two arguments of the graph; ragged.py says how it travels.

    Attributes:
        name: that of the argument with the values.
        form: what the other argument is.
        max_length: how many values a row may have.
        values_at, bags_at: the arguments' positions.
        low, high: the range of the examples' values.
        table_low, table_high: what is allowed of a value, both ends in; None where nothing is known, or any will do.
    """

    name: str
    form: Literal["offsets", "lengths"]
    max_length: int
    values_at: int
    bags_at: int
    low: int
    high: int
    table_low: int | None
    table_high: int | None


class RaggedSpec(_Frozen):
    """The bags of a model, in the order of the columns of their lengths, and the dtype of lengths and values."""

    dtype: Literal["int32", "int64"]
    bags: tuple[BagSpec, ...]


class OutputSpec(_Spec):
    """One output; ``shape`` leaves out the batch."""


class Golden(_Frozen):
    """How far scores of the golden rows may lie from the stored ones; golden.py says why there are two bounds.

    Attributes:
        rows: how many rows there are.
        atol: the largest difference that is allowed in all but one row of eight.
        outlier_atol: the largest difference that is allowed in any row.
        blind: weights of which a change of all scales by 2^-10 would not be noticed.
    """

    rows: int
    atol: float
    outlier_atol: float
    blind: tuple[str, ...]


class Layer(_Frozen):
    """A row of the report of compression."""

    names: tuple[str, ...]
    layer: str
    status: Literal["compressed", "kept", "unreachable"]
    scheme: str
    reason: str
    parameters: int
    bytes_before: int
    bytes_after: int
    sqnr_db: float | None = None
    error_share: float | None = None
    oov_row: int | None = None
    rows_dropped: int = 0
    dropped_answer: Literal["", "mean", "zero"] = ""
    pruned: str = ""


class PrunedParameter(_Frozen):
    """A row of the report of pruning."""

    name: str
    status: Literal["pruned", "kept"]
    reason: str
    before: int
    after: int
    zeros: int
    threshold: float | None = None


class TrainingNote(_Frozen):
    """How the model was fine-tuned, and what that training does without compression.

    Attributes:
        objective: what was minimised: ``distill``, ``labels`` or the name of a loss.
        teacher: what the loss was handed to be like: the ``original``, one that was ``given``, or none, empty.
        passes, steps: made over the training batches, and of the optimiser.
        best_pass: at which the model was left; 0: as it was before training.
        seconds: that the training took.
        settings: passes at most, learning rates and so on.
        valid_loss, control_valid_loss: before training and at the best pass; of the control, the same training of the
            model without compression, None where it was turned off.
        quality_post_training, quality_control: metrics of the model compressed without training, and of the control.
    """

    objective: str
    teacher: Literal["", "original", "given"]
    passes: int
    steps: int
    best_pass: int
    seconds: float
    settings: dict[str, int | float | bool | str]
    valid_loss: tuple[float, float]
    control_valid_loss: tuple[float, float] | None
    quality_post_training: dict[str, float]
    quality_control: dict[str, float]


class Manifest(_Frozen):
    """The whole of ``manifest.json``."""

    schema_version: Literal[1]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    recipe: Recipe
    layers: tuple[Layer, ...]
    quality_before: dict[str, float]
    quality_after: dict[str, float]
    pruning: tuple[PrunedParameter, ...] = ()
    training: TrainingNote | None = None
    golden: Golden
    sha256: dict[str, str]
    versions: dict[str, str]
    ragged: RaggedSpec | None = None

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)


def versions() -> dict[str, str]:
    """Versions that an artifact is made with."""
    from recpress import __version__

    return {"recpress": __version__, "torch": torch.__version__, "python": platform.python_version()}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``folder``."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of an artifact, without its files.

    Raises:
        ArtifactError: there is none, it is not as it should be, or it is of another schema version.
    """
    path = Path(folder) / MANIFEST
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); give the folder of an exported model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}); export the model again") from None
    found = given.get("schema_version") if isinstance(given, dict) else None
    if found != SCHEMA:
        raise ArtifactError(
            f"{path} has schema version {found!r}; this recpress reads {SCHEMA}; export the model again, or "
            "install the version that wrote it"
        )
    try:
        return Manifest.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}, at {where}: {first['msg']}; export the model again") from None


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its hash in the manifest.

    Raises:
        ArtifactError: a file is missing, or is not the one that was exported.
    """
    expected = {GRAPH, WEIGHTS, GOLDEN}
    if set(manifest.sha256) != expected:
        named = ", ".join(sorted(manifest.sha256)) or "none"
        raise ArtifactError(
            f"the manifest in {folder} hashes the files {named}; it must hash {', '.join(sorted(expected))}"
        )
    for name, digest in manifest.sha256.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; export or copy the artifact again")
        found = sha256(path)
        if found != digest:
            raise ArtifactError(
                f"{path} does not match its manifest (sha256 {found[:12]}…, not {digest[:12]}…); it was changed or "
                "cut short after export; copy it again"
            )
