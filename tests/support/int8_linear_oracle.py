"""int8_linear by its formula in plain torch, with the integers on the way, for the tests of every device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recpress_kernels.int8_linear import reference

AWKWARD_M = (1, 3, 17, 33)
AWKWARD_K = (1, 13, 64, 130, 479)
AWKWARD_N = (1, 7, 17, 64)

ACTIVATIONS = {
    "none": lambda y: y,
    "relu": torch.relu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
    "gelu_erf": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
}


@dataclass(frozen=True)
class Operands:
    """What int8_linear takes, in its order."""

    x: Tensor
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None = None
    activation: str = "none"
    x_scale: Tensor | None = None
    x_zero_point: Tensor | None = None
    out_scale: Tensor | None = None
    out_zero_point: Tensor | None = None

    def all(self) -> tuple:
        return tuple(vars(self).values())


def operands(
    m: int,
    k: int,
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    activation: str = "none",
    static: bool = False,
    quantized_out: bool = False,
    zero_point: int = 37,
    seed: int = 0,
) -> Operands:
    """Random operands; uint8 x is static always."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)
    if dtype == torch.uint8:
        x = torch.randint(0, 128, (m, k), generator=g, dtype=torch.uint8)
    else:
        x = (torch.randn(m, k, generator=g) + 0.2).to(dtype)
    static = static or dtype == torch.uint8
    return Operands(
        x=x,
        weight=weight,
        weight_scale=torch.rand(n, generator=g) * 0.01 + 1e-3,
        bias=torch.randn(n, generator=g) if bias else None,
        activation=activation,
        x_scale=torch.tensor(0.0371) if static else None,
        x_zero_point=torch.tensor(zero_point, dtype=torch.int32) if static else None,
        out_scale=torch.tensor(0.0517) if quantized_out else None,
        out_zero_point=torch.tensor(11, dtype=torch.int32) if quantized_out else None,
    )


def quantize(o: Operands) -> tuple[Tensor, Tensor]:
    """``(q - zero) int8 [M, K]`` and ``scale float32 [M]``, NaN for rows that are not finite."""
    if o.x_scale is None:
        return reference.quantize_activations(o.x)
    zero = o.x_zero_point
    if o.x.dtype == torch.uint8:
        return (o.x.to(torch.int32) - zero).to(torch.int8), o.x_scale.expand(len(o.x)).clone()
    x = o.x.float()
    finite = torch.isfinite(x).all(dim=1)
    q = (torch.round(torch.where(finite[:, None], x, 0.0) / o.x_scale) + zero).clamp(0, 127)
    return (q - zero).to(torch.int8), torch.where(finite, o.x_scale, torch.nan)


def expected(o: Operands) -> Tensor:
    """The output of the op."""
    q, scale = quantize(o)
    y = reference.accumulate(q, o.weight).float() * scale[:, None] * o.weight_scale
    y = ACTIVATIONS[o.activation](y if o.bias is None else y + o.bias)
    if o.out_scale is not None:
        return (torch.round(y / o.out_scale) + o.out_zero_point).clamp(0, 127).to(torch.uint8)
    return y.to(torch.float32 if o.x.dtype == torch.uint8 else o.x.dtype)
