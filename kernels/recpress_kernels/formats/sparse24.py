"""Weights of which at most two in each four inputs are not zero, as the two kept values and their places.

Canonical, device-free, as it lies in an artifact; ``in4`` is ``in`` rounded up to a multiple of 4::

    values   int8, float16 or bfloat16 [out, in4 / 2]   two a group of four inputs, in the order of their places
    indices  uint8 [out, ceil(in4 / 8)]                 a nibble i0 | i1 << 2 with i0 < i1 a group: even groups in the
                                                        low nibble; a high nibble without a group is 0

0.625 bytes a weight for int8 (2 + 1/2 for four of them), 1.125 for float16 and bfloat16, where dense ones take 1 and 2.

``in`` need not be a multiple of 4: the last group is padded with zeros, and ``in_features`` tells how many inputs are
real. A group with one value other than zero keeps the first free place beside it, one of zeros keeps places 0 and 1: so
``compress`` gives one form for one weight. ``decompress`` gives every value back bit for bit, but for a float's
-0.0, which is a zero like another and comes back as 0.0 where its place is not kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError

VALUE_DTYPES = (torch.int8, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sparse24:
    """A 2:4 weight ``[out, in_features]`` in canonical form; :func:`problem` tells whether it is one."""

    values: Tensor
    indices: Tensor
    in_features: int


def compress(weight: Tensor) -> Sparse24:
    """The canonical form of ``weight`` ``[out, in]`` (int8, float16 or bfloat16) that is 2:4 already.

    Raises:
        KernelInputError: another dtype or shape, or a group of four inputs with more than two values other than zero.
    """
    if weight.dtype not in VALUE_DTYPES or weight.dim() != 2 or not weight.numel():
        raise KernelInputError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)}; give int8, float16 or bfloat16 [out, in], "
            "out and in at least 1"
        )
    n, k = weight.shape
    fours = torch.nn.functional.pad(weight, (0, -k % 4)).view(n, -1, 4)
    taken = fours != 0
    crowded = taken.sum(dim=2) > 2
    if crowded.any():
        row, group = (int(i) for i in crowded.nonzero()[0])
        inputs = [4 * group + int(i) for i in taken[row, group].nonzero()]
        raise KernelInputError(
            f"weight is not 2:4: output {row}, group {group} (inputs {4 * group} to {4 * group + 3}) has {len(inputs)} "
            f"values other than zero, at inputs {', '.join(map(str, inputs))}; allowed are 2: prune the weight to 2:4"
        )
    places = taken.logical_not().to(torch.uint8).argsort(dim=2, stable=True)[..., :2].sort(dim=2).values
    values = fours.gather(2, places).view(n, -1)
    return Sparse24(values, pack_nibbles((places[..., 0] | places[..., 1] << 2).to(torch.uint8)), k)


def decompress(sparse: Sparse24) -> Tensor:
    """The weight ``[out, in_features]`` that ``sparse`` stands for; its places are taken as they are."""
    n, groups = sparse.values.shape[0], sparse.values.shape[1] // 2
    nibbles = unpack_nibbles(sparse.indices, groups).long()
    weight = sparse.values.new_zeros(n, groups, 4)
    weight.scatter_(2, torch.stack([nibbles & 3, nibbles >> 2], dim=2), sparse.values.reshape(n, groups, 2))
    return weight.view(n, 4 * groups)[:, : sparse.in_features].contiguous()


def pack_nibbles(nibbles: Tensor) -> Tensor:
    """uint8 ``[out, groups]`` of nibbles as ``[out, ceil(groups / 2)]``."""
    even = torch.nn.functional.pad(nibbles, (0, nibbles.shape[1] % 2))
    return even[:, 0::2] | even[:, 1::2] << 4


def unpack_nibbles(indices: Tensor, groups: int) -> Tensor:
    """The nibbles of ``indices``, uint8 ``[out, groups]``."""
    return torch.stack([indices & 15, indices >> 4], dim=2).reshape(indices.shape[0], -1)[:, :groups]


def problem(values: Tensor, indices: Tensor, in_features: int | None = None) -> str:
    """What keeps the operands from being a weight in this form, by dtype, shape and value; empty where nothing does.

    ``in_features`` None: a multiple of 4, as many as the values stand for. It reads the indices, so it waits for a GPU.
    """
    return form_problem(values, indices, in_features) or _value_problem(values, indices, in_features)


def check(sparse: Sparse24) -> None:
    """Check a form.

    Raises:
        KernelInputError: what :func:`problem` says.
    """
    if found := problem(sparse.values, sparse.indices, sparse.in_features):
        raise KernelInputError(found)


def form_problem(values: Tensor, indices: Tensor, in_features: int | None = None) -> str:
    """What :func:`problem` finds by dtype and shape alone."""
    if values.dtype not in VALUE_DTYPES or values.dim() != 2 or values.shape[1] % 2 or not values.numel():
        return (
            f"values is {values.dtype} of shape {tuple(values.shape)}; give int8, float16 or bfloat16 [out, in / 2] "
            "with in a multiple of 4: pad the weight's inputs with zeros"
        )
    n, groups = values.shape[0], values.shape[1] // 2
    wanted = (n, -(-groups // 2))
    if indices.dtype != torch.uint8 or tuple(indices.shape) != wanted:
        return (
            f"indices is {indices.dtype} of shape {tuple(indices.shape)}; give uint8 {list(wanted)}, "
            "a nibble a group of four"
        )
    if in_features is not None and -(-in_features // 4) != groups:
        return (
            f"in_features is {in_features} and values has shape {tuple(values.shape)}, {groups} groups of four inputs; "
            f"allowed are {4 * groups - 3} to {4 * groups}"
        )
    return ""


def _value_problem(values: Tensor, indices: Tensor, in_features: int | None) -> str:
    groups = values.shape[1] // 2
    nibbles = unpack_nibbles(indices, groups)
    wrong = (nibbles & 3) >= (nibbles >> 2)
    if wrong.any():
        row, group = (int(i) for i in wrong.nonzero()[0])
        first, second = int(nibbles[row, group]) & 3, int(nibbles[row, group]) >> 2
        return (
            f"indices name the places {first} and {second} in group {group} of output {row}; allowed are two different "
            "places in rising order: prune the weight to 2:4 again"
        )
    if groups % 2 and (indices[:, -1] >> 4).any():
        return f"indices have a nibble other than 0 behind the last of {groups} groups; allowed is 0"
    if in_features is not None and in_features % 4:
        last = torch.stack([nibbles[:, -1] & 3, nibbles[:, -1] >> 2], dim=1)
        beyond = (last >= in_features % 4) & (values[:, -2:] != 0)
        if beyond.any():
            row = int(beyond.any(dim=1).nonzero()[0])
            return f"output {row} keeps a value other than zero at an input beyond in_features = {in_features}"
    return ""
