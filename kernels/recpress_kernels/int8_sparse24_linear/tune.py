"""Measure dense and 2:4 layers on a GPU for int8_mlp/choice.py, under the GPU's name. Only when asked."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.formats.sparse24_gpu import pack
from recpress_kernels.int8_linear.cuda import pad_rows
from recpress_kernels.int8_mlp.choice import Entry

OUTPUTS, INPUTS, BATCHES = (64, 256, 1024, 4096), (64, 256, 1024, 4096), (1, 16, 64, 256, 1024)


def tune(
    gpu: str,
    seconds: Callable[[Callable[[], Tensor]], float],
    *,
    device: str = "cuda",
    shapes: list[tuple[int, int]] | None = None,
) -> Iterator[Entry]:
    """The entries of shapes ``(n, k)``, by default the whole grid, on float16 activations.

    Args:
        gpu: the name that the entries go by.
        seconds: of one call of what it is given.
    """
    for n, k in shapes or product(OUTPUTS, INPUTS):
        weight = _weight(n, k)
        scale = torch.full((n,), 0.01, device=device)
        dense = pad_rows(decompress(weight).to(device))
        operands = pack(weight.values, weight.indices).to(device).operands()
        for batch in BATCHES:
            x = torch.randn(batch, k, generator=torch.Generator().manual_seed(batch)).half().to(device)
            dense_s = seconds(partial(torch.ops.recpress.int8_linear, x, dense, scale))
            sparse_s = seconds(partial(torch.ops.recpress.int8_sparse24_linear_fragments, x, *operands, scale))
            yield Entry(gpu, n, k, batch, float(f"{dense_s:.4g}"), float(f"{sparse_s:.4g}"))


def seconds_on_gpu(call: Callable[[], Tensor]) -> float:
    """Median seconds of a call, by CUDA events."""
    from triton.testing import do_bench

    return do_bench(call, return_mode="median") / 1e3


def _weight(n: int, k: int) -> Sparse24:
    generator = torch.Generator().manual_seed(n + k)
    values = torch.randint(-127, 128, (n, k // 2), generator=generator, dtype=torch.int8)
    return Sparse24(values, torch.full((n, -(-k // 8)), 0x44, dtype=torch.uint8), k)  # places 0 and 1 of every four
