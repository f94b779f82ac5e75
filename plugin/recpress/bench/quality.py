"""What compression costs in quality: ``recpress bench quality [--data FOLDER] [--seeds 0 1 2] [--json FILE]``.

Models are trained in float32 on real data, compressed in several ways, and judged on the same test rows as their
originals. For each: the ratio of AUC, or of HR@10 and NDCG@10, to the original's and the 95 % interval of the paired
difference; logloss and calibration over the original's; bytes, and the least that the formats allow. What breaks a
promise is printed as failing, and the worst of the seeds is repeated at the end. What is pruned is distilled for at
most a fifth of the optimiser's steps that the original's training took, the passes in which early stopping waits
included, and for three fifths where half of the units are gone: both numbers are in its row. The "dense control" is the
original after the same training.

Sets are ml-100k, which is fetched as the demo fetches it, and of the folder given ml-latest-small (ratings.csv and
movies.csv) and video (Video.txt as SASRec's authors have it), each as it is or as gzip. A set that is not there is left
out with its reason. Trained weights are kept, so that a second run reads them.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from recpress.bench.clicks import MODELS, Clicks
from recpress.bench.promises import Compared, Promise, promises
from recpress.bench.ranking import Ranks
from recpress.bench.variants import POST_TRAINING, VARIANTS, Made, Variant, gone, least_bytes, variant
from recpress.data import movielens, movielens_small, sequences
from recpress.errors import DataError, PruningError
from recpress_kernels.bench import save
from recpress_kernels.bench.int8 import machine

SETS = ("ml-100k", "ml-latest-small", "video")
ALL_MODELS = (*MODELS, "sasrec")


@dataclass(frozen=True)
class Row:
    """One variant of one model: what was measured and which promises it keeps.

    ``gone`` is the share of the linear layers' parameters that was pruned, ``steps`` are the optimiser's, ``against``
    is the comparison with another variant, by its name, and ``seconds`` are of the compression.
    """

    set: str
    model: str
    seed: int
    variant: str
    compared: Compared
    bytes_before: int
    bytes_after: int
    bytes_least: int
    gone: float
    steps: int
    steps_original: int
    seconds: float
    promises: tuple[Promise, ...]
    against: tuple[str, Compared] | None = None

    @property
    def failing(self) -> list[Promise]:
        return [promise for promise in self.promises if not promise.kept]


def sets(
    folder: Path | None, wanted: Sequence[str] = SETS, *, dim: int = 16, say: Callable[[str], object] = print
) -> list[Clicks | Ranks]:
    """The sets wanted; one that is not there is left out, and ``say`` is told why."""
    made = {
        "ml-100k": lambda: Clicks("ml-100k", movielens.load(), dim),
        "ml-latest-small": lambda: Clicks("ml-latest-small", movielens_small.load(_given(folder)), dim),
        "video": lambda: Ranks.of("video", sequences.load(_given(folder))),
    }
    found = []
    for name in wanted:
        try:
            found.append(made[name]())
        except DataError as error:
            say(f"{name} left out: {error}")
    return found


def run(
    given: Sequence[Clicks | Ranks],
    *,
    seeds: Sequence[int],
    variants: dict[str, Variant],
    folder: Path,
    models: Sequence[str] = ALL_MODELS,
    say: Callable[[str], object] = print,
) -> Iterator[Row]:
    """Each row as soon as it is measured; weights of trained models are kept in ``folder``."""
    for study in given:
        for name in (name for name in study.models if name in models):
            for seed in seeds:
                start = time.perf_counter()
                model, kept = study.train(name, seed, folder)
                how = "read" if kept.read else f"trained in {time.perf_counter() - start:.0f} s"
                how += f", {kept.steps} steps"
                before = study.score(model)
                itself = study.compare(before, before)
                figures = [f"{metric} {paired.before:.5f}" for metric, paired in itself.metrics.items()]
                figures += [f"{level} {values[0]:.5f}" for level, values in itself.levels.items()]
                say(f"{study.name} {name} seed {seed}: {how}; original: {', '.join(figures)}")
                yield from _Original(study, name, seed, model, kept.steps, before).rows(variants, say)


@dataclass(frozen=True)
class _Original:
    """A trained model of a study, what its training took, and its scores of the test rows."""

    study: Clicks | Ranks
    name: str
    seed: int
    model: nn.Module
    steps: int
    scores: object

    def rows(self, variants: dict[str, Variant], say: Callable[[str], object]) -> Iterator[Row]:
        """A row of each variant, and of the control of those that have one."""
        made: dict[str, Made] = {}
        scores: dict[str, object] = {}
        for label, way in variants.items():
            start = time.perf_counter()
            try:
                made[label] = self._apply(label, way, made)
            except PruningError as error:
                say(f"  {label} left out: {error}")
                continue
            seconds = time.perf_counter() - start
            scores[label] = self.study.score(made[label].model)
            versus = (way.against, scores[way.against]) if way.against in scores else None
            if made[label].control is not None:
                control = Made(made[label].control, made[label].report, made[label].steps)
                yield self._row("dense control", way, control, self.study.score(control.model), seconds, None)
            yield self._row(label, way, made[label], scores[label], seconds, versus)

    def _apply(self, label: str, way: Variant, made: dict[str, Made]) -> Made:
        if way.after and way.after not in made:
            made[way.after] = self._apply(way.after, VARIANTS[way.after], made)
        return way.apply(self.model, self.study, self.steps, made)

    def _row(
        self, label: str, way: Variant, made: Made, scores: object, seconds: float, versus: tuple[str, object] | None
    ) -> Row:
        compared = self.study.compare(self.scores, scores)
        before = sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))
        size = before, made.report.bytes_after, min(least_bytes(self.model, way.recipe), made.report.bytes_after)
        shares = {"gone": gone(self.model, made.pruning), "steps": made.steps / self.steps}
        ratios = {"bytes_ratio": size[1] / size[0], "over_least": size[1] / size[2]}
        held = promises(compared, way.bounds, **ratios, **shares)
        against = None if versus is None else (versus[0], self.study.compare(versus[1], scores))
        counts = made.steps, self.steps
        return Row(
            *(self.study.name, self.name, self.seed, label, compared, *size, shares["gone"], *counts, seconds),
            *(tuple(held), against),
        )


def line(row: Row) -> str:
    """One row for people; percentages are of the original's figure."""
    cells = [f"  {row.variant:21}", *_intervals(row.compared)]
    cells += [f"{name} {row.compared.change(name):8.3%}" for name in row.compared.levels]
    before = row.bytes_before
    cells.append(f"bytes {row.bytes_after / before:.1%} (least {row.bytes_least / before:.1%})")
    if row.gone:
        cells.append(f"parameters gone {row.gone:.1%}")
    if row.steps:
        cells.append(f"steps {row.steps} of {row.steps_original}")
    if row.against:
        cells.append(f"against {row.against[0]}: {', '.join(_intervals(row.against[1]))}")
    return "  ".join(cells) + "  " + _verdict(row.failing)


def _intervals(compared: Compared) -> list[str]:
    cells = []
    for name, paired in compared.metrics.items():
        low, high = (100 * end / paired.before for end in (paired.low, paired.high))
        cells.append(f"{name} {paired.ratio:9.3%} [{low:+.3f}, {high:+.3f}]")
    return cells


def summary(rows: Sequence[Row]) -> list[str]:
    """A Markdown table of the worst of the seeds of each set, model and variant."""
    lines = [
        "| set | model | variant | AUC, or HR@10 / NDCG@10 | logloss | calibration | bytes (least) | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row.set, row.model, row.variant) for row in rows):
        runs = [row for row in rows if (row.set, row.model, row.variant) == key]
        compared = [row.compared for row in runs]
        metrics = [f"{min(c.metrics[name].ratio for c in compared):.3%}" for name in compared[0].metrics]
        levels = {name: [c.change(name) for c in compared] for name in compared[0].levels}
        worst = {
            "logloss": max(levels.get("logloss", ()), default=None),
            "calibration": max(levels.get("calibration", ()), default=None, key=lambda ratio: abs(ratio - 1)),
        }
        size = max(runs, key=lambda row: row.bytes_after / row.bytes_before)
        ratios = f"{size.bytes_after / size.bytes_before:.1%} ({size.bytes_least / size.bytes_before:.1%})"
        failing = [f"{promise.name} in {_seeds(runs, promise.name)}" for promise in _first_of_each(runs)]
        cells = [*key, " / ".join(metrics), *("" if v is None else f"{v:.3%}" for v in worst.values()), ratios]
        lines.append(f"| {' | '.join(cells)} | {'FAILS: ' + ', '.join(failing) if failing else 'kept'} |")
    return lines


def _first_of_each(runs: Sequence[Row]) -> list[Promise]:
    return list({promise.name: promise for row in runs for promise in row.failing}.values())


def _seeds(runs: Sequence[Row], name: str) -> str:
    broken = sum(any(promise.name == name for promise in row.failing) for row in runs)
    return f"{broken} of {len(runs)}"


def _verdict(failing: Sequence[Promise]) -> str:
    if not failing:
        return "kept"
    return "FAILS: " + ", ".join(f"{p.name} {p.value:.3%} (promised {p.bound:.3%})" for p in failing)


def _given(folder: Path | None) -> Path:
    if folder is None:
        raise DataError("give the folder that holds its files by --data FOLDER")
    return folder


def _as_json(row: Row) -> dict:
    metrics = _metrics(row.compared)
    levels = {
        name: {"before": before, "after": after, "ratio": after / before}
        for name, (before, after) in row.compared.levels.items()
    }
    plain = {name: value for name, value in asdict(row).items() if name not in ("compared", "promises", "against")}
    against = {} if row.against is None else {"against": {"variant": row.against[0]} | _metrics(row.against[1])}
    return plain | metrics | levels | against | {"promises": [asdict(promise) for promise in row.promises]}


def _metrics(compared: Compared) -> dict[str, dict[str, float]]:
    return {
        name: asdict(paired) | {"difference": paired.difference, "ratio": paired.ratio}
        for name, paired in compared.metrics.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench quality``."""
    parser = argparse.ArgumentParser(prog="recpress bench quality", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="holds ratings.csv, movies.csv, Video.txt, or .gz")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--models", nargs="+", choices=ALL_MODELS, default=ALL_MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=POST_TRAINING,
        metavar="RECIPE",
        help=f"of {', '.join(VARIANTS)}, other presets, and YAML files (default: those that train nothing)",
    )
    parser.add_argument("--dim", type=int, default=16, help="numbers a row of the tables, of SASRec always 50")
    parser.add_argument("--cache", type=Path, help="folder of trained weights (default ~/.cache/recpress/quality)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    variants = {name: variant(name) for name in given.recipes}
    folder = given.cache or movielens.default_cache() / "quality"
    found = sets(given.data, given.sets, dim=given.dim)
    rows = []
    for row in run(found, seeds=given.seeds, variants=variants, folder=folder, models=given.models):
        print(line(row), flush=True)
        rows.append(row)
    print("\nThe worst of the seeds:\n\n" + "\n".join(summary(rows)))
    broken = sum(bool(row.failing) for row in rows)
    print(f"\n{broken} of {len(rows)} rows break a promise.")
    if given.json:
        save({"machine": machine(), "kind": "quality", "rows": [_as_json(row) for row in rows]}, given.json)
