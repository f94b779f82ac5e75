"""One process of a torchrun that trains and prunes: ``pruning_rank.py FOLDER straight|resumed``.

Each rank sees rows of its own, and leaves what it came to in ``FOLDER/{straight,resumed}-{rank}.pt``.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import recpress
from recpress import Pruner, PruneSpec
from recpress.errors import PruningError
from recpress.pruning import masks, ranks
from recpress.pruning.schedules import Constant, Polynomial

CRITERIA = ("magnitude", "wanda", "gradient", "taylor", "movement")
STEPS, SAVED = 22, 9


def model(width: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1))


def rows(seed: int, rank: int) -> torch.Tensor:
    """Of each rank other columns are large."""
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(2 * seed + rank))
    return x * torch.tensor([1.0, 1, 1, 1, 5, 5, 5, 5]).roll(4 * rank)


def fresh(criterion: str, rank: int) -> tuple[nn.Module, Pruner, torch.optim.Optimizer]:
    net = model()
    spec = PruneSpec(pattern="unstructured", criterion=criterion)
    pruner = Pruner(net, spec, Polynomial(final=0.6, begin=3, end=18, frequency=5), calibration=[rows(99, rank)])
    return net, pruner, torch.optim.Adam(net.parameters(), lr=0.01)


def train(made: tuple, steps: range, rank: int, wrap: Callable = DistributedDataParallel) -> None:
    net, pruner, optimizer = made
    whole = wrap(net)
    for step in steps:
        x = rows(step, rank)
        (whole(x)[:, 0] - x.sum(dim=1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step(step)


def outcome(net: nn.Module) -> dict[str, dict]:
    state = {name: t.clone() for name, t in net.state_dict().items()}
    return {"weights": state, "masks": {name: keep.clone() for name, keep in masks.masks(net).items()}}


def straight(folder: Path, rank: int, found: dict) -> None:
    for criterion in CRITERIA:
        made = fresh(criterion, rank)
        train(made, range(SAVED), rank)
        if rank == 0:
            torch.save([part.state_dict() for part in made], folder / f"checkpoint-{criterion}.pt")
        train(made, range(SAVED, STEPS), rank)
        found[criterion] = outcome(made[0])
    for name, agreeing in (("wanda at once", True), ("wanda, each by itself", False)):
        net = model()
        with patch.object(ranks, "several", lambda agreeing=agreeing: agreeing):
            Pruner(net, PruneSpec(criterion="wanda"), Constant(0.5), calibration=[rows(99, rank)]).step(0)
        found[name] = outcome(net)
    once = recpress.prune(model(), PruneSpec(criterion="wanda"), calibration=[rows(99, rank)]).model
    found["before sharing"] = outcome(once)
    found["shared"] = outcome(ranks.share(once))
    try:
        ranks.share(model(width=12 + 4 * rank))
    except PruningError as error:
        found["refused"] = str(error)


def resumed(folder: Path, rank: int, found: dict) -> None:
    for criterion in CRITERIA:
        made = fresh(criterion, rank)
        for part, state in zip(made, torch.load(folder / f"checkpoint-{criterion}.pt"), strict=True):
            part.load_state_dict(state)
        train(made, range(SAVED, STEPS), rank)
        found[criterion] = outcome(made[0])


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    rank, found = int(os.environ["RANK"]), {}
    for criterion in CRITERIA if what == "straight" else ():
        alone = fresh(criterion, rank)
        train(alone, range(STEPS), rank, wrap=lambda net: net)  # no group yet: nothing is agreed on
        found[f"{criterion} alone"] = outcome(alone[0])
    distributed.init_process_group("gloo")
    {"straight": straight, "resumed": resumed}[what](folder, rank, found)
    torch.save(found, folder / f"{what}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
