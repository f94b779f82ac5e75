"""int8_linear beside torch._int_mm (the product alone) and float16 cuBLAS, as printed ratios: ``pytest -s tests/gpu``.

In CUDA graphs, so that what Python and the launch cost does not count. Nothing is asserted of the times.
"""

import pytest
import torch
from support.int8_linear_oracle import operands
from support.timing import seconds

from recpress_kernels.int8_linear import cuda

LAYERS = ((479, 1024), (1024, 1024), (1024, 512), (256, 1), (13, 512), (512, 256))
BATCHES = (1, 16, 64, 256, 1024, 4096)


def peers(m: int, k: int, n: int) -> dict:
    """Calls of other libraries that take this shape."""
    x, w = torch.randn(m, k, device="cuda", dtype=torch.float16), torch.randn(n, k, device="cuda", dtype=torch.float16)
    bias = torch.randn(n, device="cuda", dtype=torch.float16)
    calls = {"float16 cuBLAS": lambda: torch.nn.functional.linear(x, w, bias)}
    if m > 16 and k % 8 == 0 and n % 8 == 0:  # what torch._int_mm asks
        q, v = x.to(torch.int8), w.to(torch.int8).T
        calls["torch._int_mm"] = lambda: torch._int_mm(q, v)
    return calls


@pytest.mark.parametrize(("k", "n"), LAYERS)
def test_times_beside_other_libraries(k, n):
    for m in BATCHES:
        o = operands(m, k, n, dtype=torch.float16, activation="relu")
        moved = [v.cuda() if isinstance(v, torch.Tensor) else v for v in o.all()]
        moved[1] = cuda.pad_rows(moved[1])
        ours = seconds(lambda operands=moved: cuda.int8_linear(*operands))
        line = f"{torch.cuda.get_device_name()} {m}x{k}x{n}: {ours * 1e6:.1f} µs"
        for name, call in peers(m, k, n).items():
            line += f"; {name} takes {seconds(call) / ours:.2f} of it"
        print(line)
