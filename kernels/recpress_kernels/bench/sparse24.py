"""int8 2:4 beside dense int8 and other libraries on a CPU: ``python -m recpress_kernels.bench.sparse24 [--json FILE]``.

Stacks and single layers of normally distributed weights: "dense" is our 8-bit kernel on all weights, "2:4" ours on the
two largest of each four; no library has a 2:4 path on the CPU, so the peers run the dense stack in int8. Interleaved in
one process on one thread in an order drawn anew each round, medians over rounds. ``ratio_to_dense`` is our dense
median over that of 2:4 and ``ratio_to_best_peer`` the best peer's over ours: above 1 we are faster. ``--isa`` limits
our kernels alone: peers take what the CPU has, so compare with them on the best instruction set.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.bench.command import CLOCKS, measure, parser
from recpress_kernels.bench.int8 import BATCHES, STACKS, float_stack, interleaved, machine, ours, rivals
from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.formats.sparse24 import compress

# Single layers: of useful sizes, and those that 2:4 has least to give to.
LAYERS = {
    f"layer {k}-{n}": [k, n]
    for k, n in ((1024, 1024), (479, 1024), (256, 256), (64, 64), (13, 512), (1024, 16), (256, 1))
}
DENSE, SPARSE = "recpress dense 8-bit", "recpress 2:4 8-bit"


def prune(weight: Tensor) -> Tensor:
    """Float ``weight`` ``[N, K]`` with all but the two largest of each four inputs set to zero."""
    n, k = weight.shape
    fours = nn.functional.pad(weight.detach(), (0, -k % 4)).view(n, -1, 4)
    kept = fours.abs().argsort(dim=2, descending=True)[..., :2]
    return torch.zeros_like(fours).scatter(2, kept, fours.gather(2, kept)).view(n, -1)[:, :k].contiguous()


def prune_stack(stack: nn.Sequential) -> nn.Sequential:
    """``stack`` with the weights of its linear layers pruned."""
    new = copy.deepcopy(stack)
    for module in new:
        if isinstance(module, nn.Linear):
            module.weight.data = prune(module.weight)
    return new


def ours_sparse24(stack: nn.Sequential, chosen: bool = False) -> Callable[[Tensor], Tensor]:
    """The pruned stack with 2:4 weights in one call of ``int8_mlp_packed``; ``chosen``: where 2:4 pays, else dense."""
    linears = [m for m in prune_stack(stack) if isinstance(m, nn.Linear)]
    pairs = [quantize_per_channel(m.weight) for m in linears]
    weights = [compress(q) for q, _ in pairs]
    packed = rk.pack_stack(
        rk.choose_stack(weights)[0] if chosen else weights,
        [scale for _, scale in pairs],
        [m.bias.detach() for m in linears],
        ["relu"] * (len(linears) - 1) + ["none"],
    )
    out_features = linears[-1].out_features
    return lambda x: rk.int8_mlp_packed(x, packed, out_features)


def run(
    *,
    seconds: float = 1.0,
    cases: list[str] | None = None,
    batches: list[int] | None = None,
    clock: str = "wall",
    isa: str | None = None,
) -> dict:
    """Measure, print a table of ratios, and return ``{machine, kind, rows}``; ``isa`` None is the best of this CPU."""
    torch.set_num_threads(1)
    rows = []
    with native.use_isa(isa) if isa else nullcontext():
        measured_on = machine() + ("" if clock == "wall" else "; CPU time of the thread")
        print(measured_on)
        for case, widths in (STACKS | LAYERS).items():
            if cases and not any(case.startswith(c) for c in cases):
                continue
            stack = float_stack(widths)
            variants = {DENSE: ours(stack, 8), SPARSE: ours_sparse24(stack)} | rivals(case, stack)
            for batch in batches or BATCHES:
                x = torch.randn(batch, widths[0], generator=torch.Generator().manual_seed(batch))
                with torch.inference_mode():
                    medians = interleaved(variants, x, seconds=seconds, clock=CLOCKS[clock])
                rows += _rows(case, batch, medians)
    _print_table(rows)
    return {"machine": measured_on, "kind": "time", "rows": rows}


def _rows(case: str, batch: int, medians: dict[str, float]) -> list[dict]:
    best = min((t for name, t in medians.items() if name not in (DENSE, SPARSE)), default=None)
    return [
        {
            "case": case,
            "batch": batch,
            "variant": name,
            "median_s": median,
            "ours": name in (DENSE, SPARSE),
            "ratio_to_best_peer": best / median if best and name in (DENSE, SPARSE) else None,
            "ratio_to_dense": medians[DENSE] / median if name == SPARSE else None,
        }
        for name, median in medians.items()
    ]


def _print_table(rows: list[dict]) -> None:
    head = f"{'case':30} {'batch':>6} {'dense us':>10} {'2:4 us':>10} {'over dense':>11} {'over best peer':>15}"
    print(f"\n{head}   best peer")
    for case, batch in dict.fromkeys((r["case"], r["batch"]) for r in rows):
        here = {r["variant"]: r for r in rows if (r["case"], r["batch"]) == (case, batch)}
        dense, sparse = here.pop(DENSE), here.pop(SPARSE)
        rival = min(here.values(), key=lambda r: r["median_s"], default=None)
        over = f"{sparse['ratio_to_best_peer']:>14.2f}x" if rival else f"{'':>15}"
        named = f"{rival['variant']} {rival['median_s'] * 1e6:.1f} us" if rival else "none"
        times = " ".join(f"{r['median_s'] * 1e6:>10.1f}" for r in (dense, sparse))
        print(f"{case:30} {batch:>6} {times} {sparse['ratio_to_dense']:>10.2f}x {over}   {named}")


def main(given: list[str] | None = None) -> None:
    """The command line; ``given`` in place of that of the process."""
    options = parser("recpress_kernels.bench.sparse24", __doc__, seconds=1.0, batches=BATCHES)
    options.add_argument("--cases", nargs="*", help="cases by the start of their names: top, bottom, cross, ffn, layer")
    options.add_argument("--isa", choices=native.isas(), help="instruction set; the best of this CPU by default")
    measure(options, run, given)


if __name__ == "__main__":
    main()
