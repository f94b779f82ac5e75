"""The instructions of PTX that triton emits for sm_80 to sm_90 and sm_120, by their name before the first dot.

A mixin of ptx_machine.Machine, which provides operands: ``_read``, ``_write``, ``_address``, ``_warps`` act on the
threads ``now``. Flushing denormals (``ftz``) and approximation are not modelled: both are computed as IEEE.
"""

import functools

import numpy as np
import ptx_scalar as scalar
import ptx_warp as warp
from ptx_parse import Address, Instruction, Register, Vector
from ptx_scalar import TYPES


class Instructions:
    """What each instruction does to the threads that take part."""

    def _arithmetic(self, instruction: Instruction, function) -> None:
        kind = instruction.modifiers[-1]
        if kind == "f32x2":
            pairs = [
                np.ascontiguousarray(self._read(operand, "b64")).view(np.float32)
                for operand in instruction.operands[1:]
            ]
            self._write(instruction.operands[0], np.ascontiguousarray(function(*pairs)).view(np.uint64))
            return
        if kind in ("f16", "bf16") and "f32" in instruction.modifiers:  # sm_120: 16-bit factors, or the first summand
            *narrow, last = instruction.operands[1:]
            halves = [self._read(operand, kind) for operand in narrow]
            wide = [scalar.bf16_to_f32(half) if kind == "bf16" else half.astype(np.float32) for half in halves]
            self._write(instruction.operands[0], np.asarray(function(*wide, self._read(last, "f32"))))
            return
        values = [self._read(operand, kind) for operand in instruction.operands[1:]]
        if kind in ("f16x2", "bf16x2"):
            function = scalar.packed(function, kind)
        elif kind == "bf16":
            wide = [scalar.bf16_to_f32(value) for value in values]
            self._write(instruction.operands[0], scalar.f32_to_bf16(function(*wide)))
            return
        self._write(instruction.operands[0], np.asarray(function(*values)))

    def _op_add(self, i: Instruction) -> None:
        self._arithmetic(i, np.add)

    def _op_sub(self, i: Instruction) -> None:
        self._arithmetic(i, np.subtract)

    def _op_neg(self, i: Instruction) -> None:
        self._arithmetic(i, np.negative)

    def _op_abs(self, i: Instruction) -> None:
        self._arithmetic(i, np.abs)

    def _op_min(self, i: Instruction) -> None:
        floating = i.modifiers[-1].startswith(("f", "bf"))
        smaller = np.fmin if floating and "NaN" not in i.modifiers else np.minimum
        self._arithmetic(i, lambda *values: functools.reduce(smaller, values))  # three operands on sm_120

    def _op_max(self, i: Instruction) -> None:
        floating = i.modifiers[-1].startswith(("f", "bf"))
        larger = np.fmax if floating and "NaN" not in i.modifiers else np.maximum
        self._arithmetic(i, lambda *values: functools.reduce(larger, values))

    def _op_div(self, i: Instruction) -> None:
        if i.modifiers[-1].startswith("f"):
            self._arithmetic(i, np.divide)
        else:
            self._arithmetic(i, lambda a, b: scalar.truncating_division(a, b)[0])

    def _op_rem(self, i: Instruction) -> None:
        self._arithmetic(i, lambda a, b: scalar.truncating_division(a, b)[1])

    def _op_rcp(self, i: Instruction) -> None:
        self._arithmetic(i, lambda a: (1 / a).astype(a.dtype))

    def _op_sqrt(self, i: Instruction) -> None:
        self._arithmetic(i, np.sqrt)

    def _op_ex2(self, i: Instruction) -> None:
        self._arithmetic(i, np.exp2)

    def _op_lg2(self, i: Instruction) -> None:
        self._arithmetic(i, np.log2)

    def _op_fma(self, i: Instruction) -> None:
        self._arithmetic(i, scalar.fma32)

    def _op_mul(self, i: Instruction) -> None:
        if "wide" in i.modifiers:
            self._write(i.operands[0], self._wide_product(i))
        else:
            self._arithmetic(i, scalar.high_product if "hi" in i.modifiers else np.multiply)

    def _op_mad(self, i: Instruction) -> None:
        if "wide" in i.modifiers:
            product = self._wide_product(i)
            self._write(i.operands[0], product + self._read(i.operands[3], f"{i.modifiers[-1][0]}64"))
        else:
            self._arithmetic(i, lambda a, b, c: a * b + c)

    def _wide_product(self, i: Instruction) -> np.ndarray:
        kind = i.modifiers[-1]
        wide = TYPES[f"{kind[0]}{2 * int(kind[1:])}"]
        a, b = (self._read(operand, kind).astype(wide) for operand in i.operands[1:3])
        return a * b

    def _op_and(self, i: Instruction) -> None:
        self._arithmetic(i, np.bitwise_and)

    def _op_or(self, i: Instruction) -> None:
        self._arithmetic(i, np.bitwise_or)

    def _op_xor(self, i: Instruction) -> None:
        self._arithmetic(i, np.bitwise_xor)

    def _op_not(self, i: Instruction) -> None:
        self._arithmetic(i, np.invert)

    def _op_shl(self, i: Instruction) -> None:
        self._shift(i, scalar.shift_left)

    def _op_shr(self, i: Instruction) -> None:
        self._shift(i, scalar.shift_right)

    def _shift(self, i: Instruction, function) -> None:
        value, count = self._read(i.operands[1], i.modifiers[-1]), self._read(i.operands[2], "u32")
        self._write(i.operands[0], function(value, count))

    def _op_bfe(self, i: Instruction) -> None:
        position, length = self._read(i.operands[2], "u32"), self._read(i.operands[3], "u32")
        self._write(i.operands[0], scalar.bfe(self._read(i.operands[1], i.modifiers[-1]), position, length))

    def _op_prmt(self, i: Instruction) -> None:
        self._arithmetic(i, scalar.prmt)

    def _op_lop3(self, i: Instruction) -> None:
        a, b, c = (self._read(operand, "b32") for operand in i.operands[1:4])
        self._write(i.operands[0], scalar.lop3(a, b, c, i.operands[4].value))

    def _op_dp4a(self, i: Instruction) -> None:
        a_type, b_type = (f"{kind[0]}32" for kind in i.modifiers[-2:])
        a, b = self._read(i.operands[1], "u32"), self._read(i.operands[2], "u32")
        c = self._read(i.operands[3], "s32" if "s32" in (a_type, b_type) else "u32")
        self._write(i.operands[0], scalar.dp4a(a, b, c, a_type, b_type))

    def _op_setp(self, i: Instruction) -> None:
        kind = i.modifiers[-1]
        result = scalar.COMPARE[i.modifiers[0]](self._read(i.operands[1], kind), self._read(i.operands[2], kind))
        if i.modifiers[1] in ("and", "or", "xor"):
            other = self._read(i.operands[3], "pred")
            result = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[i.modifiers[1]](result, other)
        self._write(i.operands[0], result)

    def _op_selp(self, i: Instruction) -> None:
        a, b = (self._read(operand, i.modifiers[-1]) for operand in i.operands[1:3])
        self._write(i.operands[0], np.where(self._read(i.operands[3], "pred"), a, b))

    def _op_cvt(self, i: Instruction) -> None:
        to, source = i.modifiers[-2:]
        if to in ("f16x2", "bf16x2"):
            high, low = (self._read(operand, "f32") for operand in i.operands[1:3])
            self._write(i.operands[0], scalar.pack_floats(low, high, to))
            return
        value = self._read(i.operands[1], source)
        value = scalar.bf16_to_f32(value) if source == "bf16" else value
        self._write(i.operands[0], scalar.convert(value, to, i.modifiers[:-2]))

    def _op_mov(self, i: Instruction) -> None:
        kind = i.modifiers[-1]
        to, source = i.operands
        if isinstance(source, Vector):
            parts = list(source)
            width = int(kind[1:]) // len(parts)
            words = [self._read(part, f"u{width}").astype(f"u{int(kind[1:]) // 8}") for part in parts]
            self._write(to, sum(word << word.dtype.type(width * n) for n, word in enumerate(words)))
        elif isinstance(to, Vector):
            width = int(kind[1:]) // len(to.items)
            word = self._read(source, f"u{kind[1:]}")
            for n, part in enumerate(to):
                self._write(part, (word >> word.dtype.type(width * n)).astype(f"u{width // 8}"))
        else:
            self._write(to, self._read(source, kind))

    def _op_ld(self, i: Instruction) -> None:
        to, address = i.operands[:2]
        if i.modifiers[0] == "param":
            value = self.parameters[int(address.base.rsplit("_", 1)[1])]
            self._write(to, np.full(len(self.now), value & 0xFFFFFFFFFFFFFFFF, np.uint64))
            return
        targets = list(to) if isinstance(to, Vector) else [to]
        dtype = TYPES[i.modifiers[-1]]
        raw = self._load(i, address, dtype.itemsize * len(targets))
        values = raw.view(dtype).reshape(len(self.now), len(targets))
        for n, target in enumerate(targets):
            self._write(target, np.ascontiguousarray(values[:, n]))

    def _op_st(self, i: Instruction) -> None:
        address, source = i.operands[:2]
        sources = list(source) if isinstance(source, Vector) else [source]
        values = np.stack([self._read(one, i.modifiers[-1]) for one in sources], axis=1)
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(self.now), -1)
        space, where = self._where(i, address, raw.shape[1], write=True)
        space.bytes[where[:, None] + np.arange(raw.shape[1])] = raw

    def _load(self, i: Instruction, address: Address, size: int) -> np.ndarray:
        space, where = self._where(i, address, size, write=False)
        return space.bytes[where[:, None] + np.arange(size)]

    def _where(self, i: Instruction, address: Address, size: int, *, write: bool):
        """The memory that an access goes to, and the checked places in it."""
        addresses = self._address(address)
        if any(m.startswith("shared") for m in i.modifiers):
            self.shared.check(addresses, size, threads=self.now, text=i.text)
            return self.shared, self.shared.locate(addresses, self.now)
        if "global" not in i.modifiers:
            raise NotImplementedError(i.text)
        self.memory.check(addresses, size, write=write, threads=self.now, text=i.text)
        return self.memory, addresses

    def _op_atom(self, i: Instruction) -> None:
        kind = i.modifiers[-1]
        space, where = self._where(i, i.operands[1], TYPES[kind].itemsize, write=True)
        added = self._read(i.operands[2], kind)
        if "add" not in i.modifiers or kind not in ("u32", "s32", "u64", "f32"):
            raise NotImplementedError(i.text)
        words = space.bytes.view(TYPES[kind])
        before = np.empty_like(added)
        for n, at in enumerate(where // TYPES[kind].itemsize):  # one after another: each sees the sum so far
            before[n] = words[at]
            words[at] += added[n]
        self._write(i.operands[0], before)

    def _op_red(self, i: Instruction) -> None:
        self._op_atom(Instruction(i.opcode, i.modifiers, (Register("_"), *i.operands), text=i.text))

    def _op_cp(self, i: Instruction) -> None:
        if i.modifiers[0] != "async":
            raise NotImplementedError(i.text)
        if i.modifiers[1] == "commit_group":
            self.copies.commit(self.now)
        elif i.modifiers[1] == "wait_group":
            self.copies.wait(self.now, i.operands[0].value)
        elif i.modifiers[1] == "wait_all":
            self.copies.wait(self.now, -1)
        else:
            self._copy(i)

    def _copy(self, i: Instruction) -> None:
        to, source, size = i.operands[0], i.operands[1], i.operands[2].value
        into = self._address(to)
        self.shared.check(into, size, threads=self.now, text=i.text)
        data = np.zeros((len(self.now), size), np.uint8)
        given = np.full(len(self.now), size) if len(i.operands) < 4 else self._read(i.operands[3], "s32")
        full = given == size
        if not (full | (given == 0)).all():
            raise NotImplementedError(f"a copy that fills up with zeros: {i.text!r}")
        addresses = self._address(source)[full]
        self.memory.check(addresses, size, write=False, threads=self.now[full], text=i.text)
        data[full] = self.memory.bytes[addresses[:, None] + np.arange(size)]
        self.copies.issue(self.now, self.shared.locate(into, self.now), data)

    def _op_shfl(self, i: Instruction) -> None:
        to = i.operands[0]
        value, by, clamp = (self._warps(operand) for operand in i.operands[1:4])
        received, inside = warp.shuffle(i.modifiers[1], value, by, clamp)
        first, *second = list(to) if isinstance(to, Vector) else [to]
        self._write(first, received.reshape(-1))
        for predicate in second:
            self._write(predicate, inside.reshape(-1))

    def _op_redux(self, i: Instruction) -> None:
        kind = i.modifiers[-1]
        lanes = warp.members(self._warps(i.operands[1], kind), self._warps(i.operands[2]), i.modifiers[1])
        self._write(i.operands[0], lanes.reshape(-1))

    def _op_ldmatrix(self, i: Instruction) -> None:
        to, address = i.operands
        targets = list(to) if isinstance(to, Vector) else [to]
        self._warps(address.base)
        needed = self.now[self.tid[self.now] % 32 < 8 * len(targets)]
        everyone, self.now = self.now, needed
        rows = self._load(i, address, 16).reshape(len(everyone) // 32, 8 * len(targets), 16)
        self.now = everyone
        for target, word in zip(targets, warp.ldmatrix(rows, "trans" in i.modifiers), strict=True):
            self._write(target, word.reshape(-1))

    def _op_stmatrix(self, i: Instruction) -> None:
        address, source = i.operands
        sources = list(source) if isinstance(source, Vector) else [source]
        rows = warp.stmatrix([self._warps(register) for register in sources], "trans" in i.modifiers)
        everyone, self.now = self.now, self.now[self.tid[self.now] % 32 < 8 * len(sources)]
        space, where = self._where(i, address, 16, write=True)
        space.bytes[where[:, None] + np.arange(16)] = rows.reshape(-1, 16)
        self.now = everyone

    def _op_mma(self, i: Instruction) -> None:
        d, a, b, c, *rest = i.operands
        words = [[self._warps(register) for register in operand] for operand in (a, b, c)]
        metadata = self._warps(rest[0]) if rest else None
        results = warp.mma(i.modifiers, *words, metadata=metadata, selector=rest[1].value if rest else 0)
        for register, result in zip(d, results, strict=True):
            self._write(register, np.ascontiguousarray(result).reshape(-1))
