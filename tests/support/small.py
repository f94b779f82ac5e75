"""A small recommender with inputs of every kind that tests need."""

import torch
from torch import nn


class SmallRecommender(nn.Module):
    """Dense features and three tables, one pooled over two columns; returns logits [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8))
        self.tables = nn.ModuleList([nn.Embedding(40, 8), nn.Embedding(7, 8)])
        self.bag = nn.EmbeddingBag(300, 8, mode="mean")
        self.norm = nn.LayerNorm(8)
        self.top = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        parts = [self.norm(self.bottom(dense)), *(t(sparse[:, i]) for i, t in enumerate(self.tables))]
        return self.top(torch.cat([*parts, self.bag(sparse[:, 2:])], dim=1)).squeeze(1)


def small_model() -> SmallRecommender:
    torch.manual_seed(0)
    return SmallRecommender().eval()


def small_inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, n, (rows,), generator=generator) for n in (40, 7, 300, 300)]
    return torch.randn(rows, 5, generator=generator), torch.stack(columns, dim=1)
