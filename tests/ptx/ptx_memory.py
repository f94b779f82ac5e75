"""Memory that a PTX kernel sees: checked for bounds and alignment, with asynchronous copies that land late."""

import numpy as np

POISON = 0xCB
_GUARD = 4096


class AccessError(AssertionError):
    """A load or store outside every buffer, against a buffer's mode, or not aligned to its width."""


class GlobalMemory:
    """Buffers far from each other in one address space; bytes between them belong to nobody."""

    def __init__(self) -> None:
        self.bytes = np.full(_GUARD, POISON, np.uint8)
        self.allowed = np.zeros(_GUARD, np.uint8)  # bit 0: may be read, bit 1: may be written
        self.buffers: dict[int, np.ndarray] = {}

    def place(self, array: np.ndarray, *, writable: bool = False, shift: int = 0) -> int:
        """Copy ``array`` in at a multiple of 256 plus ``shift`` and return its address."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = len(self.bytes) + shift
        size = -(-(shift + raw.size) // 256) * 256 + _GUARD
        self.bytes = np.concatenate([self.bytes, np.full(size, POISON, np.uint8)])
        self.allowed = np.concatenate([self.allowed, np.zeros(size, np.uint8)])
        self.bytes[address : address + raw.size] = raw
        self.allowed[address : address + raw.size] = 3 if writable else 1
        self.buffers[address] = array
        return address

    def fetch(self, address: int) -> np.ndarray:
        """The present content of the buffer placed at ``address``."""
        like = self.buffers[address]
        return self.bytes[address : address + like.nbytes].view(like.dtype).reshape(like.shape).copy()

    def check(self, addresses: np.ndarray, size: int, *, write: bool, threads: np.ndarray, text: str) -> None:
        _check_alignment(addresses, size, threads, text)
        inside = addresses < len(self.bytes) - size
        spans = np.where(inside, addresses, 0)[:, None] + np.arange(size)
        fine = inside & (self.allowed[spans] & (2 if write else 1)).all(axis=1)
        if not fine.all():
            bad = np.flatnonzero(~fine)[0]
            raise AccessError(f"thread {threads[bad]}: {size} bytes at global {addresses[bad]:#x} in {text!r}")


class SharedMemory:
    """One window a CTA; addresses that a kernel sees begin with 0 in each."""

    def __init__(self, ctas: int, size: int, threads_a_cta: int) -> None:
        self.size = size
        self.bytes = np.full(ctas * size, POISON, np.uint8)
        self.threads_a_cta = threads_a_cta

    def locate(self, addresses: np.ndarray, threads: np.ndarray) -> np.ndarray:
        return addresses + threads // self.threads_a_cta * self.size

    def check(self, addresses: np.ndarray, size: int, *, threads: np.ndarray, text: str) -> None:
        _check_alignment(addresses, size, threads, text)
        bad = np.flatnonzero(addresses + size > self.size)
        if bad.size:
            raise AccessError(f"thread {threads[bad[0]]}: {size} bytes at shared {addresses[bad[0]]:#x} in {text!r}")


class AsyncCopies:
    """cp.async: a copy poisons its destination when issued and lands when its thread waits for its group."""

    def __init__(self, threads: int, shared: SharedMemory) -> None:
        self.shared = shared
        self.open_group = np.zeros(threads, np.int64)  # the number of the group that a thread's next copy joins
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def issue(self, threads: np.ndarray, where: np.ndarray, data: np.ndarray) -> None:
        """Copy ``data`` uint8 ``[n, size]`` to places ``where`` ``[n]`` of shared memory, some time."""
        self.shared.bytes[where[:, None] + np.arange(data.shape[1])] = POISON
        self.pending.append((threads, self.open_group[threads], where, data))

    def commit(self, threads: np.ndarray) -> None:
        self.open_group[threads] += 1

    def wait(self, threads: np.ndarray, groups_left: int) -> None:
        """Land what these threads issued, but for their last ``groups_left`` committed groups."""
        waiting = np.zeros(len(self.open_group), bool)
        waiting[threads] = True
        kept = []
        for owners, groups, where, data in self.pending:
            lands = waiting[owners] & (groups < self.open_group[owners] - groups_left)
            self.shared.bytes[where[lands][:, None] + np.arange(data.shape[1])] = data[lands]
            if not lands.all():
                kept.append((owners[~lands], groups[~lands], where[~lands], data[~lands]))
        self.pending = kept


def _check_alignment(addresses: np.ndarray, size: int, threads: np.ndarray, text: str) -> None:
    bad = np.flatnonzero(addresses % size)
    if bad.size:
        raise AccessError(f"thread {threads[bad[0]]}: {addresses[bad[0]]:#x} is no multiple of {size} in {text!r}")
