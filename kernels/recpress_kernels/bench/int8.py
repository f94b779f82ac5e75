"""Int8 stacks beside the best libraries on one CPU core: ``python -m recpress_kernels.bench.int8 [--json FILE]``.

Every variant runs in one process on one thread, interleaved round by round in an order drawn anew, so that a change of
the machine's state meets all of them; medians over rounds. ``ratio_to_best_peer`` is the best peer's median over ours:
above 1 we are faster. Peers that are not installed, or refuse, are printed with their reason and left out.
"""

import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.bench import peers
from recpress_kernels.bench.command import CLOCKS, measure, parser
from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.machine import processor

STACKS = {
    "top 479-1024-1024-512-256-1": [479, 1024, 1024, 512, 256, 1],
    "bottom 13-512-256-128": [13, 512, 256, 128],
    "cross 1024-512-1024": [1024, 512, 1024],
    "ffn 256-256-1024-256": [256, 256, 1024, 256],
}
BATCHES = [1, 16, 64, 256, 1024]
# Name: bits of a weight, and the weights' distribution. Of 8-bit weights that are normal, as trained ones are more or
# less, most pair in 16 bits; of uniform ones, as nn.Linear initialises them, none do.
OURS = {
    "recpress 8-bit": (8, "normal"),
    "recpress 7-bit": (7, "normal"),
    "recpress 8-bit, uniform": (8, "uniform"),
}
MIN_ROUNDS = 9


def float_stack(widths: list[int], distribution: str = "normal") -> nn.Sequential:
    """Linear layers with ReLU between them, weights "normal" or "uniform" of He's variance, 2 / K."""
    g = torch.Generator().manual_seed(0)
    modules = []
    for k, n in pairwise(widths):
        linear = nn.Linear(k, n)
        if distribution == "normal":
            linear.weight.data = torch.randn(n, k, generator=g) * (2 / k) ** 0.5
        else:
            linear.weight.data = (torch.rand(n, k, generator=g) * 2 - 1) * (6 / k) ** 0.5
        linear.bias.data = torch.randn(n, generator=g) * 0.1
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def ours(stack: nn.Sequential, weight_bits: int) -> Callable[[Tensor], Tensor]:
    """The stack in one call of ``int8_mlp_packed``; without native kernels, of ``int8_mlp``."""
    linears = [m for m in stack if isinstance(m, nn.Linear)]
    pairs = [quantize_per_channel(m.weight, weight_bits=weight_bits) for m in linears]
    operands = (
        [q for q, _ in pairs],
        [scale for _, scale in pairs],
        [m.bias.detach() for m in linears],
        ["relu"] * (len(linears) - 1) + ["none"],
    )
    if not native.status().ok:
        return lambda x: rk.int8_mlp(x, *operands)
    packed, out_features = rk.pack_stack(*operands), linears[-1].out_features
    return lambda x: rk.int8_mlp_packed(x, packed, out_features)


def interleaved(
    variants: dict[str, Callable], x: Tensor, *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of a call of each variant on ``x``, a call of each before that of the next round.

    The order of the variants is drawn anew each round: what ran before leaves the caches and branch predictors in a
    state that shifts the median of whoever always follows it, at batch 1 by up to 20 %.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            call = variants[name]
            call(x)  # its weights come back into the caches
            begin = clock()
            call(x)
            times[name].append(clock() - begin)
        rounds += 1
    return {name: statistics.median(t) for name, t in times.items()}


def run(
    *,
    seconds: float = 1.0,
    cases: list[str] | None = None,
    batches: list[int] | None = None,
    clock: str = "wall",
) -> dict:
    """Measure, print a table of ratios, and return ``{machine, kind, rows}``.

    ``clock`` "cpu" is the time that the thread ran: for a core that is shared, where the wall clock tells of the others
    (every variant runs on this thread alone).
    """
    torch.set_num_threads(1)
    rows = []
    measured_on = machine() + ("" if clock == "wall" else "; CPU time of the thread")
    print(measured_on)
    for case, widths in STACKS.items():
        if cases and not any(case.startswith(c) for c in cases):
            continue
        variants = _variants(case, widths)
        for batch in batches or BATCHES:
            x = torch.randn(batch, widths[0], generator=torch.Generator().manual_seed(batch))
            with torch.inference_mode():
                medians = interleaved(variants, x, seconds=seconds, clock=CLOCKS[clock])
            rows += _rows(case, batch, medians)
    _print_table(rows)
    return {"machine": measured_on, "kind": "time", "rows": rows}


def machine() -> str:
    """The CPU, what the kernels run on, and the versions of torch and onnxruntime."""
    try:
        import onnxruntime

        ort = onnxruntime.__version__
    except ImportError:
        ort = "not installed"
    return f"{processor()}, one used; {native.status().reason}; torch {torch.__version__}, ORT {ort}"


def _variants(case: str, widths: list[int]) -> dict[str, Callable]:
    variants = {name: ours(float_stack(widths, kind), bits) for name, (bits, kind) in OURS.items()}
    return variants | rivals(case, float_stack(widths))


def rivals(case: str, stack: nn.Sequential) -> dict[str, Callable]:
    """The peers on ``stack``; those that are missing or refuse are printed with their reason and left out."""
    calibration = torch.randn(256, stack[0].in_features, generator=torch.Generator().manual_seed(99))
    variants = {}
    for name in peers.PEERS:
        peer, reason = peers.build(name, stack, calibration)
        if peer is None:
            print(f"{case}: {name} left out: {reason}")
        else:
            variants[name] = peer
    return variants


def _rows(case: str, batch: int, medians: dict[str, float]) -> list[dict]:
    best = min((t for name, t in medians.items() if name not in OURS), default=None)
    return [
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


def _print_table(rows: list[dict]) -> None:
    print(f"\n{'case':30} {'batch':>6} " + " ".join(f"{name:>24}" for name in OURS) + "   best peer")
    for case, batch in dict.fromkeys((r["case"], r["batch"]) for r in rows):
        here = [r for r in rows if (r["case"], r["batch"]) == (case, batch)]
        rivals = sorted((r for r in here if not r["ours"]), key=lambda r: r["median_s"])
        cells = []
        for r in (r for r in here if r["ours"]):
            ratio = "" if r["ratio_to_best_peer"] is None else f"{r['ratio_to_best_peer']:.2f}x"
            cells.append(f"{r['median_s'] * 1e6:>14.1f} us {ratio:>6}")
        rival = f"{rivals[0]['variant']} {rivals[0]['median_s'] * 1e6:.1f} us" if rivals else "none"
        print(f"{case:30} {batch:>6} " + " ".join(cells) + f"   {rival}")


def main(given: list[str] | None = None) -> None:
    """The command line; ``given`` in place of that of the process."""
    options = parser("recpress_kernels.bench.int8", __doc__, seconds=1.0, batches=BATCHES)
    options.add_argument("--cases", nargs="*", help="stacks by the start of their names: top, bottom, cross, ffn")
    measure(options, run, given)


if __name__ == "__main__":
    main()
