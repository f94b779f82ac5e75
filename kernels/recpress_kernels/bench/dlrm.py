"""A whole DLRM beside the best mixes of other libraries on one CPU core: ``python -m recpress_kernels.bench.dlrm``.

26 tables of 100,000 rows of 64 numbers, bottom MLP 13-512-256-64, the 351 dot products of 27 vectors, top MLP
415-1024-1024-512-256-1; dense columns normal, ids uniform. Every variant runs in one process on one thread, each round
in an order drawn anew and on inputs of its own, so that rows come from memory as they do in a server; medians over
rounds. ``ratio_to_best_peer`` is the best peer's median over ours: above 1 we are faster. A peer that is not installed,
refuses, or does not give float32's logits but for what int8 costs, is printed with its reason and left out; 2:4 is
compared with the pruned model in float32, and timed beside peers that run all weights, since none has 2:4 on a CPU.
"""

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import recpress_kernels as rk
from recpress_kernels.bench import dlrm_peers, int8
from recpress_kernels.bench.command import CLOCKS, measure, parser
from recpress_kernels.bench.dlrm_peers import Dlrm, Model
from recpress_kernels.bench.sparse24 import ours_sparse24, prune_stack
from recpress_kernels.formats.rows import quantize_rows_int8

TABLES, ROWS, DIM = 26, 100_000, 64
BOTTOM = [13, 512, 256, DIM]
TOP = [DIM + (TABLES + 1) * TABLES // 2, 1024, 1024, 512, 256, 1]
BATCHES = [1, 16, 64, 256, 1024, 4096]
INPUTS = 16
"""Sets of inputs that the rounds go through."""
LEAST_CORRELATION = 0.9
"""Of a variant's logits with float32's: each is printed, and a variant below this is another model."""
OURS: dict[str, Callable[[nn.Sequential], Callable[[Tensor], Tensor]]] = {
    "recpress 8-bit": partial(int8.ours, weight_bits=8),
    "recpress 7-bit": partial(int8.ours, weight_bits=7),
    "recpress 2:4": partial(ours_sparse24, chosen=True),
}
"""Name: what makes one call of an MLP. 2:4 layers run as 2:4 or dense, as loading an artifact has them."""


def inputs(batch: int, seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """dense float32 ``[batch, 13]`` and ids int64 ``[batch, 26]``."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, BOTTOM[0], generator=g), torch.randint(0, rows, (batch, TABLES), generator=g)


def float_model(rows: int = ROWS) -> Dlrm:
    """The model in float32, its weights normal; ``rows`` of each table."""
    g = torch.Generator().manual_seed(0)
    tables = [torch.randn(rows, DIM, generator=g) * 0.3 for _ in range(TABLES)]
    bottom = nn.Sequential(*int8.float_stack(BOTTOM), nn.ReLU())
    return Dlrm(tables, bottom, int8.float_stack(TOP)).eval()


def ours(model: Dlrm, stack: Callable[[nn.Sequential], Callable[[Tensor], Tensor]]) -> Model:
    """Four calls: the bottom MLP, look-ups that write the vectors, their products, the top MLP."""
    bottom, top = stack(model.bottom[:-1]), stack(model.top)
    tables = rk.RowTables([quantize_rows_int8(table.weight) for table in model.tables])

    def call(dense: Tensor, ids: Tensor) -> Tensor:
        x = bottom(dense).relu_()
        return top(rk.dot_interaction(rk.look_up_rows(tables, ids, x).view(-1, TABLES + 1, DIM), x))

    return call


def pruned(model: Dlrm) -> Dlrm:
    """The float model whose MLPs are 2:4; its tables are those of ``model``."""
    return Dlrm([table.weight for table in model.tables], prune_stack(model.bottom), prune_stack(model.top)).eval()


def variants(rows: int = ROWS) -> dict[str, Model]:
    """All variants on one float model; what cannot be built, or computes something else, is printed and left out."""
    model = float_model(rows)
    dense, ids = inputs(256, 99, rows)
    builders: dict[str, Callable[[], Model]] = {name: lambda s=stack: ours(model, s) for name, stack in OURS.items()}
    builders |= {name: lambda b=build: b(model, dense, ids) for name, build in dlrm_peers.PEERS.items()}
    made = {}
    with torch.no_grad():
        wanted = {name: model(dense, ids) for name in builders} | {"recpress 2:4": pruned(model)(dense, ids)}
        for name, build in builders.items():
            try:
                call = build()
                got = torch.corrcoef(torch.cat([wanted[name], call(dense, ids)], dim=1).T)[0, 1].item()
                if not got >= LEAST_CORRELATION:
                    raise ValueError(f"its logits correlate with float32's by {got:.3f}")
            except Exception as error:  # whatever a foreign library raises means that it is left out, and is said
                if name in OURS:
                    raise
                print(f"{name} left out: {type(error).__name__}: {error}")
                continue
            print(f"{name}: correlation with float32's logits {got:.4f}")
            made[name] = call
    return made


def interleaved(
    made: dict[str, Model], given: list[tuple[Tensor, Tensor]], *, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of a call of each variant; each round calls every one, in an order drawn anew."""
    times: dict[str, list[float]] = {name: [] for name in made}
    order, shuffle = list(made), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    rounds = -1  # the first brings the code into the caches
    while rounds < int8.MIN_ROUNDS or time.perf_counter() < end:
        rounds += 1
        shuffle(order)
        for name in order:
            begin = clock()
            made[name](*given[rounds % len(given)])
            if rounds:
                times[name].append(clock() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def run(*, seconds: float = 3.0, batches: list[int] | None = None, clock: str = "wall", rows: int = ROWS) -> dict:
    """Measure, print a table of ratios, and return ``{machine, kind, rows}``; ``clock`` as in bench/int8.py."""
    torch.set_num_threads(1)
    measured_on = int8.machine() + ("" if clock == "wall" else "; CPU time of the thread")
    print(measured_on)
    made = variants(rows)
    found = []
    for batch in batches or BATCHES:
        given = [inputs(batch, seed, rows) for seed in range(INPUTS)]
        with torch.inference_mode():
            medians = interleaved(made, given, seconds=seconds, clock=CLOCKS[clock])
        found += _report(batch, medians)
    return {"machine": measured_on, "kind": "time", "rows": found}


def _report(batch: int, medians: dict[str, float]) -> list[dict]:
    best = min((t for name, t in medians.items() if name not in OURS), default=None)
    rows = [
        {
            "case": f"dlrm {TABLES} tables",
            "batch": batch,
            "variant": name,
            "median_s": median,
            "ours": name in OURS,
            "ratio_to_best_peer": best / median if best and name in OURS else None,
        }
        for name, median in medians.items()
    ]
    cells = []
    for row in rows:
        ratio = f" {row['ratio_to_best_peer']:.2f}x" if row["ratio_to_best_peer"] else ""
        cells.append(f"{row['variant']} {row['median_s'] * 1e6:.1f} us{ratio}")
    print(f"batch {batch:>5}  " + "; ".join(cells), flush=True)
    return rows


def main(given: list[str] | None = None) -> None:
    """The command line; ``given`` in place of that of the process."""
    options = parser("recpress_kernels.bench.dlrm", __doc__, seconds=3.0, batches=BATCHES)
    options.add_argument("--rows", type=int, default=ROWS, help=f"of each table (default {ROWS})")
    measure(options, run, given)


if __name__ == "__main__":
    main()
