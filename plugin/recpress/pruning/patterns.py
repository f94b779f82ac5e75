"""Which weights stay, by their scores: masks of the exact counts that a pattern asks for.

Each function takes scores ``[out, in]``, more is better, and the weights' sizes ``|W|`` of the same shape, which decide
between equal scores, and returns bool masks, True for what stays.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from recpress.errors import PruningError


def n_m(pattern: str) -> tuple[int, int] | None:
    """``(n, m)`` of a pattern "n:m", of which n of each m inputs in a row stay; None for other patterns.

    Raises:
        PruningError: n is not less than m, or under 1.
    """
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not found:
        return None
    n, m = int(found[1]), int(found[2])
    if not 0 < n < m:
        raise PruningError(f"pattern {pattern!r} keeps {n} of {m}; give n:m with 0 < n < m, such as 2:4")
    return n, m


def keep_n_m(scores: Tensor, sizes: Tensor, n: int, m: int) -> Tensor:
    """At most ``n`` of each ``m`` inputs in a row stay, the first m, the next m and so on.

    Inputs behind the last whole group are padded with zeros: of those that are there n stay, or all where they are n
    or fewer.
    """
    rows, columns = scores.shape
    order = _worst_first(_groups(scores, m, -math.inf), _groups(sizes, m, -math.inf))
    keep = torch.zeros(order.shape, dtype=torch.bool, device=scores.device)
    keep.scatter_(2, order[..., m - n :], True)
    return keep.view(rows, -1)[:, :columns].contiguous()


def part_n_m(keep: Tensor, scores: Tensor, m: int, share: float) -> Tensor:
    """``keep`` of :func:`keep_n_m` in a share of the groups, those that lose least by it; the others stay whole."""
    rows, columns = keep.shape
    lost = _groups(torch.where(keep, 0, scores.clamp(min=0)), m, 0).sum(dim=2)
    count = round(share * lost.numel())
    chosen = torch.zeros(lost.numel(), dtype=torch.bool, device=keep.device)
    chosen[lost.reshape(-1).argsort(stable=True)[:count]] = True
    whole = ~chosen.view(rows, -1, 1).expand(-1, -1, m).reshape(rows, -1)[:, :columns]
    return keep | whole


def keep_share(
    scores: Mapping[str, Tensor], sizes: Mapping[str, Tensor], sparsity: float, ranking: str
) -> dict[str, Tensor]:
    """Masks by name of which a share of ``sparsity`` is out: of each layer, of each of its rows, or of all together.

    The counts are exact: ``round(sparsity * n)`` of n values, those of the least score.

    Raises:
        PruningError: a global ranking leaves nothing of a layer.
    """
    if ranking != "global":
        return {name: _keep_local(s, sizes[name], sparsity, rows=ranking == "row") for name, s in scores.items()}
    flat, flat_sizes = (torch.cat([t.reshape(-1) for t in given.values()]) for given in (scores, sizes))
    keep = _keep_local(flat[None], flat_sizes[None], sparsity, rows=True)[0]
    found, start = {}, 0
    for name, s in scores.items():
        found[name] = keep[start : start + s.numel()].view(s.shape)
        start += s.numel()
        if not found[name].any():
            raise PruningError(
                f"a global ranking at sparsity {sparsity} leaves nothing of layer {name!r}, so that its outputs "
                "would be constant; give ranking='layer', a lower sparsity, or leave the layer dense by keep"
            )
    return found


def keep_above(scores: Tensor, theta: float) -> Tensor:
    """What is more than ``theta``."""
    return scores > theta


def median_threshold(scores: Tensor) -> float:
    """``theta = median(scores)``, the lower of the two in the middle: at least half of the scores are no more."""
    return float(scores.reshape(-1).median())


def _keep_local(scores: Tensor, sizes: Tensor, sparsity: float, *, rows: bool) -> Tensor:
    shape = scores.shape if rows else (1, scores.numel())
    order = _worst_first(scores.reshape(shape), sizes.reshape(shape))
    keep = torch.ones(shape, dtype=torch.bool, device=scores.device)
    keep.scatter_(1, order[:, : round(sparsity * shape[1])], False)
    return keep.view(scores.shape)


def _worst_first(scores: Tensor, sizes: Tensor) -> Tensor:
    """Places along the last dimension by rising score, equal ones by rising size."""
    by_size = sizes.argsort(dim=-1, stable=True)
    by_score = scores.gather(-1, by_size).argsort(dim=-1, stable=True)
    return by_size.gather(-1, by_score)


def _groups(values: Tensor, m: int, padding: float) -> Tensor:
    """``[rows, columns]`` as ``[rows, groups, m]``."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % m), value=padding)
    return padded.view(values.shape[0], -1, m)
