"""What the backend does to the inputs of requests: check each row, join requests, and split scores again.

At batch 1 a request costs its calls, 2 to 5 us for an operation of torch. So what nearly always holds is asked first,
in as few of them as can tell it, and where it does not hold is looked for afterwards. Joining into a buffer that is
kept takes as long as into a new one.
"""

import math

import torch
from torch import Tensor

from recpress.artifact.manifest import DTYPES, InputSpec, Manifest

MUST_BE_FINITE = "it must be finite"


class RowChecker:
    """Checks inputs against the manifest: floats are finite, and each index lies within its table."""

    def __init__(self, manifest: Manifest) -> None:
        self._specs = manifest.inputs
        self._limits = [_limits(spec) for spec in manifest.inputs]

    def clean(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether all rows pass; the quick answer for a joined batch."""
        return all(map(_passes, inputs, self._limits))

    def complaint(self, inputs: tuple[Tensor, ...]) -> str | None:
        """What is wrong with the first bad value, by input, row and column, or None."""
        for spec, x, limits in zip(self._specs, inputs, self._limits, strict=True):
            if _passes(x, limits):
                continue
            flat = x.reshape(x.shape[0], -1)
            if x.is_floating_point():
                row, column = (~torch.isfinite(flat)).nonzero()[0].tolist()
                allowed = MUST_BE_FINITE
            else:
                low, high = (limit.reshape(-1) for limit in limits)
                row, column = ((flat < low) | (flat > high)).nonzero()[0].tolist()
                allowed = f"allowed are {int(low[column])} to {int(high[column])}"
            return f"input {spec.name!r}, row {row}, column {column} is {flat[row, column].item()}; {allowed}"
        return None


def _passes(x: Tensor, limits: tuple[Tensor, Tensor] | None) -> bool:
    if x.is_floating_point():
        return all_finite(x)
    return limits is None or torch.equal(torch.clamp(x, *limits), x)


def all_finite(x: Tensor) -> bool:
    """Whether all numbers of ``x`` are finite. A finite sum says so; another may be that of large numbers."""
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def _limits(spec: InputSpec) -> tuple[Tensor, Tensor] | None:
    """Lowest and highest allowed index of each column, ``[*shape]`` in the input's dtype; None where any will do."""
    if DTYPES[spec.dtype].is_floating_point or all(end == (None, None) for end in spec.bounds):
        return None
    ends = torch.iinfo(DTYPES[spec.dtype])
    low = [ends.min if low is None else max(low, ends.min) for low, _ in spec.bounds]
    high = [ends.max if high is None else min(high, ends.max) for _, high in spec.bounds]
    return tuple(torch.tensor(end, dtype=DTYPES[spec.dtype]).reshape(spec.shape) for end in (low, high))


def join(requests: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The inputs of several requests one below the other."""
    return requests[0] if len(requests) == 1 else tuple(torch.cat(column) for column in zip(*requests, strict=True))


def split(outputs: tuple[Tensor, ...], lengths: list[int]) -> list[tuple[Tensor, ...]]:
    """The outputs of joined requests, by request."""
    if len(lengths) == 1:
        return [outputs]
    return list(zip(*(output.split(lengths) for output in outputs), strict=True))
