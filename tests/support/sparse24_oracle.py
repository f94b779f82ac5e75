"""2:4 weights in the canonical form and what they mean, for tests of what runs on them."""

from dataclasses import dataclass

import torch
from support.int8_linear_oracle import ACTIVATIONS
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


@dataclass
class Layer:
    """What sparse24_linear takes, in its order; ``values`` and ``indices`` cover K rounded up to fours."""

    x: Tensor
    values: Tensor
    indices: Tensor
    bias: Tensor | None
    activation: str

    def truth(self) -> Tensor:
        """The output in float64."""
        weight = dense(self.values, self.indices)[:, : self.x.shape[1]].double()
        y = self.x.double() @ weight.T
        return ACTIVATIONS[self.activation](y if self.bias is None else y + self.bias.double())

    def excess(self, given: Tensor) -> float:
        """By how much ``given`` is further from the truth than reference.py allows: at most 0. No activation."""
        truth, k = self.truth(), self.x.shape[1]
        weight = dense(self.values, self.indices)[:, :k].double()
        summed = k * 2.0**-23 * (self.x.double().abs() @ weight.abs().T + (0 if self.bias is None else self.bias.abs()))
        rounded = torch.finfo(given.dtype).eps / 2 * (truth.abs() + summed)
        return float(((given.double() - truth).abs() - summed - rounded).max())


def half_layer(
    m: int,
    k: int,
    n: int,
    dtype: torch.dtype,
    *,
    whole: bool = False,
    bias: bool = True,
    activation: str = "none",
    seed: int = 0,
) -> Layer:
    """Random operands; ``whole``: small integers, whose sums every order of additions gives exactly."""
    g = torch.Generator().manual_seed(seed)
    values, indices = canonical(n, -(-k // 4) * 4, dtype, seed=seed)
    x, b = torch.randn(m, k, generator=g), torch.randn(n, generator=g)
    if whole:
        values = values.sign() * values.abs().ceil().clamp(1, 3)  # no zeros: each must show
        x, b = (2 * x).round().clamp(-7, 7), (4 * b).round()
    return Layer(x.to(dtype), values, indices, b.to(dtype) if bias else None, activation)
