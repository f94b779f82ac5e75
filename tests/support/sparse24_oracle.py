"""2:4 weights in the canonical form and what they mean, for tests of what runs on them."""

import torch
from torch import Tensor


def canonical(n: int, k: int, dtype: torch.dtype = torch.int8, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ``values [n, k / 2]`` and ``indices`` uint8 ``[n, ceil(k / 8)]``."""
    g = torch.Generator().manual_seed(seed)
    places = torch.rand(n, k // 4, 4, generator=g).argsort(dim=2)[..., :2].sort(dim=2).values
    nibbles = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    nibbles = torch.nn.functional.pad(nibbles, (0, k // 4 % 2))
    if dtype == torch.int8:
        values = torch.randint(-127, 128, (n, k // 2), generator=g, dtype=torch.int8)
    else:
        values = torch.randn(n, k // 2, generator=g).to(dtype)
    return values, nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def dense(values: Tensor, indices: Tensor) -> Tensor:
    """The weight ``[n, k]`` that the canonical form stands for."""
    n, groups = values.shape[0], values.shape[1] // 2
    nibbles = torch.stack([indices & 15, indices >> 4], dim=2).reshape(n, -1)[:, :groups].long()
    weight = values.new_zeros(n, groups, 4)
    weight.scatter_(2, torch.stack([nibbles & 3, nibbles >> 2], dim=2), values.view(n, groups, 2))
    return weight.view(n, 4 * groups)
