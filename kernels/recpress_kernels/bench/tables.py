"""Look-ups in int8 tables beside other libraries on one CPU core: ``python -m recpress_kernels.bench.tables``.

26 tables of 100,000 rows, uniform indices, bags of one size, pooling "sum"; every variant gives float32
``[batch, 26 * dim]``. Interleaved in one process on one thread, each round with other indices and each variant on its
own tables, so that rows come from memory as they do in a server; medians over rounds. ``ratio_to_best_peer`` is the
best peer's median over ours: above 1 we are faster. Peers that are not installed, or refuse, are printed with their
reason and left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import recpress_kernels as rk
from recpress_kernels.bench import save
from recpress_kernels.bench.int8 import CLOCKS, MIN_ROUNDS, machine
from recpress_kernels.formats.rows import quantize_rows_int8

TABLES, ROWS = 26, 100_000
DIMS = [16, 64, 128]
POOLINGS = [1, 20]
BATCHES = [1, 16, 64, 256, 1024, 4096]
MAX_LOOK_UPS = 4096 * TABLES * 4
INPUTS = 16
"""Sets of indices that the rounds go through."""
OURS = ("recpress bags", "recpress rows")


@dataclass(frozen=True)
class Input:
    """One call's indices in the forms that the variants take."""

    columns: Tensor  # int64 [batch, TABLES]: the first index of each bag
    indices: Tensor  # int64 [TABLES * batch * pooling]
    offsets: Tensor  # int64 [TABLES * batch + 1]
    short: tuple[Tensor, Tensor]  # the two as int32
    by_table: list[tuple[Tensor, Tensor]]  # each table's indices and offsets [batch + 1], int32

    @classmethod
    def draw(cls, batch: int, pooling: int, seed: int) -> "Input":
        """Uniform indices in bags of ``pooling``."""
        indices = torch.randint(0, ROWS, (TABLES, batch, pooling), generator=torch.Generator().manual_seed(seed))
        offsets = torch.arange(TABLES * batch + 1) * pooling
        one = offsets[: batch + 1].int()
        return cls(
            indices[:, :, 0].t().contiguous(),
            indices.flatten(),
            offsets,
            (indices.flatten().int(), offsets.int()),
            [(part.flatten().int(), one) for part in indices],
        )


Variant = Callable[[Input], object]


def variants(dim: int, pooling: int) -> dict[str, Variant]:
    """Each variant on its own tables of ``dim``; what cannot be built is printed and left out."""
    floats = [torch.randn(ROWS, dim, generator=torch.Generator().manual_seed(t)) for t in range(TABLES)]
    made: dict[str, Variant] = {}
    for name, build in _BUILDERS.items():
        if name == "recpress rows" and pooling != 1:
            continue
        try:
            made[name] = build(floats)
            made[name](Input.draw(2, pooling, 0))
        except Exception as error:  # whatever a foreign library raises means that it is left out, and is said
            made.pop(name, None)
            print(f"dim {dim}, pooling {pooling}: {name} left out: {type(error).__name__}: {error}")
    return made


def _bags(floats: list[Tensor]) -> Variant:
    tables = [quantize_rows_int8(t) for t in floats]
    return lambda x: rk.embedding_bag_rows(tables, x.indices, x.offsets)


def _rows(floats: list[Tensor]) -> Variant:
    tables = rk.RowTables([quantize_rows_int8(t) for t in floats])
    return lambda x: rk.look_up_rows(tables, x.columns)


def _torch_int8(floats: list[Tensor]) -> Variant:
    tables = [torch.ops.quantized.embedding_bag_byte_prepack(t) for t in floats]
    look_up = torch.ops.quantized.embedding_bag_byte_rowwise_offsets

    def call(x: Input) -> Tensor:
        bags = zip(tables, x.by_table, strict=True)
        return torch.cat([look_up(t, i, o, include_last_offset=True) for t, (i, o) in bags], dim=1)

    return call


def _torch_float32(floats: list[Tensor]) -> Variant:
    tables = [nn.EmbeddingBag.from_pretrained(t, mode="sum", include_last_offset=True) for t in floats]
    return lambda x: torch.cat([t(i, o) for t, (i, o) in zip(tables, x.by_table, strict=True)], dim=1)


def _fbgemm(floats: list[Tensor]) -> Variant:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    tables = IntNBitTableBatchedEmbeddingBagsCodegen(
        [(str(t), *table.shape, SparseType.INT8, EmbeddingLocation.HOST) for t, table in enumerate(floats)],
        pooling_mode=PoolingMode.SUM,
        output_dtype=SparseType.FP32,
        device="cpu",
    )
    tables.fill_random_weights()
    return lambda x: tables(*x.short)


_BUILDERS: dict[str, Callable[[list[Tensor]], Variant]] = {
    "recpress bags": _bags,
    "recpress rows": _rows,
    "fbgemm table-batched": _fbgemm,
    "torch int8": _torch_int8,
    "torch float32": _torch_float32,
}


def interleaved(
    made: dict[str, Variant], inputs: list[Input], *, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of a call of each variant, a call of each before that of the next round."""
    times: dict[str, list[float]] = {name: [] for name in made}
    end = time.perf_counter() + seconds
    rounds = -1  # the first brings the code into the caches
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, call in made.items():
            x = inputs[rounds % len(inputs)]
            begin = clock()
            call(x)
            if rounds:
                times[name].append(clock() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def run(
    *, seconds: float = 1.0, dims: list[int] | None = None, batches: list[int] | None = None, clock: str = "wall"
) -> dict:
    """Measure, print a table of ratios, and return ``{machine, kind, rows}``; ``clock`` as in bench/int8.py."""
    torch.set_num_threads(1)
    measured_on = machine() + ("" if clock == "wall" else "; CPU time of the thread")
    print(measured_on)
    rows = []
    for dim in dims or DIMS:
        for pooling in POOLINGS:
            made = variants(dim, pooling)
            for batch in batches or BATCHES:
                if batch * TABLES * pooling > MAX_LOOK_UPS:
                    continue
                inputs = [Input.draw(batch, pooling, seed) for seed in range(INPUTS)]
                with torch.inference_mode():
                    medians = interleaved(made, inputs, seconds=seconds, clock=CLOCKS[clock])
                rows += _report(f"{TABLES} x {ROWS} x {dim}, pooling {pooling}", batch, medians)
    return {"machine": measured_on, "kind": "time", "rows": rows}


def _report(case: str, batch: int, medians: dict[str, float]) -> list[dict]:
    best = min((t for name, t in medians.items() if name not in OURS), default=None)
    rows = [
        {
            "case": case,
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
    print(f"{case:32} {batch:>5}  " + ", ".join(cells), flush=True)
    return rows


def main(given: list[str] | None = None) -> None:
    """The command line; ``given`` in place of that of the process."""
    parser = argparse.ArgumentParser(prog="python -m recpress_kernels.bench.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each case and batch (default 1)")
    parser.add_argument("--dims", nargs="*", type=int, help=f"default {DIMS}")
    parser.add_argument("--batches", nargs="*", type=int, help=f"default {BATCHES}")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a core that others use too")
    arguments = parser.parse_args(given)
    result = run(seconds=arguments.seconds, dims=arguments.dims, batches=arguments.batches, clock=arguments.clock)
    if arguments.json:
        save(result, arguments.json)


if __name__ == "__main__":
    main()
