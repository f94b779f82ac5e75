"""Look-ups in quantised tables beside other libraries on one CPU core: ``python -m recpress_kernels.bench.tables``.

26 tables, uniform indices, bags of one size, pooling "sum"; every variant gives float32 ``[batch, 26 * dim]``. All in
one process on one thread, interleaved, their order and their indices drawn anew each round, each library on its own
tables, so that rows come from memory as they do in a server; medians over rounds. ``ratio_to_best_peer`` is the best
peer's median over ours: above 1 we are faster. int8 and int4 are compared with peers of the same bits. Peers that
are not installed, or refuse, are printed with their reason and left out; float32 tables beyond 2 GiB are left out too.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import recpress_kernels as rk
from recpress_kernels.bench.command import CLOCKS, measure, parser
from recpress_kernels.bench.int8 import MIN_ROUNDS, machine
from recpress_kernels.formats.rows import row_bytes

TABLES, ROWS = 26, 100_000
DIMS = [16, 64, 128]
POOLINGS = [1, 20]
BATCHES = [1, 16, 64, 256, 1024, 4096]
BITS = [8, 4]
MAX_FLOAT_BYTES = 2 << 30
OURS = "recpress"


@dataclass(frozen=True)
class Input:
    """One call's indices in the forms that the variants take."""

    columns: Tensor  # int64 [batch, TABLES]: the first index of each bag
    batched: tuple[Tensor, Tensor]  # all tables' indices and offsets, int32
    by_table: list[tuple[Tensor, Tensor]]  # each table's indices and offsets [batch + 1], int32

    @classmethod
    def draw(cls, batch: int, pooling: int, rows: int, generator: torch.Generator) -> "Input":
        """Uniform indices in bags of ``pooling``."""
        indices = torch.randint(0, rows, (TABLES, batch, pooling), generator=generator)
        offsets = torch.arange(TABLES * batch + 1, dtype=torch.int32) * pooling
        one = offsets[: batch + 1]
        return cls(
            indices[:, :, 0].t().contiguous(),
            (indices.flatten().int(), offsets),
            [(part.flatten().int(), one) for part in indices],
        )


Variant = Callable[[Input], object]


def random_rows(rows: int, dim: int, bits: int) -> list[Tensor]:
    """Tables of random codes made as bytes: from floats they would take 13 GB at 26 x 1M x 128."""
    width = row_bytes(dim, bits)
    block = torch.randint(0, 256, (1 << 14, width), dtype=torch.uint8)
    block[:, -4:] = torch.tensor([0.01, -1.0], dtype=torch.float16).view(torch.uint8)
    times = -(-rows // len(block))
    return [block.repeat(times, 1)[:rows] for _ in range(TABLES)]


def variants(rows: int, dim: int, pooling: int, bits: int) -> dict[str, Variant]:
    """Each variant of ``bits`` on tables of its library; what cannot be built is printed and left out."""
    ours = random_rows(rows, dim, bits)
    dims = [dim] * TABLES
    builders: dict[str, Callable[[], Variant]] = {
        f"{OURS} bags": partial(_bags, rk.RowTables(ours, None, dims)),
        f"{OURS} list": partial(_list, ours, dims),
        "fbgemm table-batched": partial(_fbgemm, rows, dim, bits),
        f"torch int{bits}": partial(_torch_rows, rows, dim, bits),
    }
    if pooling == 1:
        builders[f"{OURS} rows"] = partial(_rows, rk.RowTables(ours, None, dims))
    if bits == 8:
        builders["torch float32"] = partial(_torch_float32, rows, dim)
    made: dict[str, Variant] = {}
    for name, build in builders.items():
        try:
            made[name] = build()
            made[name](Input.draw(2, pooling, rows, torch.Generator()))
        except Exception as error:  # whatever a foreign library raises means that it is left out, and is said
            made.pop(name, None)
            print(f"dim {dim}, pooling {pooling}: {name} left out: {type(error).__name__}: {error}")
    return made


def _bags(tables: rk.RowTables) -> Variant:
    return lambda x: rk.embedding_bag_rows(tables, *x.batched)


def _list(tables: list[Tensor], dims: list[int]) -> Variant:
    return lambda x: rk.embedding_bag_rows(tables, *x.batched, "sum", None, dims)


def _rows(tables: rk.RowTables) -> Variant:
    return lambda x: rk.look_up_rows(tables, x.columns)


def _torch_rows(rows: int, dim: int, bits: int) -> Variant:
    ops = torch.ops.quantized
    prepack = ops.embedding_bag_byte_prepack if bits == 8 else ops.embedding_bag_4bit_prepack
    look_up = ops.embedding_bag_byte_rowwise_offsets if bits == 8 else ops.embedding_bag_4bit_rowwise_offsets
    block = prepack(torch.randn(1 << 14, dim))
    tables = [block.repeat(-(-rows // len(block)), 1)[:rows] for _ in range(TABLES)]

    def call(x: Input) -> Tensor:
        bags = zip(tables, x.by_table, strict=True)
        return torch.cat([look_up(t, i, o, include_last_offset=True) for t, (i, o) in bags], dim=1)

    return call


def _torch_float32(rows: int, dim: int) -> Variant:
    if TABLES * rows * dim * 4 > MAX_FLOAT_BYTES:
        raise MemoryError(f"its tables take {TABLES * rows * dim * 4 / 1e9:.1f} GB")
    block = torch.randn(1 << 14, dim)
    weights = [block.repeat(-(-rows // len(block)), 1)[:rows] for _ in range(TABLES)]
    tables = [nn.EmbeddingBag.from_pretrained(t, mode="sum", include_last_offset=True) for t in weights]
    return lambda x: torch.cat([t(i, o) for t, (i, o) in zip(tables, x.by_table, strict=True)], dim=1)


def _fbgemm(rows: int, dim: int, bits: int) -> Variant:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    kind = SparseType.INT8 if bits == 8 else SparseType.INT4
    tables = IntNBitTableBatchedEmbeddingBagsCodegen(
        [(str(t), rows, dim, kind, EmbeddingLocation.HOST) for t in range(TABLES)],
        pooling_mode=PoolingMode.SUM,
        output_dtype=SparseType.FP32,
        device="cpu",
    )
    tables.fill_random_weights()
    return lambda x: tables(*x.batched)


def interleaved(
    made: dict[str, Variant],
    draw: Callable[[torch.Generator], Input],
    *,
    seconds: float,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Median seconds of a call of each variant; each round has an order of its own, and each call indices of its own.

    Variants of one library share tables: with the same indices, the second would find the rows in the cache.
    """
    times: dict[str, list[float]] = {name: [] for name in made}
    end = time.perf_counter() + seconds
    rounds = -1  # the first brings the code into the caches
    shuffle, generator = random.Random(0), torch.Generator().manual_seed(0)
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name in shuffle.sample(sorted(made), len(made)):
            x = draw(generator)
            begin = clock()
            made[name](x)
            if rounds:
                times[name].append(clock() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def run(
    *,
    seconds: float = 1.0,
    rows: int = ROWS,
    dims: list[int] | None = None,
    batches: list[int] | None = None,
    poolings: list[int] | None = None,
    bits: list[int] | None = None,
    clock: str = "wall",
) -> dict:
    """Measure, print a table of ratios, and return ``{machine, kind, rows}``; ``clock`` as in bench/int8.py."""
    torch.set_num_threads(1)
    measured_on = machine() + ("" if clock == "wall" else "; CPU time of the thread")
    print(measured_on)
    found = []
    cases = [(d, p, b) for d in dims or DIMS for p in poolings or POOLINGS for b in bits or BITS]
    for dim, pooling, code_bits in cases:
        made = variants(rows, dim, pooling, code_bits)
        for batch in batches or BATCHES:
            with torch.inference_mode():
                medians = interleaved(
                    made, partial(Input.draw, batch, pooling, rows), seconds=seconds, clock=CLOCKS[clock]
                )
            found += _report(f"{TABLES} x {rows} x {dim}, int{code_bits}, pooling {pooling}", batch, medians)
    return {"machine": measured_on, "kind": "time", "rows": found}


def _report(case: str, batch: int, medians: dict[str, float]) -> list[dict]:
    best = min((t for name, t in medians.items() if not name.startswith(OURS)), default=None)
    rows = [
        {
            "case": case,
            "batch": batch,
            "variant": name,
            "median_s": median,
            "ours": name.startswith(OURS),
            "ratio_to_best_peer": best / median if best and name.startswith(OURS) else None,
        }
        for name, median in medians.items()
    ]
    cells = []
    for row in rows:
        ratio = f" {row['ratio_to_best_peer']:.2f}x" if row["ratio_to_best_peer"] else ""
        cells.append(f"{row['variant']} {row['median_s'] * 1e6:.1f} us{ratio}")
    print(f"{case:38} {batch:>5}  " + ", ".join(cells), flush=True)
    return rows


def main(given: list[str] | None = None) -> None:
    """The command line; ``given`` in place of that of the process."""
    options = parser("recpress_kernels.bench.tables", __doc__, seconds=1.0, batches=BATCHES)
    options.add_argument("--rows", type=int, default=ROWS, help=f"of a table (default {ROWS})")
    options.add_argument("--dims", nargs="*", type=int, help=f"default {DIMS}")
    options.add_argument("--poolings", nargs="*", type=int, help=f"default {POOLINGS}")
    options.add_argument("--bits", nargs="*", type=int, choices=BITS, help=f"default {BITS}")
    measure(options, run, given)


if __name__ == "__main__":
    main()
