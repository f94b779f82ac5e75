"""Take out of a compressed layer's bias what quantisation adds to its outputs on average (bias correction).

The error of a quantised layer has a mean that is not zero, an output at a time, and a mean is what a bias can hold::

    bias' = bias + E[W x + bias] - E[Q(W) Q(x) + bias]

over the calibration inputs x. M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019, arXiv 1906.04721, section 4.2.
"""

import torch
from torch import Tensor, nn


def corrected(new: nn.Module, linear: nn.Linear, inputs: Tensor) -> Tensor | None:
    """The bias float32 ``[out]`` for ``new``, which stands for ``linear``, on ``inputs`` ``[rows, in]``.

    Without rows it is the bias that ``new`` has.
    """
    if not len(inputs):
        return new.bias
    with torch.no_grad():
        shift = (linear(inputs).double() - new(inputs).double()).mean(dim=0)
        shift = torch.where(torch.isfinite(shift), shift, 0.0)  # a bias of -inf, which masks an output, stays
        return (shift if new.bias is None else new.bias.double() + shift).float()
