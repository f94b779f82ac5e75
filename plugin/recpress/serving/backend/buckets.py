"""Batches of any size by a forward that was captured for a few sizes.

A captured forward, such as a CUDA graph's, always reads the same buffers and always scores the same number of rows. So
rows are copied into the buffers, filled up to the next size, its bucket, and the outputs are cut back.
"""

from bisect import bisect_left
from collections.abc import Callable

from torch import Tensor

Rows = tuple[Tensor, ...]
Forward = Callable[[Rows], Rows]
Capture = Callable[[Rows], Callable[[], Rows]]
"""Given inputs that stay where they are, what scores whatever lies in them then, with the rows' outputs."""


def sizes(max_batch_size: int) -> list[int]:
    """The powers of two below ``max_batch_size``, and itself: at most half of a batch is filling."""
    return [1 << i for i in range((max_batch_size - 1).bit_length())] + [max_batch_size]


class Buckets:
    """A forward that was captured for each of :func:`sizes`.

    All are captured here, so that no request pays for it and what memory they take is known once a model is loaded.
    The buffers are shared by the buckets, and outputs may be too: they hold until the next call.

    Args:
        row: valid inputs of one row, each ``[1, *shape]``, where the forward runs.
        max_batch_size: rows of the largest batch.
        capture: called for each size, the largest first, so that the others fit in the memory that it took.
    """

    def __init__(self, row: Rows, max_batch_size: int, capture: Capture) -> None:
        self._sizes = sizes(max_batch_size)
        self._buffers = [x.repeat(max_batch_size, *[1] * (x.dim() - 1)) for x in row]
        self._replays = {size: capture(tuple(b[:size] for b in self._buffers)) for size in reversed(self._sizes)}

    def __call__(self, rows: Rows) -> Rows:
        """The outputs of ``rows``, each ``[B, *shape]``, B from 1 to ``max_batch_size``, on whatever device."""
        count = rows[0].shape[0]
        size = self._sizes[bisect_left(self._sizes, count)]
        for buffer, given in zip(self._buffers, rows, strict=True):
            buffer[:count].copy_(given, non_blocking=True)
            if count < size:
                # The last row once more: its indices are valid, and it changes no scale that is taken over a batch.
                buffer[count:size] = buffer[count - 1]
        return tuple(output[:count] for output in self._replays[size]())


def bucketed(forward: Forward, row: Rows, max_batch_size: int, capture: Capture, log: Callable[[str], None]) -> Forward:
    """``forward`` by :class:`Buckets`, or as it is where it cannot be captured; then ``log`` gets one line why."""
    try:
        return Buckets(row, max_batch_size, capture)
    except Exception as error:
        reason = " ".join(str(error).split())
        log(f"recpress: the model runs without CUDA graphs, as capturing one fails: {type(error).__name__}: {reason}")
        return forward
