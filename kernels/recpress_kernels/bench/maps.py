"""What a graph's tables cost in one call and one by one, on one CPU core: ``python -m recpress_kernels.bench.maps``.

26 tables of int8 rows as in bench/tables.py. Look-ups whose ids go through a map (out of vocabulary to a row, or that
and a remap of int32) within the call, beside look-ups without and beside a map_ids a table before them; pooled bags of
each table's own ids in one call beside a call a table. Each call has indices of its own, drawn uniformly; the order of
the variants is drawn anew each round; CPU time of the thread, medians.
"""

import argparse
from functools import partial

import torch

import recpress_kernels as rk
from recpress_kernels.bench.command import CLOCKS
from recpress_kernels.bench.int8 import machine
from recpress_kernels.bench.tables import BATCHES, ROWS, TABLES, Input, Variant, interleaved, random_rows
from recpress_kernels.embedding_bag_rows.joined import pool_bags

DIM, BAG = 64, 20


def look_ups(rows: int) -> dict[str, Variant]:
    """Single look-ups with and without maps; ids are inside, so that all read the same rows."""
    tables, remap = random_rows(rows, DIM, 8), torch.randperm(rows, dtype=torch.int32)
    plain = rk.RowTables(tables)
    oov, remapped = ([rk.IdMap(rows, 0, way)] * TABLES for way in (None, remap))

    def one_by_one(maps: list[rk.IdMap], x: Input) -> torch.Tensor:
        ids = [m(x.columns[:, t]) for t, m in enumerate(maps)]
        return rk.look_up_rows(plain, torch.stack(ids, dim=1))

    return {
        "without": lambda x: rk.look_up_rows(plain, x.columns),
        "oov": partial(_look_up, rk.RowTables(tables, None, None, oov)),
        "oov, a call a table": partial(one_by_one, oov),
        "remap": partial(_look_up, rk.RowTables(tables, None, None, remapped)),
        "remap, a call a table": partial(one_by_one, remapped),
    }


def _look_up(tables: rk.RowTables, x: Input) -> torch.Tensor:
    return rk.look_up_rows(tables, x.columns)


def bags(rows: int) -> dict[str, Variant]:
    """Pooled bags of ids that each table has for itself."""
    tables = random_rows(rows, DIM, 8)
    described, op = rk.RowTables(tables), torch.ops.recpress.embedding_bag_rows

    def one_by_one(x: Input) -> torch.Tensor:
        return torch.cat([op([t], i, o) for t, (i, o) in zip(tables, x.by_table, strict=True)], dim=1)

    return {
        "bags, one call": lambda x: pool_bags(described, [i for i, _ in x.by_table], [BAG] * TABLES),
        "bags by offsets, one call": lambda x: pool_bags(described, *zip(*x.by_table, strict=True)),
        "bags, a call a table": one_by_one,
    }


def main(given: list[str] | None = None) -> None:
    """The command line; ``given`` in place of that of the process."""
    parser = argparse.ArgumentParser(prog="python -m recpress_kernels.bench.maps", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each batch (default 2)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of a table (default {ROWS})")
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES, help=f"default {BATCHES}")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    print(f"{machine()}; CPU time of the thread, us")
    for made, pooling in ((look_ups(options.rows), 1), (bags(options.rows), BAG)):
        for batch in options.batches:
            draw = partial(Input.draw, batch, pooling, options.rows)
            with torch.inference_mode():
                medians = interleaved(made, draw, seconds=options.seconds, clock=CLOCKS["cpu"])
            print(f"batch {batch:>5}: " + ", ".join(f"{name} {t * 1e6:.1f}" for name, t in medians.items()), flush=True)


if __name__ == "__main__":
    main()
