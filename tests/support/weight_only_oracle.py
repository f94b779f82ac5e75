"""weight_only_linear's operands, as whole numbers whose sums every order gives to the bit, and what they come to."""

import torch
from torch import Tensor


def whole_numbers(m: int, k: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x ``[m, k]`` of -8 to 8, weight ``[n, k]``, weight_scale and bias: products and sums exact, powers of two."""
    g = torch.Generator().manual_seed(m * 7919 + k * 31 + n)
    x = torch.randint(-8, 9, (m, k), generator=g).to(dtype)
    weight = torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)
    scale = 2.0 ** torch.randint(-9, -5, (n,), generator=g)
    return x, weight, scale, torch.randint(-4, 5, (n,), generator=g).float()


def expected(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """What x ``relu`` gives, through float64, rounded once."""
    y = x.double() @ weight.double().T * scale + (0.0 if bias is None else bias)
    return torch.relu(y).to(x.dtype)
