"""Tables of a compression, an artifact and the demo, for a terminal."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recpress.artifact.golden import Verdict
from recpress.artifact.manifest import Layer, Manifest
from recpress.pipeline import Report
from recpress.rewrite import Row
from recpress.training import Run, Training
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
    console = Console()
    console.print(layers_table(report.rows))
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


def training_lines(training: Training) -> list[str]:
    """How a model was trained, what post-training quantisation alone gave, and what training does by itself."""

    def told(run: Run, quality: dict[str, float]) -> str:
        metrics = "".join(f", {name} {value:.5f}" for name, value in quality.items())
        return f"validation loss {run.epochs[0].valid_loss:.6f} to {run.best.valid_loss:.6f}{metrics}"

    run, before = training.run, "".join(f", {n} {v:.5f}" for n, v in training.quality_post_training.items())
    lines = [
        f"trained by {training.objective}, {len(run.epochs) - 1} passes, left at pass {run.best.number}: "
        f"{told(run, {})}; before training{before or ', no quality was asked for'}"
    ]
    if training.control is None:
        return [*lines, "control: turned off, so that what training does without compression is not known"]
    return [
        *lines,
        f"control, trained the same way without compression: {told(training.control, training.quality_control)}",
    ]


def layers_table(rows: Iterable[Row | Layer]) -> Table:
    """One line a module."""
    table = Table("layer", "kind", "parameters", "before", "after", "SQNR", "what was done, or why not")
    for row in rows:
        table.add_row(
            ", ".join(row.names) or "(model)",
            row.layer,
            f"{row.parameters:,}",
            human_bytes(row.bytes_before),
            human_bytes(row.bytes_after),
            "" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB",
            what_was_done(row),
        )
    return table


def what_was_done(row: Row | Layer) -> str:
    """The scheme of a module, or why it has none; of a table also the rows that went and what answers for others."""
    parts = [row.scheme if row.status == "compressed" else f"{row.status}: {row.reason}"]
    if row.rows_dropped:
        answer = "their mean" if row.dropped_answer == "mean" else "zeros"
        parts.append(f"{row.rows_dropped:,} rows dropped, which answer {answer}; bytes with the map from ids to rows")
    elif row.status == "compressed" and "not pruned" in row.reason:
        parts.append(row.reason)
    if row.oov_row is not None:
        parts.append(f"ids out of vocabulary: row {row.oov_row}")
    return "; ".join(parts)


def print_manifest(manifest: Manifest, folder: str | Path, *, verdict: Verdict | None = None) -> None:
    """Inputs, outputs, sizes and golden rows of an artifact."""
    console = Console()
    table = Table("", "name", "dtype", "shape of a row", "indexes tables of")
    for spec in manifest.inputs:
        any_id = spec.any_id or (False,) * len(spec.table_high)
        ends = zip(spec.table_high, any_id, strict=True)
        rows = [f"{high + 1}{' or any' * free}" for high, free in ends if high is not None]
        shown = ", ".join(rows[:8]) + (", …" if len(rows) > 8 else "")
        table.add_row("input", spec.name, spec.dtype, str(list(spec.shape)), f"{shown} rows" if rows else "")
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
    Console().print(table)
