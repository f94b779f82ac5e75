"""Linear layer on int8 weights with 7-bit activations, in plain torch: the truth for every device.

For a row x of K values (float32; float16 and bfloat16 are widened first) and int8 weights w ``[N, K]``::

    scale, zero, q[k]                                                the affine quantiser of 128 levels over the row
    acc[n]  = sum_k (q[k] - zero) * w[n, k]                          int32, exact
    y[n]    = (acc[n] * scale) * weight_scale[n] + bias[n]           float32
    y[n]    = activation(y[n])                                       float32, then to the dtype of x

With calibrated ``x_scale`` and ``x_zero_point`` these stand for scale and zero in every row; x may then be uint8 and
is q itself (y is float32). With ``out_scale`` and ``out_zero_point`` the result is uint8 for the next layer::

    o[n]    = Q(y[n]) by that pair

The quantiser stands in formats/affine.py, with its roundings. q, zero and acc are the same bits on every device; y may
differ in its last bits, since a device may fuse the multiplication with the addition.

Why 7 bits and a zero point: q - zero lies in [-127, 127], which an s8 tensor core takes as it is; q lies in
[0, 127], on which the CPU's ``vpmaddubsw`` cannot saturate (2 * 127 * 127 < 2^15); and after a ReLU, where
zero = 0, there are as many levels as symmetric int8 has. A row that holds NaN or infinity, or whose range
overflows float32 where it is dynamic, gives NaN in all its outputs. No integer stands for NaN: with ``out_scale`` a
NaN in y is an error on the CPU; infinity meets the bound 0 or 127.
"""

import torch
from torch import Tensor
from torch.nn import functional

from recpress_kernels.errors import KernelInputError
from recpress_kernels.formats.affine import ACTIVATION_LEVELS, affine, extremes, quantize_affine

FUNCTIONS = {
    "none": lambda y: y,
    "relu": torch.relu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
}


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row of ``x`` ``[M, K]`` (float): ``(q - zero) int8 [M, K]`` and ``scale float32 [M]``.

    A row that is not finite has scale NaN and zeros for its values.
    """
    low, high = extremes(x.float())
    finite = torch.isfinite(high - low)
    scale, zero = affine(torch.where(finite, low, 0.0), torch.where(finite, high, 0.0), ACTIVATION_LEVELS)
    q = _codes(x, finite, scale[:, None], zero[:, None])
    return q, torch.where(finite, scale, torch.nan)


def quantize_static(x: Tensor, x_scale: Tensor, x_zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` ``[M, K]`` (float, or uint8 and quantised already) by a calibrated pair, returned as the dynamic form is.

    Raises:
        KernelInputError: x is uint8 and holds a value above 127.
    """
    scale = x_scale.expand(x.shape[0])
    if x.dtype == torch.uint8:
        if x.numel() and int(x.amax()) >= ACTIVATION_LEVELS:
            raise KernelInputError(
                "int8_linear: x is quantised already and holds a value above 127; allowed are 0 to 127"
            )
        return (x.to(torch.int16) - x_zero_point.to(torch.int16)).to(torch.int8), scale
    finite = torch.isfinite(x).all(dim=1)
    return _codes(x, finite, x_scale, x_zero_point), torch.where(finite, scale, torch.nan)


def _codes(x: Tensor, finite: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``q - zero`` int8 of the rows of ``x`` that are ``finite`` ``[M]``, zeros of the others."""
    x = torch.where(finite[:, None], x.float(), 0.0)
    return (quantize_affine(x, scale, zero_point, ACTIVATION_LEVELS) - zero_point).to(torch.int8)


def accumulate(q: Tensor, weight: Tensor) -> Tensor:
    """``sum_k q[m, k] * weight[n, k]`` of int8 operands as int32 ``[M, N]``."""
    return q.to(torch.int32) @ weight.to(torch.int32).T


def epilogue(acc: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """``activation((acc * scale) * weight_scale + bias)``, float32 ``[M, N]``; acc is int32, scale is ``[M]``."""
    y = acc.float() * scale[:, None] * weight_scale
    return FUNCTIONS[activation](y if bias is None else y + bias.float())


def quantize_output(y: Tensor, out_scale: Tensor, out_zero_point: Tensor, *, op: str = "int8_linear") -> Tensor:
    """``y`` float32 ``[M, N]`` as uint8 for the next layer; ``op`` stands in the error.

    Raises:
        KernelInputError: y holds NaN.
    """
    if torch.isnan(y).any():
        raise KernelInputError(
            f"{op}: the output holds NaN, which a quantised output cannot express: x has NaN or infinity in some "
            "row; leave out_scale away to get NaN in that row, or find where x came from"
        )
    return quantize_affine(y, out_scale, out_zero_point, ACTIVATION_LEVELS).to(torch.uint8)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    *,
    accumulate=accumulate,
) -> Tensor:
    """The op on ``x`` ``[M, K]``, by the formula on top of this file: ``[M, N]``. Any exact ``accumulate`` will do."""
    q, scale = quantize_activations(x) if x_scale is None else quantize_static(x, x_scale, x_zero_point)
    y = epilogue(accumulate(q, weight), scale, weight_scale, bias, activation)
    if out_scale is not None:
        return quantize_output(y, out_scale, out_zero_point)
    return y if x.dtype == torch.uint8 else y.to(x.dtype)
