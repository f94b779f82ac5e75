"""Vectors of a row that meet each other: whole numbers, whose sums every order gives to the bit, and the truth."""

import torch
from torch import Tensor

SHAPES = ((1, 1, 1), (3, 2, 3), (2, 6, 16), (1, 27, 64), (5, 33, 13), (2, 17, 130))
"""B, V and D."""
PAIR = (torch.tensor(2.0), torch.tensor(19, dtype=torch.int32))


def whole_numbers(batch: int, count: int, dim: int, front: int = 0, dtype: torch.dtype = torch.float32):
    """Vectors ``[batch, count, dim]`` and ``[batch, front]`` of -3 to 3, the latter None where ``front`` is 0."""
    g = torch.Generator().manual_seed(batch * 7919 + count * 31 + dim)
    vectors = torch.randint(-3, 4, (batch, count, dim), generator=g).to(dtype)
    return vectors, torch.randint(-3, 4, (batch, front), generator=g).to(dtype) if front else None


def dots(vectors: Tensor, front: Tensor | None = None, self_interaction: bool = False) -> Tensor:
    """What dot_interaction comes to in float64, pair by pair."""
    wide = vectors.double()
    columns = [] if front is None else list(front.double().unbind(1))
    for i in range(wide.shape[1]):
        columns += [(wide[:, i] * wide[:, j]).sum(dim=1) for j in range(i + self_interaction)]
    return torch.stack(columns, dim=1) if columns else wide.new_zeros(len(wide), 0)


def quantized(y: Tensor) -> Tensor:
    """``y`` as uint8 by :data:`PAIR`."""
    return (torch.round(y / PAIR[0].double()) + PAIR[1]).clamp(0, 127).to(torch.uint8)


def second_order(vectors: Tensor) -> Tensor:
    """What fm_interaction comes to in float64: the sum of the products of all pairs."""
    return dots(vectors).sum(dim=1, keepdim=True)
