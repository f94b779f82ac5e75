"""Tables of a compression, an artifact and the demo, for a terminal."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recpress.artifact.export import training_note
from recpress.artifact.golden import Verdict
from recpress.artifact.manifest import Layer, Manifest, PrunedParameter, TrainingNote
from recpress.pipeline import Report
from recpress.pruning.rows import PruneRow
from recpress.rewrite import Row
from recpress.training import Training
from recpress_kernels.int8_mlp.choice import Choice


def human_bytes(count: float) -> str:
    """A number of bytes with a binary unit: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def print_report(report: Report) -> None:
    """Each module with what became of it, the totals, and the quality before and after."""
    console = Console(markup=False)
    console.print(layers_table(report.rows))
    if report.pruning:
        console.print(pruning_table(report.pruning))
    console.print(
        f"recipe {report.recipe.name}: {report.parameters:,} parameters, {human_bytes(report.bytes_before)} to "
        f"{human_bytes(report.bytes_after)} ({report.bytes_after / max(report.bytes_before, 1):.1%})"
    )
    for name, before in report.quality_before.items():
        after = report.quality_after[name]
        console.print(f"{name}: {before:.5f} to {after:.5f} ({after - before:+.5f})")
    if report.training is not None:
        for line in training_lines(report.training):
            console.print(line)


def training_lines(training: Training | TrainingNote) -> list[str]:
    """How a model was trained, what compression without training gave, and what training does by itself."""
    note = training if isinstance(training, TrainingNote) else training_note(training)

    def told(losses: tuple[float, float], quality: dict[str, float]) -> str:
        return f"validation loss {losses[0]:.6f} to {losses[1]:.6f}{_metrics(quality)}"

    teacher = {"": "", "original": " to the original", "given": " to a teacher that was given"}[note.teacher]
    lines = [
        f"trained by {note.objective}{teacher}, {note.steps} steps in {note.passes} passes, left at pass "
        f"{note.best_pass}: {told(note.valid_loss, {})}; before training"
        f"{_metrics(note.quality_post_training) or ', no quality was asked for'}"
    ]
    if note.control_valid_loss is None:
        return [*lines, "control: turned off, so that what training does without compression is not known"]
    control = told(note.control_valid_loss, note.quality_control)
    return [*lines, f"control, trained the same way without compression: {control}"]


def _metrics(quality: dict[str, float]) -> str:
    return "".join(f", {name} {value:.5f}" for name, value in quality.items())


def layers_table(rows: Iterable[Row | Layer]) -> Table:
    """One line a module."""
    table = Table("layer", "kind", "parameters", "before", "after", "SQNR", "of the error", "what was done, or why not")
    for row in rows:
        table.add_row(
            ", ".join(row.names) or "(model)",
            row.layer,
            f"{row.parameters:,}",
            human_bytes(row.bytes_before),
            human_bytes(row.bytes_after),
            "" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB",
            "" if row.error_share is None else f"{row.error_share:.1%}",
            what_was_done(row),
        )
    return table


def pruning_table(rows: Iterable[PruneRow | PrunedParameter]) -> Table:
    """One line a parameter, and their sum."""
    rows = list(rows)
    table = Table("parameter", "before", "after", "of these zero", "threshold", "what was done, or why not")
    for row in rows:
        threshold = "" if row.threshold is None else f"{row.threshold:.3g}"
        reason = row.reason if row.status == "pruned" else f"kept: {row.reason}"
        table.add_row(row.name, f"{row.before:,}", f"{row.after:,}", f"{row.zeros:,}", threshold, reason)
    before, after, zeros = (sum(getattr(row, of) for row in rows) for of in ("before", "after", "zeros"))
    gone = before - after + sum(row.zeros for row in rows if row.status == "pruned")
    table.add_row("all", f"{before:,}", f"{after:,}", f"{zeros:,}", "", f"pruning took {gone / before:.1%}")
    return table


def what_was_done(row: Row | Layer) -> str:
    """The scheme of a module, or why it has none; of a table also the rows that went and what answers for others."""
    parts = [row.scheme if row.status == "compressed" else f"{row.status}: {row.reason}"]
    if row.rows_dropped:
        answer = "their mean" if row.dropped_answer == "mean" else "zeros"
        parts.append(f"{row.rows_dropped:,} rows dropped, which answer {answer}; bytes with the map from ids to rows")
    elif row.status == "compressed" and "not pruned" in row.reason:
        parts.append(row.reason)
    if row.pruned:
        parts.append(row.pruned)
    if row.oov_row is not None:
        parts.append(f"ids out of vocabulary: row {row.oov_row}")
    return "; ".join(parts)


def print_manifest(manifest: Manifest, folder: str | Path, *, verdict: Verdict | None = None) -> None:
    """Inputs, outputs, sizes and golden rows of an artifact."""
    console = Console(markup=False)
    table = Table("", "name", "dtype", "shape of a row", "indexes tables of")
    for spec in manifest.inputs:
        any_id = spec.any_id or (False,) * len(spec.table_high)
        ends = zip(spec.table_high, any_id, strict=True)
        rows = [f"{high + 1}{' or any' * free}" for high, free in ends if high is not None]
        shown = ", ".join(rows[:8]) + (", …" if len(rows) > 8 else "")
        table.add_row("input", spec.name, spec.dtype, str(list(spec.shape)), f"{shown} rows" if rows else "")
    for bag in () if manifest.ragged is None else manifest.ragged.bags:
        rows = "" if bag.table_high is None else f"{bag.table_high + 1} rows"
        table.add_row("bag", bag.name, manifest.ragged.dtype, f"up to {bag.max_length} values", rows)
    for spec in manifest.outputs:
        table.add_row("output", spec.name, spec.dtype, str(list(spec.shape)), "")
    console.print(table)
    golden = manifest.golden
    seen = "" if verdict is None else f", {verdict.worst:.3g} seen now"
    console.print(
        f"{folder}: recipe {manifest.recipe.name}, {human_bytes(manifest.bytes_before)} to "
        f"{human_bytes(manifest.bytes_after)}; {golden.rows} golden rows, {golden.atol:.3g} allowed, "
        f"{golden.outlier_atol:.3g} in one of eight{seen}"
    )
    if manifest.training is not None:
        for line in training_lines(manifest.training):
            console.print(line)


def print_choices(choices: Iterable[Choice]) -> None:
    """For each 2:4 layer the form that it runs in, and by how much 2:4 was measured to be faster, or slower."""
    choices = list(choices)
    if not choices:
        return
    batches = sorted({batch for choice in choices for batch in choice.ratios})
    table = Table("2:4 layer", "runs", "as measured for", *(f"batch {batch}" for batch in batches))
    table.title = "time of the dense form over that of 2:4"
    for choice in choices:
        like = "x".join(map(str, choice.measured)) if choice.measured else "nothing: no figures for this CPU"
        figures = (f"{choice.ratios[b]:.2f}" if b in choice.ratios else "" for b in batches)
        table.add_row(f"{choice.n}x{choice.k}", "2:4" if choice.sparse24 else "dense", like, *figures)
    Console(markup=False).print(table)
