"""DLRM: dense columns through an MLP, ids through tables, and the dot products of all pairs through an MLP.

M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019,
arXiv 1906.00091.
"""

from collections.abc import Sequence

import torch
from torch import nn

from recpress.zoo.parts import check_dropout, check_sizes, draw_small, mlp, tables


class DLRM(nn.Module):
    """One logit a row, from ``num_dense`` numbers and one id for each of the tables.

    With x the bottom MLP's output and e_t the row of table t, all of ``dim`` numbers and stacked as v_0 = x,
    v_1 = e_1, ..., the logit is top([x, v_i . v_j for all i > j]).

    Args:
        num_dense: columns of ``dense``, at least 1.
        table_rows: rows of each table, in the order of the columns of ``sparse``.
        dim: numbers in a row of a table, and in the bottom MLP's output.
        bottom: widths of the bottom MLP's hidden layers; a last layer of width ``dim`` follows.
        top: widths of the top MLP's hidden layers; a last layer of width 1 follows.
        dropout: probability with which an output of a hidden layer of the top MLP is zeroed in training.

    Raises:
        ValueError: a width, a number of rows or ``dropout`` is out of its range.
    """

    def __init__(
        self,
        *,
        num_dense: int,
        table_rows: Sequence[int],
        dim: int = 16,
        bottom: Sequence[int] = (256, 128),
        top: Sequence[int] = (512, 256),
        dropout: float = 0.0,
    ):
        super().__init__()
        check_sizes("num_dense", [num_dense])
        check_sizes("dim", [dim])
        check_sizes("bottom", bottom)
        check_sizes("top", top)
        check_dropout(dropout)
        vectors = 1 + len(table_rows)
        self.bottom = mlp([num_dense, *bottom, dim], last_relu=True)
        self.tables = tables(table_rows, dim)
        self.top = mlp([dim + vectors * (vectors - 1) // 2, *top, 1], dropout=dropout)
        draw_small(self.tables)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B] of ``dense`` float32 [B, num_dense] and ``sparse`` int64 [B, T]."""
        x = self.bottom(dense)
        rows = [table(sparse[:, column]) for column, table in enumerate(self.tables)]
        vectors = torch.stack([x, *rows], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))
        lower = [dots[:, i, :i] for i in range(1, len(rows) + 1)]
        return self.top(torch.cat([x, *lower], dim=1)).squeeze(1)
