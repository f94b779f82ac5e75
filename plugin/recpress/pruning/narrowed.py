"""Layers of torch that cannot hold fewer numbers and compute the same: what stands in for them once they were cut."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


class NarrowedLayerNorm(nn.Module):
    """``nn.LayerNorm`` over ``width`` numbers of which those that are not stored are zero.

    Of n numbers x that are there::

        mean = sum(x) / width
        var = (sum((x - mean)^2) + (width - n) mean^2) / width
        y = (x - mean) / sqrt(var + eps) * weight + bias
    """

    def __init__(self, norm: nn.LayerNorm, width: int) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.width, self.eps = width, norm.eps
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n]`` to the same shape."""
        mean = x.sum(dim=-1, keepdim=True) / self.width
        centred = x - mean
        absent = (self.width - x.shape[-1]) * mean.square()
        variance = (centred.square().sum(dim=-1, keepdim=True) + absent) / self.width
        y = centred * torch.rsqrt(variance + self.eps) * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{len(self.weight)} of {self.width}, eps={self.eps}"


class NarrowedAttention(nn.Module):
    """``nn.MultiheadAttention`` whose heads need not fill the width of its inputs; it takes the same call.

    Parameters: ``in_proj_weight`` ``[3 * heads * head_dim, width]`` and ``in_proj_bias``, or the three weights that it
    consists of where keys or values have a width of their own; ``out_proj``, linear from heads * head_dim.
    """

    def __init__(self, attention: nn.MultiheadAttention, heads: int) -> None:
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = heads, attention.batch_first, attention.dropout
        self.head_dim = attention.head_dim
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
        for name in names:
            self.register_parameter(name, getattr(attention, name))
        self.out_proj = attention.out_proj
        self.train(attention.training)
        self._qkv_same_embed_dim = False
        """nn.TransformerEncoderLayer asks this before it computes attention in a way of its own."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``; the weights that it returns are those of the heads that are left."""
        batched = query.dim() == 3
        given = [x if batched else x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value)]
        given = given if self.batch_first else [x.transpose(0, 1) for x in given]
        q, k, v = (self._split(linear(x, *pair)) for x, pair in zip(given, self._projections(), strict=True))
        mask = self._mask(key_padding_mask, attn_mask, q)
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            seen = nn.functional.dropout(weights, self.dropout, self.training) @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            weights = None
            seen = scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out = self.out_proj(seen.transpose(1, 2).flatten(2))
        out = out if self.batch_first else out.transpose(0, 1)
        return (out if batched else out.squeeze(0 if self.batch_first else 1)), weights

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, head_dim={self.head_dim}"

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to scores ``[B, heads, L, S]``, of the two masks that nn.MultiheadAttention takes."""
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (q.shape[0], -1))
        padding = None if padding is None else padding.view(-1, 1, 1, padding.shape[-1])
        added = [_added(given, q.dtype) for given in (mask, padding) if given is not None]
        return sum(added[1:], added[0]) if added else None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
