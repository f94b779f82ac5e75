"""Operands of a cross layer, of full or of low rank, in the order of int8_cross."""

import torch
from torch import Tensor


def cross_operands(m: int, k: int, rank: int | None = None, dtype: torch.dtype = torch.float32) -> tuple:
    g = torch.Generator().manual_seed(m * 7919 + k)

    def layer(n: int, inputs: int) -> tuple[Tensor, Tensor]:
        weight = torch.randint(-127, 128, (n, inputs), generator=g, dtype=torch.int8)
        return weight, torch.rand(n, generator=g) * 0.01 + 1e-3

    x0, x = (torch.randn(m, k, generator=g).to(dtype) for _ in range(2))
    bias = torch.randn(k, generator=g)
    return (x0, x, *layer(k, rank or k), bias, *(layer(rank, k) if rank else (None, None)))
