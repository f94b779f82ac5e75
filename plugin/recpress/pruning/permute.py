"""An order of hidden units in which n:m takes less: input channels of a layer, permuted (Pool and Yu 2021).

n:m compares m inputs in a row; which inputs those are is free where they are hidden units: the layer's columns are put
in another order, and with them the rows and the bias of the layer before. The model computes the same, but for the
order in which each sum is added. The order is searched by swaps: in each round the groups are paired at random, and of
each pair the swap of two inputs is made that lets most of the scores stay, if any does.

J. Pool and C. Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021, with pairs at random instead of all of them.
"""

import torch
from torch import Tensor, nn

from recpress.pruning.chains import find, select
from recpress.pruning.targets import Target

ROUNDS = 100
"""At most; ten in a row without a swap end the search before."""
_PATIENCE = 10
_SEED = 0


def improve(
    model: nn.Module, found: list[Target], scores: dict[str, Tensor], n_m: tuple[int, int]
) -> dict[str, Tensor]:
    """Reorder the hidden units of ``model`` in place where that lets more of ``scores`` stay; the scores of then.

    Raises:
        PruningError: torch.fx cannot follow the model's forward.
    """
    names = {target.module: target.name for target in found}
    scores = dict(scores)
    for chain in find(model):
        if chain.last not in names or names[chain.last] not in scores:
            continue
        order = search(scores[names[chain.last]], *n_m)
        select(chain, order)
        scores[names[chain.last]] = scores[names[chain.last]][:, order]
        if chain.first in names and names[chain.first] in scores:
            scores[names[chain.first]] = scores[names[chain.first]][order]
    return scores


def search(scores: Tensor, n: int, m: int, *, rounds: int = ROUNDS) -> Tensor:
    """An order int64 ``[in]`` of the inputs of ``scores`` ``[out, in]`` of which n:m keeps no less than of theirs.

    Inputs behind the last whole group keep their places.
    """
    columns = scores.shape[1]
    groups = columns // m
    order = torch.arange(columns)
    if groups < 2:
        return order
    generator = torch.Generator().manual_seed(_SEED)
    by_input = scores.T.contiguous().cpu()
    swaps = _swaps(m)
    idle = 0
    for _ in range(rounds):
        if idle == _PATIENCE:
            break
        pairs = torch.randperm(groups, generator=generator)[: groups // 2 * 2].view(-1, 2)
        places = (pairs[:, :, None] * m + torch.arange(m)).view(len(pairs), 2 * m)
        tried = order[places][:, swaps]  # [pairs, swaps, 2 m]
        kept = _kept(by_input[tried].view(*tried.shape[:2], 2, m, -1).unbind(3), n)
        gain = kept - kept[:, :1]
        best = torch.where(gain.max(dim=1).values > 1e-6 * kept[:, 0], gain.argmax(dim=1), 0)
        idle = 0 if best.any() else idle + 1
        order[places.reshape(-1)] = tried[torch.arange(len(pairs)), best].reshape(-1)
    return order


def _kept(inputs: tuple[Tensor, ...], n: int) -> Tensor:
    """The sum of the ``n`` largest of the m ``inputs``, over all but the first two dimensions.

    By n passes of a bubble sort: a fifth of the time that topk takes along a dimension this short.
    """
    rest, largest = list(inputs), []
    for _ in range(n):
        top = rest[0]
        for i in range(1, len(rest)):
            rest[i - 1], top = torch.minimum(top, rest[i]), torch.maximum(top, rest[i])
        largest.append(top)
        rest.pop()
    return sum(values.sum(dim=(2, 3)) for values in largest)


def _swaps(m: int) -> Tensor:
    """The orders of two groups' places that differ by at most one swap between them, the first as they are."""
    orders = [list(range(2 * m))]
    for a in range(m):
        for b in range(m, 2 * m):
            new = list(range(2 * m))
            new[a], new[b] = b, a
            orders.append(new)
    return torch.tensor(orders)
