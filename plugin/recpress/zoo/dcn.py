"""DCN-v2: cross layers, then an MLP, over dense columns and rows of tables.

R. Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems",
WWW 2021, arXiv 2008.13535; the stacked form.
"""

from collections.abc import Sequence

import torch
from torch import nn

from recpress.zoo.parts import check_dropout, check_sizes, draw_small, mlp, tables


class DCNv2(nn.Module):
    """One logit a row, from ``num_dense`` numbers and one id for each of the tables.

    With x_0 the dense columns and the rows of the tables side by side, cross layer l is
    ``x_(l+1) = x_0 * (W_l x_l + b_l) + x_l``, and the logit is deep(x_L).

    Args:
        num_dense: columns of ``dense``, at least 1.
        table_rows: rows of each table, in the order of the columns of ``sparse``.
        dim: numbers in a row of a table.
        crosses: cross layers, at least 1.
        deep: widths of the MLP's hidden layers; a last layer of width 1 follows.
        dropout: probability with which an output of a hidden layer is zeroed in training.

    Raises:
        ValueError: a width, a number of rows or ``dropout`` is out of its range.
    """

    def __init__(
        self,
        *,
        num_dense: int,
        table_rows: Sequence[int],
        dim: int = 16,
        crosses: int = 2,
        deep: Sequence[int] = (512, 256),
        dropout: float = 0.0,
    ):
        super().__init__()
        check_sizes("num_dense", [num_dense])
        check_sizes("crosses", [crosses])
        check_sizes("deep", deep)
        check_dropout(dropout)
        self.tables = tables(table_rows, dim)
        width = num_dense + len(table_rows) * dim
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(crosses))
        self.deep = mlp([width, *deep, 1], dropout=dropout)
        draw_small(self.tables)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B] of ``dense`` float32 [B, num_dense] and ``sparse`` int64 [B, T]."""
        first = torch.cat([dense, *(table(sparse[:, t]) for t, table in enumerate(self.tables))], dim=1)
        x = first
        for cross in self.crosses:
            x = first * cross(x) + x
        return self.deep(x).squeeze(1)
