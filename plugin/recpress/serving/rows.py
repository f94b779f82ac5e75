"""What the backend does to the inputs of requests: check each row, join requests, and split scores again.

At batch 1 a request costs its calls, 2 to 5 us for an operation of torch. So what nearly always holds is asked first,
in as few of them as can tell it, and where it does not hold is looked for afterwards. Joining into a buffer that is
kept takes as long as into a new one.
"""

import math

import torch
from torch import Tensor

from recpress.artifact import ragged
from recpress.artifact.manifest import DTYPES, InputSpec, Manifest, RaggedSpec


class RowsRefused(Exception):
    """What is wrong with a request whose bags cannot be told apart."""


MUST_BE_FINITE = "it must be finite"


class RowChecker:
    """Checks inputs against the manifest: floats are finite, and each index lies within its table.

    With bags the last two inputs are their lengths and values, which :meth:`received` checks and trims first.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._specs, self._ragged = manifest.inputs, manifest.ragged
        self._limits = [_limits(spec) for spec in manifest.inputs]
        self._ends = None if manifest.ragged is None else _ends(manifest.ragged)

    def received(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs of one request as they are joined: the values of bags ``[N]``.

        Raises:
            RowsRefused: a length is negative or too large, or the values do not fit the lengths.
        """
        if self._ragged is None:
            return inputs
        *plain, lengths, values = inputs
        if problem := ragged.problem(self._ragged, lengths, values):
            raise RowsRefused(problem)
        return (*plain, lengths, ragged.trimmed(lengths, values))

    def clean(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether all rows pass; the quick answer for a joined batch."""
        return all(map(_passes, inputs, self._limits)) and (self._ends is None or self._bags_pass(*inputs[-2:]))

    def _bags_pass(self, lengths: Tensor, values: Tensor) -> bool:
        bags = ragged.owners(lengths) % lengths.shape[1]
        return _passes(values, tuple(end[bags] for end in self._ends))

    def complaint(self, inputs: tuple[Tensor, ...]) -> str | None:
        """What is wrong with the first bad value, by input, row and column, or None."""
        if self._ends is not None and not self._bags_pass(*inputs[-2:]):
            return self._bags_complaint(*inputs[-2:])
        for spec, x, limits in zip(self._specs, inputs, self._limits, strict=False):
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

    def _bags_complaint(self, lengths: Tensor, values: Tensor) -> str:
        owners = ragged.owners(lengths)
        low, high = (end[owners % lengths.shape[1]] for end in self._ends)
        at = int(((values < low) | (values > high)).nonzero()[0])
        row, bag = divmod(int(owners[at]), lengths.shape[1])
        place = at - int((owners < owners[at]).sum())
        return (
            f"input {ragged.VALUES!r}, row {row}, bag {self._ragged.bags[bag].name!r}, value {place} is "
            f"{int(values[at])}; allowed are {int(low[at])} to {int(high[at])}"
        )


def _ends(spec: RaggedSpec) -> tuple[Tensor, Tensor]:
    """Lowest and highest allowed value of each bag, ``[F]`` in the values' dtype."""
    ends = torch.iinfo(DTYPES[spec.dtype])
    low = [ends.min if bag.table_low is None else bag.table_low for bag in spec.bags]
    high = [ends.max if bag.table_high is None else min(bag.table_high, ends.max) for bag in spec.bags]
    return torch.tensor(low, dtype=DTYPES[spec.dtype]), torch.tensor(high, dtype=DTYPES[spec.dtype])


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
