"""SASRec: the next item of a user, by self-attention over the items so far.

W.-C. Kang and J. McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, arXiv 1808.09781.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recpress.zoo.parts import check_dropout, check_sizes

ITEM_STD = 0.02


class SASRec(nn.Module):
    """Scores of candidate items after a history; the defaults are the paper's.

    Args:
        num_items: items are 1 to ``num_items``; 0 fills a history up before its first item.
        length: the longest history.
        dim: numbers of an item's vector.
        blocks: of attention and a feed-forward layer.
        heads: of an attention, which split ``dim``.
        dropout: probability with which a number is zeroed in training.

    Raises:
        ValueError: a size is under 1, ``heads`` does not divide ``dim``, or ``dropout`` is out of its range.
    """

    def __init__(
        self,
        *,
        num_items: int,
        length: int = 50,
        dim: int = 50,
        blocks: int = 2,
        heads: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        sizes = {"num_items": num_items, "length": length, "dim": dim, "blocks": blocks, "heads": heads}
        for name, size in sizes.items():
            check_sizes(name, [size])
        if dim % heads:
            raise ValueError(f"heads must divide dim, and {heads} does not divide {dim}")
        check_dropout(dropout)
        self.length, self.scale = length, dim**0.5
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.dropout = nn.Dropout(dropout)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=ITEM_STD)
        with torch.no_grad():
            self.items.weight[0] = 0.0

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        """Scores float32 ``[B, C]`` of ``candidates`` int64 ``[B, C]`` after ``history`` int64 ``[B, L]``.

        A history ends at the right; L may be less than ``length``, which gives the same scores where what is left
        out is zeros.
        """
        state = self.states(history)[:, -1]
        return (self.items(candidates) @ state.unsqueeze(2)).squeeze(2)

    def states(self, history: Tensor) -> Tensor:
        """What each place of ``history`` ``[B, L]`` knows of itself and those before it: ``[B, L, dim]``."""
        width = history.shape[1]
        there = history != 0
        # A place before the first item sees itself alone: a row of nothing would be NaN, which spreads.
        causal = torch.ones(width, width, dtype=torch.bool, device=history.device).tril()
        itself = torch.eye(width, dtype=torch.bool, device=history.device)
        mask = ((there[:, None, :] & causal) | itself).unsqueeze(1)
        places = torch.arange(self.length - width, self.length, device=history.device)
        x = self.items(history) * self.scale + self.positions(places)
        x = self.dropout(x) * there.unsqueeze(2)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class _Block(nn.Module):
    """Attention of the normalised queries to what is there, then two layers at each place, both added to x."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = (nn.LayerNorm(dim, eps=1e-8) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout), nn.ReLU(), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, L, dim]`` and the places that each may see, bool ``[B, 1, L, L]``, to ``[B, L, dim]``."""
        normed = self.attention_norm(x)
        heads = (self._split(layer(given)) for layer, given in ((self.query, normed), (self.key, x), (self.value, x)))
        seen = scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=self.dropout.p if self.training else 0.0)
        x = normed + self.out(seen.transpose(1, 2).flatten(2))
        normed = self.feed_norm(x)
        return normed + self.dropout(self.feed(normed))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
