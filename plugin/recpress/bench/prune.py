"""What pruning brings in time and bytes: ``recpress bench prune [--seconds 2] [--json FILE]``.

"structured": half of the hidden units are removed, and the linear layers with their activations are timed before and
after in plain torch, without a kernel of ours; on the MLPs of a DLRM of 26 tables and on the models of the zoo.
``ratio`` is the time before over that after.

"combined": that DLRM with 2:4 weights, int8 and rows of int8 or int4, its bytes over float32's, and its time as loaded
from the artifact beside int8 alone: ``ratio`` is the time of int8 on the same rows of tables over the recipe's.

All variants of a comparison run in one process on one thread, in an order drawn anew each round and on inputs of their
own; medians over rounds. Weights are as they are initialised, since time and bytes do not depend on their values; what
they cost in quality ``recpress bench quality`` tells. Above 1 pruning is faster; what misses its target is said.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from recpress.artifact.export import export
from recpress.artifact.load import load
from recpress.bench import quantize
from recpress.bench.clicks import MODELS
from recpress.pipeline import compress
from recpress.pruning.oneshot import prune
from recpress.pruning.spec import PruneSpec
from recpress.recipe import Recipe
from recpress_kernels.bench import dlrm, save
from recpress_kernels.bench.int8 import CLOCKS, machine

BATCHES = [1, 8, 64, 256, 1024]
CALIBRATION_ROWS = 1024
SPEEDUP = 1.7
"""Of the dense part with half of its units."""
COMBINED = {"prune-24-int8": ("int8", 0.27), "prune-24-int8-tables4": ("int8-tables4", 0.15)}
"""Recipe: what it is timed beside, on the same rows of tables, and the share of float32's bytes that it may take."""
BIG = "dlrm of 26 tables"
ZOO_DENSE, ZOO_ROWS = 25, (943, 1682, 2, 21, 19)
"""Columns and tables as MovieLens-100K gives them."""


def structured(*, seconds: float, batches: Sequence[int], clock: str, cases: Sequence[str]) -> Iterator[dict]:
    """A row for each model of ``cases`` and batch: seconds of the dense part before and after, and their ratio."""
    for case in cases:
        torch.manual_seed(0)
        model = _model(case)
        spec = PruneSpec(pattern="units", sparsity=0.5)
        made = prune(model, spec, calibration=[_inputs(case, CALIBRATION_ROWS, 99)]).model
        sides = {"before": dense_part(model), "after": dense_part(made)}
        parameters = {
            name: sum(p.numel() for part in parts for p in part.parameters()) for name, parts in sides.items()
        }
        calls = {name: _in_turn(parts) for name, parts in sides.items()}
        for batch in batches:
            given = [_given(model, _inputs(case, batch, seed)) for seed in range(dlrm.INPUTS)]
            with torch.inference_mode():
                medians = dlrm.interleaved(calls, given, seconds=seconds, clock=CLOCKS[clock])
            ratio = medians["before"] / medians["after"]
            yield {
                "what": "structured",
                "case": case,
                "batch": batch,
                "before_s": medians["before"],
                "after_s": medians["after"],
                "ratio": ratio,
                "target": SPEEDUP,
                "parameters_gone": 1 - parameters["after"] / parameters["before"],
            }


def combined(*, seconds: float, batches: Sequence[int], clock: str, rows: int) -> Iterator[dict]:
    """For each recipe of :data:`COMBINED` a row of bytes, and one a batch of its time; ``rows`` of each table."""
    model = quantize.dlrm(rows)
    before = sum(p.nbytes for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for name in dict.fromkeys(name for pair, (plain, _) in COMBINED.items() for name in (plain, pair)):
            # By range rows of int4 take the same bytes and time, and 7 s less to make than by the greedy search.
            recipe = Recipe.preset(name).model_copy(update={"embedding_search": "range"})
            made, path = compress(model, recipe), Path(folder, name)
            export(made, path, example_inputs=dlrm.inputs(8, 0, rows), input_names=("dense", "ids"))
            calls[name] = load(path).module
            if name in COMBINED:
                yield {
                    "what": "bytes",
                    "case": name,
                    "ratio": made.report.bytes_after / before,
                    "target": COMBINED[name][1],
                }
        del model
        for batch in batches:
            given = [dlrm.inputs(batch, seed, rows) for seed in range(dlrm.INPUTS)]
            with torch.inference_mode():
                medians = dlrm.interleaved(calls, given, seconds=seconds, clock=CLOCKS[clock])
            for name, (plain, _) in COMBINED.items():
                times = {"before_s": medians[plain], "after_s": medians[name]}
                ratio = medians[plain] / medians[name]
                yield {"what": "combined", "case": name, "batch": batch, **times, "ratio": ratio, "target": 1.0}


def dense_part(model: nn.Module) -> list[nn.Module]:
    """The MLPs of ``model``, each an ``nn.Sequential``, and the linear layers that are in none of them."""
    stacks = [module for module in model.modules() if isinstance(module, nn.Sequential)]
    inside = {layer for stack in stacks for layer in stack.modules()}
    return stacks + [module for module in model.modules() if type(module) is nn.Linear and module not in inside]


def _in_turn(parts: list[nn.Module]) -> Callable[..., list[Tensor]]:
    return lambda *inputs: [part(x) for part, x in zip(parts, inputs, strict=True)]


def _given(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """What ``model`` gives each part of its dense part."""
    parts, seen = dense_part(model), {}
    hooks = [part.register_forward_pre_hook(lambda part, given: seen.update({part: given[0]})) for part in parts]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return [seen[part] for part in parts]


def _model(case: str) -> nn.Module:
    if case == BIG:
        return quantize.dlrm(CALIBRATION_ROWS).eval()
    sizes = {"num_dense": ZOO_DENSE, "table_rows": ZOO_ROWS}
    if case == "two-tower":
        sizes |= {"item_dense": range(3, ZOO_DENSE), "item_tables": [1]}
    return MODELS[case](**sizes).eval()


def _inputs(case: str, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    if case == BIG:
        return dlrm.inputs(batch, seed, CALIBRATION_ROWS)
    g = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, rows, (batch,), generator=g) for rows in ZOO_ROWS]
    return torch.randn(batch, ZOO_DENSE, generator=g), torch.stack(ids, dim=1)


def line(row: dict) -> str:
    """One row for people, with its target where it misses it."""
    if row["what"] == "bytes":
        text = f"bytes      {row['case']:22} {row['ratio']:.2%} of float32's"
        return text + ("" if row["ratio"] <= row["target"] else f"  MISSES {row['target']:.0%}")
    times = f"{row['before_s'] * 1e6:10.1f} us to {row['after_s'] * 1e6:10.1f} us  {row['ratio']:.2f}x"
    text = f"{row['what']:10} {row['case']:22} batch {row['batch']:>4}  {times}"
    if "parameters_gone" in row:
        text += f"  (parameters gone {row['parameters_gone']:.0%})"
    return text + ("" if row["ratio"] >= row["target"] else f"  MISSES {row['target']}x")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``recpress bench prune``."""
    parser = argparse.ArgumentParser(prog="recpress bench prune", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each model and batch (default 2)")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--cases", nargs="*", choices=[BIG, *MODELS], default=[BIG, *MODELS], help="of structured")
    parser.add_argument("--rows", type=int, default=dlrm.ROWS, help="of each table of the combined recipe")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a core that others use too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured_on = machine() + ("" if given.clock == "wall" else "; CPU time of the thread")
    print(measured_on)
    options = {"seconds": given.seconds, "batches": given.batches, "clock": given.clock}
    rows = []
    for found in (structured(**options, cases=given.cases), combined(**options, rows=given.rows)):
        for row in found:
            print(line(row), flush=True)
            rows.append(row)
    if given.json:
        save({"machine": measured_on, "kind": "time", "rows": rows}, given.json)
