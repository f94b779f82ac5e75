"""Executes PTX in numpy: every register is an array over the threads of all CTAs of a launch.

Threads diverge and meet again by running those with the lowest program counter first. ``order`` says which warps
come first between barriers: all in step, or one after another, forward or backward. A kernel whose result depends
on it lacks a barrier. Shared memory, destinations of asynchronous copies and guard zones hold poison; every access
is checked for bounds and alignment.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from ptx_instructions import Instructions
from ptx_memory import POISON, AsyncCopies, GlobalMemory, SharedMemory
from ptx_parse import Address, Immediate, Instruction, Kernel, Register, Symbol
from ptx_scalar import TYPES

Order = Literal["in step", "forward", "backward"]
_NO_EFFECT = {"membar", "fence", "griddepcontrol", "prefetch", "nanosleep"}
_MAX_STEPS = 2_000_000


class Machine(Instructions):
    """One launch of ``kernel`` on ``grid`` with ``parameters`` (integers; pointers are addresses in ``memory``)."""

    def __init__(
        self,
        kernel: Kernel,
        memory: GlobalMemory,
        parameters: Sequence[int],
        grid: tuple[int, int, int],
        shared_bytes: int,
    ) -> None:
        if len(parameters) > len(kernel.parameters):
            raise ValueError(f"{len(parameters)} arguments for {len(kernel.parameters)} parameters")
        self.kernel, self.memory, self.grid = kernel, memory, grid
        self.parameters = [*parameters, *[0] * (len(kernel.parameters) - len(parameters))]  # triton adds scratch space
        self.ctas = grid[0] * grid[1] * grid[2]
        self.size = self.ctas * kernel.threads
        self.threads = np.arange(self.size)
        self.cta, self.tid = self.threads // kernel.threads, self.threads % kernel.threads
        self.shared = SharedMemory(self.ctas, shared_bytes, kernel.threads)
        self.copies = AsyncCopies(self.size, self.shared)
        self.registers: dict[str, np.ndarray] = {}
        self.steps = 0

    def run(self, order: Order = "in step") -> None:
        self.pc = np.zeros(self.size, np.int64)
        self.alive = np.ones(self.size, bool)
        self.barrier = np.full(self.size, -1)  # which one a thread waits at
        warps = self.tid // 32
        with np.errstate(all="ignore"):
            while self.alive.any():
                ready = self.alive & (self.barrier < 0)
                if not ready.any():
                    self._release()
                    continue
                if order != "in step":
                    turn = warps[ready].min() if order == "forward" else warps[ready].max()
                    ready &= warps == turn
                self._advance(ready)

    def _release(self) -> None:
        """All threads wait: they go on where those of a CTA wait at the same barrier."""
        for cta in range(self.ctas):
            here = self.barrier[(self.cta == cta) & self.alive]
            if len(set(here.tolist())) > 1:
                raise AssertionError(f"CTA {cta} waits at several barriers for ever: {sorted(set(here.tolist()))}")
        self.barrier[:] = -1

    def _advance(self, ready: np.ndarray) -> None:
        """Run the threads that are furthest behind until they branch, wait, end or meet others."""
        at = int(self.pc[ready].min())
        active = ready & (self.pc == at)
        others = self.pc[ready & ~active]
        stop = int(others.min()) if others.size else len(self.kernel.code)
        self.active = self.threads if active.all() else np.flatnonzero(active)
        self.whole = len(self.active) == self.size
        while at < stop:
            instruction = self.kernel.code[at]
            self.steps += 1
            if self.steps > _MAX_STEPS:
                raise AssertionError(f"no end after {_MAX_STEPS} instructions, at {instruction.text!r}")
            at += 1
            if instruction.opcode in ("bra", "ret", "exit", "bar", "barrier"):
                self.pc[self.active] = at
                if self._flow(instruction):
                    return
            else:
                self._execute(instruction)
        self.pc[self.active] = at

    def _flow(self, instruction: Instruction) -> bool:
        """Branches, barriers and ends; whether the threads now differ, or have moved elsewhere."""
        chosen = self._chosen(instruction)
        if instruction.opcode == "bra":
            self.pc[chosen] = self.kernel.labels[instruction.operands[0].name]
            return len(chosen) > 0
        if instruction.opcode in ("ret", "exit"):
            self.alive[chosen] = False
            return True
        if instruction.modifiers[0] == "warp":
            return False
        if len(instruction.operands) > 1:
            raise NotImplementedError(instruction.text)
        self.barrier[chosen] = instruction.operands[0].value
        return True

    def _chosen(self, instruction: Instruction) -> np.ndarray:
        """The active threads whose predicate lets them take part."""
        if instruction.predicate is None:
            return self.active
        taken = self.registers[instruction.predicate][self.active] != instruction.negated
        return self.active[taken]

    def _execute(self, instruction: Instruction) -> None:
        if instruction.opcode in _NO_EFFECT:
            return
        self.now = self._chosen(instruction)
        self.everyone = len(self.now) == self.size
        if not len(self.now):
            return
        handler = getattr(self, f"_op_{instruction.opcode}", None)
        if handler is None:
            raise NotImplementedError(f"PTX instruction {instruction.text!r}")
        handler(instruction)

    # Operands

    def _read(self, operand, kind: str) -> np.ndarray:
        """The operand's value for each thread of ``now``, typed."""
        dtype = TYPES[kind]
        if isinstance(operand, Immediate):
            if dtype == np.bool_:
                return np.full(len(self.now), bool(operand.value))
            unsigned = np.dtype(f"u{dtype.itemsize}")
            bits = np.array(operand.value & (1 << 8 * dtype.itemsize) - 1, unsigned)
            return np.broadcast_to(bits.view(dtype), len(self.now))
        if isinstance(operand, Symbol):
            return self._special(operand.name).astype(dtype)
        values = self._register(operand.name)
        if not self.everyone:
            values = values[self.now]
        if dtype == np.bool_ or values.dtype == dtype:
            return values
        if dtype.itemsize < values.dtype.itemsize:
            values = values.astype(f"u{dtype.itemsize}")
        elif dtype.itemsize > values.dtype.itemsize:
            raise TypeError(f"{operand.name} is too narrow for {kind}")
        return values.view(dtype)

    def _write(self, operand, values: np.ndarray) -> None:
        if operand.name == "_":
            return
        register = self._register(operand.name)
        if values.dtype.kind == "f":
            values = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        elif values.dtype.kind == "i" and register.dtype.itemsize < values.dtype.itemsize:
            values = values.view(f"u{values.dtype.itemsize}")
        if self.everyone:
            register[:] = values  # from a narrower signed type with its sign, as loads and conversions extend
        else:
            register[self.now] = values

    def _register(self, name: str) -> np.ndarray:
        """A register of all threads, which holds poison until it is written, as after a load that is masked off."""
        if name not in self.registers:
            dtype = self.kernel.registers.get(name) or self.kernel.registers[name.rstrip("0123456789")]
            bits = np.full(self.size * np.dtype(dtype).itemsize, POISON, np.uint8)
            self.registers[name] = np.zeros(self.size, bool) if dtype == "?" else bits.view(dtype)
        return self.registers[name]

    def _special(self, name: str) -> np.ndarray:
        cta, tid = self.cta[self.now], self.tid[self.now]
        x, y, _z = self.grid
        known = {
            "%tid.x": tid,
            "%ctaid.x": cta % x,
            "%ctaid.y": cta // x % y,
            "%ctaid.z": cta // (x * y),
            "%laneid": tid % 32,
            "%warpid": tid // 32,
        }
        constants = {"%ntid.x": self.kernel.threads, "%tid.y": 0, "%tid.z": 0, "global_smem": 0}
        constants |= {f"%nctaid.{axis}": size for axis, size in zip("xyz", self.grid, strict=True)}
        return known[name] if name in known else np.full(len(self.now), constants[name])

    def _address(self, operand: Address) -> np.ndarray:
        if isinstance(operand.base, str):
            return np.full(len(self.now), operand.offset, np.int64)
        values = self._register(operand.base.name)[self.now].astype(np.int64)
        return values + operand.offset

    def _warps(self, operand: Register, kind: str = "u32") -> np.ndarray:
        """A register as ``[warps, 32]``: an instruction of whole warps needs all of their lanes."""
        lanes = self.now.reshape(-1, 32) if len(self.now) % 32 == 0 else None
        if lanes is None or (lanes % 32 != np.arange(32)).any():
            raise AssertionError("an instruction of whole warps ran with lanes missing")
        return self._read(operand, kind).reshape(-1, 32)
