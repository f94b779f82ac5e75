"""A small recommender with bags of any number of ids: one by offsets, one by lengths."""

import torch
from torch import nn

import recpress

ROWS = {"tags": 300, "genres": 50}
LONGEST = 12
BAGS = (
    recpress.Bag("tags", offsets="tags_offsets", max_length=LONGEST),
    recpress.Bag("genres", lengths="genres_lengths", max_length=LONGEST),
)
NAMES = ("tags", "tags_offsets", "dense", "genres", "genres_lengths")


class BagRecommender(nn.Module):
    """Two pooled features beside dense ones; logits [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = nn.EmbeddingBag(ROWS["tags"], 8, mode="mean")
        self.genres = nn.EmbeddingBag(ROWS["genres"], 8, mode="sum")
        self.top = nn.Sequential(nn.Linear(21, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, tags, tags_offsets, dense, genres, genres_lengths):
        pooled = [self.tags(tags, tags_offsets), self.genres(genres, genres_lengths.cumsum(0) - genres_lengths)]
        return self.top(torch.cat([dense, *pooled], dim=1)).squeeze(1)


def bag_rows(rows: int, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By name: ``dense`` [rows, 5]; ``tags`` and ``genres`` as values and lengths, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    found = {"dense": torch.randn(rows, 5, generator=generator)}
    for name, count in ROWS.items():
        lengths = torch.randint(0, LONGEST + 1, (rows,), generator=generator)
        lengths[torch.rand(rows, generator=generator) < 0.3] = 0
        found[name] = torch.randint(0, count, (int(lengths.sum()),), generator=generator), lengths
    return found


def arguments(rows: dict) -> tuple[torch.Tensor, ...]:
    """What the model takes."""
    (tags, lengths), (genres, counts) = rows["tags"], rows["genres"]
    return tags, lengths.cumsum(0) - lengths, rows["dense"], genres, counts


def wire(rows: dict) -> dict:
    """What a client sends, numpy arrays."""
    packed = recpress.pack_bags([tuple(t.numpy() for t in rows[name]) for name in ROWS])
    return {"dense": rows["dense"].numpy(), **packed}


def write_bags(folder, batch: int = 6):
    """Compress, export, and the compressed model."""
    torch.manual_seed(0)
    compressed = recpress.compress(BagRecommender().eval(), "int8")
    examples = arguments(bag_rows(batch))
    recpress.export(compressed, folder, example_inputs=examples, input_names=NAMES, output_names=("logit",), bags=BAGS)
    return compressed.model
