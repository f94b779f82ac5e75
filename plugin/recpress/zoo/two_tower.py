"""Two towers: an MLP for the user and one for the item, and the dot product of what they give.

P. Covington et al., "Deep Neural Networks for YouTube Recommendations", RecSys 2016; X. Yi et al., "Sampling-Bias-
Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019. An item's vector depends on the item
alone, so that it can be kept in an index.
"""

from collections.abc import Sequence

import torch
from torch import nn

from recpress.zoo.parts import check_dropout, check_sizes, draw_small, mlp, tables


class TwoTower(nn.Module):
    """One logit a row: ``user . item + b``, each a tower's output of ``out`` numbers.

    Args:
        num_dense: columns of ``dense``, at least 1.
        table_rows: rows of each table, in the order of the columns of ``sparse``.
        item_dense: columns of ``dense`` that are of the item; the others are of the user. Both may be none.
        item_tables: the same of the columns of ``sparse``; each tower has at least one.
        dim: numbers in a row of a table.
        tower: widths of each tower's hidden layers; a last layer of width ``out`` follows.
        dropout: probability with which an output of a hidden layer is zeroed in training.

    Raises:
        ValueError: a width, a number of rows, a column or ``dropout`` is out of its range.
    """

    def __init__(
        self,
        *,
        num_dense: int,
        table_rows: Sequence[int],
        item_dense: Sequence[int],
        item_tables: Sequence[int],
        dim: int = 16,
        tower: Sequence[int] = (512, 256),
        out: int = 64,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, size in (("num_dense", num_dense), ("out", out)):
            check_sizes(name, [size])
        check_sizes("tower", tower)
        check_dropout(dropout)
        self.item_dense, self.user_dense = _columns("item_dense", item_dense, num_dense)
        self.item_tables, self.user_tables = _columns("item_tables", item_tables, len(table_rows))
        if not self.item_tables or not self.user_tables:
            raise ValueError(f"item_tables is {list(item_tables)}; each of the two towers needs a table")
        self.tables = tables(table_rows, dim)
        self.user = mlp([len(self.user_dense) + len(self.user_tables) * dim, *tower, out], dropout=dropout)
        self.item = mlp([len(self.item_dense) + len(self.item_tables) * dim, *tower, out], dropout=dropout)
        self.bias = nn.Parameter(torch.zeros(1))
        draw_small(self.tables)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B] of ``dense`` float32 [B, num_dense] and ``sparse`` int64 [B, T]."""
        user = self.user(self._inputs(dense, sparse, self.user_dense, self.user_tables))
        item = self.item(self._inputs(dense, sparse, self.item_dense, self.item_tables))
        return (user * item).sum(1) + self.bias

    def _inputs(self, dense: torch.Tensor, sparse: torch.Tensor, columns: list[int], fields: list[int]) -> torch.Tensor:
        numbers = [dense[:, column : column + 1] for column in columns]
        return torch.cat([*numbers, *(self.tables[t](sparse[:, t]) for t in fields)], dim=1)


def _columns(name: str, chosen: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """``chosen`` and the others of ``count`` columns, both in order."""
    if wrong := sorted(set(chosen) - set(range(count))):
        raise ValueError(f"{name} holds {wrong[0]}; columns are 0 to {count - 1}")
    return sorted(set(chosen)), [column for column in range(count) if column not in set(chosen)]
