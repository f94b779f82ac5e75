"""DeepFM: a factorisation machine and an MLP over the same rows of tables, their logits added.

H. Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017,
arXiv 1703.04247.
"""

from collections.abc import Sequence

import torch
from torch import nn

from recpress.zoo.parts import check_dropout, check_sizes, draw_small, mlp, tables


class DeepFM(nn.Module):
    """One logit a row, from ``num_dense`` numbers and one id for each of the tables.

    With e_t the row of table t, of ``dim`` numbers, x the dense columns and w_t a weight an id::

        w . x + b + sum_t w_t + 1/2 sum_d ((sum_t e_t[d])^2 - sum_t e_t[d]^2) + deep([x, e_1, e_2, ...])

    The middle sum is that of e_s . e_t over all pairs (S. Rendle, "Factorization Machines", ICDM 2010).

    Args:
        num_dense: columns of ``dense``, at least 1.
        table_rows: rows of each table, in the order of the columns of ``sparse``.
        dim: numbers in a row of a table.
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
        deep: Sequence[int] = (512, 256),
        dropout: float = 0.0,
    ):
        super().__init__()
        check_sizes("num_dense", [num_dense])
        check_sizes("deep", deep)
        check_dropout(dropout)
        self.tables = tables(table_rows, dim)
        self.weights = tables(table_rows, 1)
        self.first = nn.Linear(num_dense, 1)
        self.deep = mlp([num_dense + len(table_rows) * dim, *deep, 1], dropout=dropout)
        draw_small(self.tables)
        draw_small(self.weights)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B] of ``dense`` float32 [B, num_dense] and ``sparse`` int64 [B, T]."""
        vectors = torch.stack([table(sparse[:, t]) for t, table in enumerate(self.tables)], dim=1)
        first = self.first(dense) + torch.cat([w(sparse[:, t]) for t, w in enumerate(self.weights)], dim=1).sum(1, True)
        second = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, True)
        deep = self.deep(torch.cat([dense, vectors.flatten(1)], dim=1))
        return (first + second + deep).squeeze(1)
