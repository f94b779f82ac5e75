"""What the int8 tests share: paths, operands, rows that are hard to quantise, memory with a guard page behind it."""

import ctypes
import mmap
from contextlib import contextmanager
from unittest import mock

import torch

from recpress_kernels import native

# Threads of torch that spin on a busy machine make these many small calls ten times slower.
torch.set_num_threads(1)

PATHS = ["torch", *native.isas()]


@contextmanager
def path(name: str):
    """Run the ops on one path: ``torch`` or an instruction set of the native kernels."""
    if name == "torch":
        names = ("mlp", "linear", "cross", "bags", "rows", "map_ids", "quantize_rows", "dots", "second_order")
        absent = dict.fromkeys(names)
        with mock.patch.multiple(native, **absent):
            yield
    else:
        with native.use_isa(name):
            yield


def layer(n: int, k: int, seed: int = 0, most: int = 127) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight int8 [n, k], weight_scale [n], bias [n]."""
    g = torch.Generator().manual_seed(seed + 1000 * n + k)
    weight = torch.randint(-most, most + 1, (n, k), generator=g, dtype=torch.int8)
    return weight, torch.rand(n, generator=g) * 0.01 + 1e-4, torch.randn(n, generator=g)


def rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + m * 7919 + k)
    return torch.randn(m, k, generator=g) * 3


def hard_rows(k: int) -> torch.Tensor:
    """Float32 rows [., k] at the edges of the quantiser."""
    g = torch.Generator().manual_seed(k)
    spread = torch.linspace(-1, 1, k)
    noise = torch.randn(k, generator=g)
    ties = torch.arange(k).remainder(127).float() + 0.5
    ties[0] = 127.0
    near = [torch.nextafter(ties, torch.full_like(ties, v)) for v in (0.0, 1e9)]
    for n in near:
        n[0] = 127.0
    third = torch.tensor(1 / 3)
    special = []
    for value in (float("nan"), float("inf"), -float("inf")):
        for at in (0, k // 2, k - 1):
            row = noise.clone()
            row[at] = value
            special.append(row)
    both = noise.clone()
    both[0], both[-1] = 3e38, -3e38
    huge_of_both_signs = noise.sign() * 1.5e38
    return torch.stack(
        [
            torch.zeros(k),
            torch.full((k,), -0.0),
            torch.full((k,), 2.5),
            torch.full((k,), -7.0),
            noise.abs(),
            -noise.abs(),
            noise + 100,
            noise - 100,
            ties,
            -ties,
            *near,
            ties * third,
            *[n * third for n in near],
            torch.full((k,), 1e-45),
            spread * 1e-44,
            spread * 1e-40,
            spread * 1.2e-38,
            spread * 1e-36,
            spread * 1e37,
            noise.abs() * 1e37,
            torch.full((k,), 3.4028234663852886e38),
            torch.full((k,), -3.4028234663852886e38),
            both,
            huge_of_both_signs,
            *special,
        ]
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in shape, dtype and every value; NaN equals NaN and -0.0 equals 0.0."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


class Guarded:
    """Memory that ends where a page without access begins: one byte too far ends the process."""

    def __init__(self, size: int):
        page = mmap.PAGESIZE
        self.length = -(-size // page) * page
        self.map = mmap.mmap(-1, self.length + page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(base + self.length), page, 0) == 0
        self.view = memoryview(self.map)[self.length - size : self.length]

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        out = torch.frombuffer(self.view, dtype=like.dtype).view(like.shape)
        out.copy_(like)
        return out


def guarded(t: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of t that ends at a guard page."""
    return Guarded(t.numel() * t.element_size()).tensor(t)
