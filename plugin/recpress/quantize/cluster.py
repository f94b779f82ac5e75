"""Weights that share a few values: k-means codebooks (S. Han et al. 2016, "Deep Compression", arXiv 1510.00149).

Of a layer's weights w, centroids c_1 ... c_k are found that lessen sum_i (w_i - c_a(i))^2, a(i) the nearest of them
(Lloyd's iterations); stored are the codes a(i), of 4 or 8 bits, and the codebook.
"""

import heapq

import torch
from torch import Tensor

from recpress.errors import KernelInputError

LEVELS = {"clustered-16": 16, "clustered-256": 256}
"""How many values the weights of a layer share, by scheme."""
_ITERATIONS = 100
_SMALLEST = torch.finfo(torch.float64).tiny


def cluster(weight: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 of the shape of ``weight``, and centroids float32 ``[levels]``, sorted.

    Weights that are zero stay so: where there are any, a centroid is zero. The start is the range, of whose parts the
    one with the largest sum of squares is split at its mean, again and again (Y. Linde, A. Buzo and R. Gray 1980). Even
    distances, which the paper starts from, leave 2.5 times as much of 256 centroids of normal weights, and 200 times
    with some outliers. Fewer different values than levels are all kept; the last is repeated.

    Raises:
        KernelInputError: a weight is NaN or infinite.
    """
    values = weight.detach().float().reshape(-1)
    if not torch.isfinite(values).all():
        raise KernelInputError("weight holds NaN or infinity")
    zeros = bool((values == 0).any())
    order = values[values != 0].double().sort().values
    distinct = torch.unique_consecutive(order)
    wanted = levels - zeros
    centroids = distinct if len(distinct) <= wanted else _lloyd(order, _split(order, wanted))
    centroids = torch.cat([centroids, centroids.new_zeros(int(zeros))]).float().sort().values
    centroids = torch.cat([centroids, centroids[-1:].expand(levels - len(centroids))])
    return nearest(weight.detach().float(), centroids), centroids


def nearest(weight: Tensor, centroids: Tensor) -> Tensor:
    """The code, uint8, of the nearest of sorted ``centroids`` for each weight."""
    middles = (centroids[1:] + centroids[:-1]) / 2
    return torch.bucketize(weight.contiguous(), middles).to(torch.uint8)


def stored_bytes(rows: int, columns: int, levels: int) -> int:
    """Of packed codes and the codebook."""
    return rows * (columns if levels > 16 else -(-columns // 2)) + 4 * levels


def pack(codes: Tensor, levels: int) -> Tensor:
    """uint8 ``[out, in]`` as it is for 256 levels; for 16 ``[out, ceil(in / 2)]``, the first of two in the low bits."""
    if levels > 16:
        return codes
    pairs = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).view(len(codes), -1, 2)
    return pairs[:, :, 0] | pairs[:, :, 1] << 4


def unpack(packed: Tensor, levels: int, columns: int) -> Tensor:
    """The codes uint8 ``[out, columns]`` that :func:`pack` was given."""
    if levels > 16:
        return packed
    pairs = torch.stack([packed & 15, torch.bitwise_right_shift(packed, 4)], dim=2)
    return pairs.flatten(1)[:, :columns]


def _split(order: Tensor, parts: int) -> Tensor:
    """The means ``[parts]`` of parts of sorted values ``[n]``, of at least as many different ones."""
    sums, squares = (torch.cat([t.new_zeros(1), t.cumsum(0)]).tolist() for t in (order, order.square()))

    def part(begin: int, end: int) -> tuple[float, int, int, float]:
        mean = (sums[end] - sums[begin]) / (end - begin)
        left = squares[end] - squares[begin] - mean**2 * (end - begin)
        # What rounding leaves of equal values is no reason to split them; of different ones something always is.
        left = max(left, _SMALLEST) if order[begin] != order[end - 1] else 0.0
        return -left, begin, end, mean

    heap = [part(0, len(order))]
    while len(heap) < parts:
        _, begin, end, mean = heapq.heappop(heap)
        middle = begin + int((order[begin:end] <= mean).sum())
        middle = min(max(middle, begin + 1), end - 1)
        heapq.heappush(heap, part(begin, middle))
        heapq.heappush(heap, part(middle, end))
    return order.new_tensor(sorted(mean for *_, mean in heap))


def _lloyd(order: Tensor, centroids: Tensor) -> Tensor:
    """Centroids of sorted values ``[n]`` from those given."""
    sums = torch.cat([order.new_zeros(1), order.cumsum(0)])
    for _ in range(_ITERATIONS):
        ends = torch.searchsorted(order, (centroids[1:] + centroids[:-1]) / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(order))])
        counts = ends.diff()
        means = torch.where(counts > 0, sums[ends].diff() / counts.clamp(min=1), centroids)
        if torch.equal(means, centroids):
            break
        centroids = means.sort().values
    return centroids
