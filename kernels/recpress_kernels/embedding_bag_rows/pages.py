"""Large pages under tables and outputs, on Linux.

A look-up is anywhere in its table. With pages of 4 kB it misses the caches of addresses too, and walks the page table;
a large output is made of pages that the system fills with zeros one by one: beyond 32 MB at each call, below as the
allocator keeps its memory or gives it back. Pages of 2 MB take a third to two thirds off the time of single look-ups in
tables of 100k rows, and three quarters where the output is made of fresh ones.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS = Path("/proc/self/maps")
_HUGEPAGE, _COLLAPSE = 14, 25  # advice of madvise(2): for pages to come, and for those that are there (Linux 6.1)
_LARGE_BYTES = 4 << 20  # of an output: from here on the advice costs nothing beside the call
_NEAR = 8192  # bytes that an allocator may leave between two tables


def _page_bytes() -> int:
    """The size of a large page, or 0 where there are none or the system is told never to use them."""
    try:
        if "[never]" in (_SYSTEM / "enabled").read_text():
            return 0
        return int((_SYSTEM / "hpage_pmd_size").read_text())
    except OSError:
        return 0


PAGE = _page_bytes()
if PAGE:
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def empty(rows: int, width: int) -> Tensor:
    """An output float32 ``[rows, width]``, on large pages where it is made of fresh ones."""
    out = torch.empty(rows, width, dtype=torch.float32)
    if PAGE and rows * width * 4 > _LARGE_BYTES:
        begin = out.data_ptr()
        _advise(begin, begin + rows * width * 4, _HUGEPAGE)
    return out


def put_under(tables: Sequence[Tensor]) -> None:
    """Put large pages under the tables, as far as they cover whole ones; addresses and contents stay.

    Copies the tables once, a page at a time. Memory that belongs to files is left alone: to have it in large pages, the
    system would read all of it. Where the system refuses, nothing changes.
    """
    storages = [table.untyped_storage() for table in tables]
    spans = _together([(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages])
    if not PAGE or all(end - begin < PAGE for begin, end in spans):
        return
    for low, high in _anonymous():
        for begin, end in spans:
            _advise(max(begin, low), min(end, high), _HUGEPAGE, _COLLAPSE)


def _together(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans with those joined that lie side by side, so that small tables share large pages."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin - joined[-1][1] <= _NEAR:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _anonymous() -> list[tuple[int, int]]:
    """The writable memory of this process that belongs to no file."""
    found = []
    for line in _MAPS.read_text().splitlines():
        span, rights, _, _, inode = line.split()[:5]
        if inode == "0" and rights == "rw-p":
            begin, end = span.split("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


def _advise(begin: int, end: int, *advice: int) -> None:
    """Give advice on the whole large pages between two addresses; a refusal is no error."""
    begin, end = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
    if begin < end:
        for each in advice:
            _madvise(begin, end - begin, each)
