"""Write a compressed model as an artifact: exported, checked, loaded back and compared before it is in place."""

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten

from recpress.artifact import golden
from recpress.artifact.bounds import BATCH, table_bounds
from recpress.artifact.export_bags import Placed, one_value_each, place_bags, ragged_spec, twice
from recpress.artifact.graph import CONSTANT
from recpress.artifact.load import load
from recpress.artifact.lower import drop_identities
from recpress.artifact.manifest import (
    DTYPES,
    GOLDEN,
    GRAPH,
    SCHEMA,
    WEIGHTS,
    InputSpec,
    Layer,
    Manifest,
    OutputSpec,
    PrunedParameter,
    RaggedSpec,
    TrainingNote,
    sha256,
    versions,
    write_manifest,
)
from recpress.artifact.ragged import LENGTHS, VALUES, Bag
from recpress.errors import ArtifactError, ExportError
from recpress.pipeline import Compressed
from recpress.training import Run, Training

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_META = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


def export(
    compressed: Compressed,
    folder: str | Path,
    *,
    example_inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str] | None = None,
    bags: Sequence[Bag] = (),
) -> Manifest:
    """Write ``compressed`` to ``folder`` as an artifact that needs neither its code nor pickle.

    Args:
        compressed: what :func:`recpress.compress` returned.
        folder: made by this call; it must not exist.
        example_inputs: the positional arguments of the model's forward, tensors ``[batch, ...]`` with the same
            batch of at least 1. Their ranges, by column, go into the manifest; their rows do not.
        input_names: a name for each.
        output_names: a name for each output, the batch first in each; by default a dict's keys, or ``output``,
            or ``output_0`` and so on.

        bags: which arguments are features of any number of ids a row; clients send all of them packed, as ragged.py
            says and :func:`recpress.pack_bags` does.

    Returns:
        The manifest as written.

    Raises:
        ExportError: inputs or names do not fit, or ``torch.export`` cannot follow the model.
        ArtifactError: the folder exists, or what was written does not load back to the same scores.
    """
    folder = Path(folder)
    if folder.exists():
        raise ArtifactError(f"{folder} exists; nothing is replaced in place: give a new folder, or remove it first")
    examples, placed = _checked_examples(example_inputs, input_names, bags)
    program = _export(compressed.model, examples, placed)
    inputs, ragged = _input_specs(program, examples, input_names, placed)
    outputs = _output_specs(compressed.model, examples, output_names, _rows(examples, placed))
    rows = golden.draw_rows(inputs, ragged)
    with torch.no_grad():
        scores, measured = golden.measure(program.module(), rows, ragged)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_tensors(staging, program, inputs, outputs, rows, scores)
        _write_graph(staging / GRAPH, program)
        report = compressed.report
        manifest = Manifest(
            schema_version=SCHEMA,
            inputs=inputs,
            outputs=outputs,
            recipe=report.recipe,
            layers=tuple(Layer(**asdict(row)) for row in report.rows),
            quality_before=report.quality_before,
            quality_after=report.quality_after,
            pruning=tuple(PrunedParameter(**asdict(row)) for row in report.pruning),
            training=None if report.training is None else training_note(report.training),
            golden=measured,
            sha256={name: sha256(staging / name) for name in (GRAPH, WEIGHTS, GOLDEN)},
            versions=versions(),
            ragged=ragged,
        )
        write_manifest(staging, manifest)
        load(staging)
        _make_readable(staging)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _make_readable(folder: Path) -> None:
    """Temporary folders and safetensors are private to their writer; a server may run as another user."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def _rows(examples: Sequence[Tensor], placed: Sequence[Placed]) -> int:
    values = {p.values_at for p in placed}
    return next(len(given) for i, given in enumerate(examples) if i not in values)


def _checked_examples(
    example_inputs: Sequence[Tensor], names: Sequence[str], bags: Sequence[Bag]
) -> tuple[tuple[Tensor, ...], list[Placed]]:
    """The examples, repeated to a batch of at least 2, which torch.export needs to see that the batch may vary."""
    examples = tuple(example_inputs)
    if not examples or not all(isinstance(t, Tensor) and t.dim() >= 1 for t in examples):
        raise ExportError("example_inputs must be tensors [batch, ...], one for each argument of forward")
    if len(names) != len(examples) or len(set(names)) != len(names) or not all(map(_is_name, names)):
        raise ExportError(
            f"input_names are {list(names)}; give {len(examples)} different names of letters, digits and '_'"
        )
    placed = place_bags(bags, names, examples)
    values = {p.values_at for p in placed}
    batches = {t.shape[0] for i, t in enumerate(examples) if i not in values}
    if len(batches) > 1 or 0 in batches:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(names, examples, strict=True))
        raise ExportError(
            f"example_inputs must share one batch of at least 1 in their first dimension; given: {shapes}"
        )
    for name, t in zip(names, examples, strict=True):
        if t.dtype not in _NAMES:
            raise ExportError(f"input {name!r} is {t.dtype}; allowed are {', '.join(DTYPES)}")
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ExportError(f"input {name!r} holds NaN or infinity among its examples; give real rows")
    return (twice(placed, examples) if batches == {1} else tuple(t.detach() for t in examples)), placed


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.isascii()


def _export(model: nn.Module, examples: tuple[Tensor, ...], placed: Sequence[Placed]) -> ExportedProgram:
    batch = Dim("batch", min=1)
    values = {p.values_at: Dim(f"values_{p.values_at}", min=0) for p in placed}
    sizes = tuple({0: values.get(i, batch)} for i in range(len(examples)))
    try:
        with torch.no_grad():
            program = torch.export.export(model.eval(), examples, dynamic_shapes=sizes)
    except Exception as error:
        text = str(error).strip()
        raise ExportError(
            f"torch.export cannot follow {type(model).__name__} with a batch that varies:\n{text}\nMake its forward "
            "free of Python that depends on values or on the batch's size, and give its arguments in order"
        ) from error
    # A loaded graph costs its nodes: half of a DLRM's are slices that take everything.
    drop_identities(program.graph_module)
    for name, constant in program.constants.items():
        if not isinstance(constant, Tensor):
            raise ExportError(f"the model holds {name!r}, a {type(constant).__name__}; constants must be tensors")
    return program


def _input_specs(
    program: ExportedProgram, examples: tuple[Tensor, ...], names: Sequence[str], placed: Sequence[Placed]
) -> tuple[tuple[InputSpec, ...], RaggedSpec | None]:
    specs = []
    of_bags = {at for p in placed for at in (p.values_at, p.bags_at)}
    bounds = table_bounds(program, examples, one_value_each(placed, BATCH))
    for i, (name, example, tables) in enumerate(zip(names, examples, bounds, strict=True)):
        if i in of_bags:
            continue
        columns = example.reshape(example.shape[0], -1).double()
        specs.append(
            InputSpec(
                name=name,
                dtype=_NAMES[example.dtype],
                shape=tuple(example.shape[1:]),
                low=tuple(columns.amin(dim=0).tolist()),
                high=tuple(columns.amax(dim=0).tolist()),
                table_low=tuple(tables[c].low if c in tables else None for c in range(columns.shape[1])),
                table_high=tuple(tables[c].high if c in tables else None for c in range(columns.shape[1])),
                any_id=tuple(c in tables and tables[c].any_id for c in range(columns.shape[1])),
            )
        )
    return tuple(specs), ragged_spec(placed, examples, bounds)


def _output_specs(
    model: nn.Module, examples: tuple[Tensor, ...], names: Sequence[str] | None, rows: int
) -> tuple[OutputSpec, ...]:
    with torch.no_grad():
        result = model(*examples)
    leaves, _ = tree_flatten(result)
    if not leaves or not all(isinstance(t, Tensor) and t.dim() and t.dtype in _NAMES for t in leaves):
        kinds = ", ".join(str(getattr(t, "dtype", type(t).__name__)) for t in leaves) or "nothing"
        raise ExportError(f"the model returns {kinds}; it must return tensors [batch, ...] of {', '.join(DTYPES)}")
    if any(t.shape[0] != rows for t in leaves):
        shapes = ", ".join(str(tuple(t.shape)) for t in leaves)
        raise ExportError(f"outputs have shapes {shapes}; the batch ({rows}) must come first in each")
    if names is None:
        if isinstance(result, dict) and len(result) == len(leaves):
            names = list(result)
        else:
            names = ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]
    if len(names) != len(leaves) or len(set(names)) != len(names) or not all(map(_is_name, names)):
        raise ExportError(
            f"output_names are {list(names)}; give {len(leaves)} different names of letters, digits and '_'"
        )
    return tuple(
        OutputSpec(name=name, dtype=_NAMES[t.dtype], shape=tuple(t.shape[1:]))
        for name, t in zip(names, leaves, strict=True)
    )


def training_note(training: Training) -> TrainingNote:
    """What the manifest keeps of a training."""

    def losses(run: Run) -> tuple[float, float]:
        return run.epochs[0].valid_loss, run.best.valid_loss

    run, control = training.run, training.control
    return TrainingNote(
        objective=training.objective,
        teacher=training.teacher,
        passes=len(run.epochs) - 1,
        steps=run.steps,
        best_pass=run.best.number,
        seconds=sum(epoch.seconds for epoch in run.epochs),
        settings=asdict(training.settings),
        valid_loss=losses(run),
        control_valid_loss=None if control is None else losses(control),
        quality_post_training=training.quality_post_training,
        quality_control=training.quality_control,
    )


def _write_tensors(
    folder: Path,
    program: ExportedProgram,
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    rows: tuple[Tensor, ...],
    scores: tuple[Tensor, ...],
) -> None:
    weights = dict(program.state_dict) | {CONSTANT + name: t for name, t in program.constants.items()}
    # clone: safetensors refuses tensors that share memory, as tied weights do.
    save_file({name: t.detach().contiguous().clone() for name, t in weights.items()}, folder / WEIGHTS)
    names = [spec.name for spec in inputs]
    names += [LENGTHS, VALUES] if len(rows) > len(names) else []
    made = {f"input:{name}": t for name, t in zip(names, rows, strict=True)}
    made |= {f"output:{spec.name}": t for spec, t in zip(outputs, scores, strict=True)}
    save_file({name: t.contiguous() for name, t in made.items()}, folder / GOLDEN)


def _write_graph(path: Path, program: ExportedProgram) -> None:
    """Save the graph alone: no weights, no sample inputs, no guards, and no trace of the sources it came from."""
    for home in (program.state_dict, program.constants):
        for name, t in home.items():
            stand_in = torch.zeros((), dtype=t.dtype).expand(t.shape)
            is_parameter = isinstance(t, nn.Parameter)
            home[name] = nn.Parameter(stand_in, requires_grad=False) if is_parameter else stand_in
    for node in program.graph.nodes:
        for key in _META:
            node.meta.pop(key, None)
    program.example_inputs = None
    program._guards_code = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # the stand-ins, on purpose
        torch.export.save(program, path)
