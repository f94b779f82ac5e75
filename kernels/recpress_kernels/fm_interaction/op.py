"""``torch.ops.recpress.fm_interaction``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels.dot_interaction.op import vectors_problem
from recpress_kernels.errors import KernelInputError
from recpress_kernels.fm_interaction import cpu
from recpress_kernels.library import LIBRARY, direct
from recpress_kernels.support import Support

LIBRARY.define("fm_interaction(Tensor vectors) -> Tensor")


def fm_interaction(vectors: Tensor) -> Tensor:
    """The sum of the dot products of all pairs of each row's vectors: a factorisation machine's second order.

    Args:
        vectors: float32, float16 or bfloat16 ``[B, V, D]``, V >= 1 and D >= 1.

    Returns:
        ``[B, 1]`` in the dtype of vectors. The formula and its error bound stand in reference.py.

    Raises:
        KernelInputError: vectors has another dtype or shape.
    """
    return _cpu(vectors) if direct(vectors) else torch.ops.recpress.fm_interaction(vectors)


def supports(vectors: Tensor) -> Support:
    """Whether the op takes these vectors, and the path that runs them."""
    if problem := vectors_problem(vectors):
        return Support(False, problem)
    return Support(True, cpu.path() if vectors.is_cpu else "Triton-language kernel")


def _checked(vectors: Tensor) -> None:
    if problem := vectors_problem(vectors):
        raise KernelInputError(f"fm_interaction: {problem}")


@torch.library.impl(LIBRARY, "fm_interaction", "CPU")
def _cpu(vectors: Tensor) -> Tensor:
    _checked(vectors)
    return cpu.fm_interaction(vectors)


@torch.library.impl(LIBRARY, "fm_interaction", "CUDA")
def _cuda(vectors: Tensor) -> Tensor:
    from recpress_kernels.fm_interaction import cuda  # on first use: triton exists on Linux alone

    _checked(vectors)
    with torch.cuda.device(vectors.device):
        return cuda.fm_interaction(vectors)


@torch.library.register_fake("recpress::fm_interaction", lib=LIBRARY)
def _fake(vectors: Tensor) -> Tensor:
    _checked(vectors)
    return vectors.new_empty(vectors.shape[0], 1)
