"""Dense weights as int8 ``[out, in]`` with one float32 scale an output channel.

Symmetric: ``w ~ scale[o] * q[o, i]`` with ``scale[o] = max_i |w[o, i]| / 127`` and
``q = clamp(round(w / scale), -127, 127)``, rounded half to even. A channel of zeros gets scale 1.
The operands of ``torch.ops.recpress.int8_linear`` are in this form.
"""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError

QMAX = 127
MAX_IN_FEATURES = (2**31 - 1) // (QMAX * QMAX)
"""The longest sum of products of two values in [-127, 127] that an int32 is sure to hold: 133,144."""


def quantize_per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise ``weight`` ``[out, in]`` (float) to ``(q int8 [out, in], scale float32 [out])``.

    Raises:
        KernelInputError: not a 2-D float tensor, or NaN or infinity in it.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise KernelInputError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)}; give a float tensor [out, in]"
        )
    w = weight.detach().float()
    if not torch.isfinite(w).all():
        raise KernelInputError("weight holds NaN or infinity; find where training diverged before compressing")
    absmax = w.abs().amax(dim=1) if w.shape[1] else w.new_zeros(w.shape[0])
    scale = absmax / QMAX
    # A channel of zeros, or one so small that its scale underflows, is stored as zeros.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = torch.round(w / scale[:, None]).clamp_(-QMAX, QMAX).to(torch.int8)
    return q, scale


def dequantize_per_channel(q: Tensor, scale: Tensor) -> Tensor:
    """``scale[o] * q[o, i]`` as float32 ``[out, in]``."""
    return q.float() * scale[:, None]
