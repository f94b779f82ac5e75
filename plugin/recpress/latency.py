"""Time calls in one process, variants in turn, so that what drifts on the machine drifts for all of them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Latency:
    """Quantiles of the time of one call, in seconds, over ``calls`` calls."""

    p50: float
    p99: float
    calls: int

    @staticmethod
    def of(seconds: np.ndarray) -> "Latency":
        """From the times of single calls, ``[calls]`` in seconds."""
        ordered = np.sort(seconds)
        return Latency(quantile(ordered, 0.5), quantile(ordered, 0.99), len(ordered))


def quantile(ordered: np.ndarray, q: float, count: int | None = None) -> float:
    """The least of ``ordered`` seconds that at least the share ``q`` of ``count`` requests took at most.

    Without interpolation, as HdrHistogram has it; ``count`` beyond the length are requests that take for ever. NaN
    without requests.
    """
    count = len(ordered) if count is None else count
    if not count:
        return math.nan
    rank = max(1, math.ceil(q * count - 1e-9))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


def interleave(
    variants: Mapping[str, Callable[[], object]], *, calls: int = 300, warm_up: int = 20
) -> dict[str, Latency]:
    """Call each variant in turn, ``calls`` times after ``warm_up`` uncounted ones, and time each call."""
    seconds = {name: np.empty(calls) for name in variants}
    for i in range(-warm_up, calls):
        for name, call in variants.items():
            begin = time.perf_counter()
            call()
            taken = time.perf_counter() - begin
            if i >= 0:
                seconds[name][i] = taken
    return {name: Latency.of(taken) for name, taken in seconds.items()}


def beside_original(
    original: Callable[..., object],
    compressed: Callable[..., object],
    inputs: Sequence[Tensor],
    *,
    batches: Sequence[int] = (1, 64),
    calls: int = 300,
) -> dict[int, dict[str, Latency]]:
    """``original`` and ``compressed`` by batch size, on the first rows of ``inputs``, which are repeated as needed."""
    found = {}
    with torch.inference_mode(), one_thread():
        for batch in batches:
            rows = [t[torch.arange(batch) % len(t)] for t in inputs]
            variants = {"original": lambda x=rows: original(*x), "compressed": lambda x=rows: compressed(*x)}
            found[batch] = interleave(variants, calls=calls)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: threads of OpenMP that wait by spinning make every call slow when another process works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
