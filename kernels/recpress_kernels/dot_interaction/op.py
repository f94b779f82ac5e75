"""``torch.ops.recpress.dot_interaction``: checks, registration and dispatch."""

import torch
from torch import Tensor

from recpress_kernels.dot_interaction import cpu
from recpress_kernels.dot_interaction.launch import MAX_VECTORS
from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.affine import pair_problem
from recpress_kernels.int8_linear.op import FLOATS, check_pair_values, device_problem
from recpress_kernels.library import LIBRARY, direct
from recpress_kernels.support import Support

LIBRARY.define(
    "dot_interaction(Tensor vectors, Tensor? front=None, bool self_interaction=False, Tensor? out_scale=None, "
    "Tensor? out_zero_point=None) -> Tensor"
)


def dot_interaction(
    vectors: Tensor,
    front: Tensor | None = None,
    self_interaction: bool = False,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    """``[front, x_i . x_j for all i > j]`` of each row's vectors x: the lower triangle of their products, row by row.

    Args:
        vectors: float32, float16 or bfloat16 ``[B, V, D]``, V >= 1 and D >= 1; on a GPU at most 128 vectors.
        front: ``[B, F]`` in the dtype of vectors, or None for nothing.
        self_interaction: i >= j in place of i > j.
        out_scale, out_zero_point: a calibrated pair for the output as int8_linear takes it, float32 and int32 of one
            element.

    Returns:
        ``[B, F + P]`` in the dtype of vectors, P = V (V - 1) / 2, or V (V + 1) / 2 with self_interaction; uint8 of 0 to
        127 with ``out_scale``. The formula and its error bound stand in reference.py.

    Raises:
        KernelInputError: an operand has another dtype, shape, device or value; on the CPU also where NaN would have to
            be written as uint8. A GPU, which is not waited for, writes 0 there, and takes the values of the pair as
            they are.
    """
    if not direct(vectors) or not (front is None or direct(front)):
        return torch.ops.recpress.dot_interaction(vectors, front, self_interaction, out_scale, out_zero_point)
    if not self_interaction and out_scale is None and out_zero_point is None:
        y = cpu.plain(vectors, front)
        if y is not None:
            return y
    return _cpu(vectors, front, self_interaction, out_scale, out_zero_point)


def supports(
    vectors: Tensor,
    front: Tensor | None = None,
    self_interaction: bool = False,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Support:
    """Whether the op takes these operands, and the path that runs them."""
    problem = (
        vectors_problem(vectors)
        or _front_problem(vectors, front)
        or pair_problem("out", out_scale, out_zero_point)
        or device_problem(vectors, front, out_scale, out_zero_point)
        or ("" if vectors.device.type != "cuda" else most_problem(vectors))
    )
    if problem:
        return Support(False, problem)
    return Support(True, cpu.path() if vectors.is_cpu else "Triton-language kernel")


def vectors_problem(vectors: Tensor) -> str:
    """Empty for vectors ``[B, V, D]`` of a float dtype."""
    if vectors.dtype not in FLOATS:
        return f"vectors is {vectors.dtype}; give float32, float16 or bfloat16"
    if vectors.dim() != 3 or 0 in vectors.shape[1:]:
        return f"vectors has shape {tuple(vectors.shape)}; give [B, V, D], V >= 1 and D >= 1"
    return ""


def most_problem(vectors: Tensor) -> str:
    """Empty where the GPU kernel, which holds all products of a row at once, takes so many vectors."""
    if vectors.shape[1] <= MAX_VECTORS:
        return ""
    return f"vectors has V = {vectors.shape[1]}; on a GPU at most {MAX_VECTORS} are allowed: use torch.bmm beyond"


def _front_problem(vectors: Tensor, front: Tensor | None) -> str:
    if front is None:
        return ""
    if front.dtype != vectors.dtype or front.dim() != 2 or front.shape[0] != vectors.shape[0]:
        given = f"{front.dtype} of shape {tuple(front.shape)}"
        return f"front is {given}; give {vectors.dtype} [{vectors.shape[0]}, F], as vectors"
    return ""


def _checked(*operands) -> None:
    if not (support := supports(*operands)):
        raise KernelInputError(f"dot_interaction: {support.reason}")


@torch.library.impl(LIBRARY, "dot_interaction", "CPU")
def _cpu(
    vectors: Tensor,
    front: Tensor | None = None,
    self_interaction: bool = False,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    _checked(vectors, front, self_interaction, out_scale, out_zero_point)
    check_pair_values("dot_interaction", "out", out_scale, out_zero_point)
    return cpu.dot_interaction(vectors, front, self_interaction, out_scale, out_zero_point)


@torch.library.impl(LIBRARY, "dot_interaction", "CUDA")
def _cuda(
    vectors: Tensor,
    front: Tensor | None = None,
    self_interaction: bool = False,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    from recpress_kernels.dot_interaction import cuda  # on first use: triton exists on Linux alone

    _checked(vectors, front, self_interaction, out_scale, out_zero_point)
    with torch.cuda.device(vectors.device):
        return cuda.dot_interaction(vectors, front, self_interaction, out_scale, out_zero_point)


@torch.library.register_fake("recpress::dot_interaction", lib=LIBRARY)
def _fake(
    vectors: Tensor,
    front: Tensor | None = None,
    self_interaction: bool = False,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
) -> Tensor:
    _checked(vectors, front, self_interaction, out_scale, out_zero_point)
    batch, count, _ = vectors.shape
    width = (0 if front is None else front.shape[1]) + count * (count + (1 if self_interaction else -1)) // 2
    return vectors.new_empty(batch, width, dtype=vectors.dtype if out_scale is None else torch.uint8)
