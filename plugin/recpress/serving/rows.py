"""What the backend does to the inputs of requests: check each row, join requests, and split scores again."""

import torch
from torch import Tensor

from recpress.artifact.manifest import InputSpec, Manifest

MUST_BE_FINITE = "it must be finite"
_INT64 = torch.iinfo(torch.int64)


class RowChecker:
    """Checks inputs against the manifest: floats are finite, and each index lies within its table."""

    def __init__(self, manifest: Manifest) -> None:
        self._specs = manifest.inputs
        self._limits = {spec.name: _limits(spec) for spec in manifest.inputs}

    def clean(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether all rows pass; the quick answer for a joined batch."""
        return all(self._passes(spec, x) for spec, x in zip(self._specs, inputs, strict=True))

    def _passes(self, spec: InputSpec, x: Tensor) -> bool:
        if x.is_floating_point():
            return bool(torch.isfinite(x).all())
        limits = self._limits[spec.name]
        if limits is None:
            return True
        flat = x.reshape(x.shape[0], -1)
        return not bool(((flat < limits[0]) | (flat > limits[1])).any())

    def complaint(self, inputs: tuple[Tensor, ...]) -> str | None:
        """What is wrong with the first bad value, by input, row and column, or None."""
        for spec, x in zip(self._specs, inputs, strict=True):
            if self._passes(spec, x):
                continue
            flat = x.reshape(x.shape[0], -1)
            if x.is_floating_point():
                row, column = (~torch.isfinite(flat)).nonzero()[0].tolist()
                allowed = MUST_BE_FINITE
            else:
                low, high = self._limits[spec.name]
                row, column = ((flat < low) | (flat > high)).nonzero()[0].tolist()
                allowed = f"allowed are {int(low[column])} to {int(high[column])}"
            return f"input {spec.name!r}, row {row}, column {column} is {flat[row, column].item()}; {allowed}"
        return None


def _limits(spec: InputSpec) -> tuple[Tensor, Tensor] | None:
    """Lowest and highest allowed index of each column, int64; None where any will do in all of them."""
    if all(end == (None, None) for end in spec.bounds):
        return None
    low = torch.tensor([_INT64.min if low is None else low for low, _ in spec.bounds])
    high = torch.tensor([_INT64.max if high is None else high for _, high in spec.bounds])
    return low, high


def join(requests: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The inputs of several requests one below the other."""
    return requests[0] if len(requests) == 1 else tuple(torch.cat(column) for column in zip(*requests, strict=True))


def split(outputs: tuple[Tensor, ...], lengths: list[int]) -> list[tuple[Tensor, ...]]:
    """The outputs of joined requests, by request."""
    if len(lengths) == 1:
        return [outputs]
    return list(zip(*(output.split(lengths) for output in outputs), strict=True))
