"""The torch library ``recpress`` that every op of this package is registered in, once, and the way past it."""

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.compiler import is_compiling

LIBRARY = torch.library.Library("recpress", "DEF")


def direct(x: Tensor) -> bool:
    """Whether an op may call its kernel itself, past the dispatcher: a plain CPU tensor, nothing traced.

    The torch dispatcher takes 4 to 7 us for an op written in Python, as much as a small layer at batch 1.
    """
    return type(x) is Tensor and x.is_cpu and eager(x)


def eager(x: Tensor) -> bool:
    """Whether ``x``, on any device, may go past the dispatcher: a plain tensor, nothing traced."""
    return type(x) is Tensor and not (is_compiling() or _len_torch_dispatch_stack() or x.requires_grad)
