"""PTX text, as triton emits it, into a list of instructions. See ptx_machine.py for what executes them."""

import re
from dataclasses import dataclass

_STATEMENT = re.compile(r"^(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_DECLARED = re.compile(r"^\.reg\s+\.(\w+)\s+(.*)$", re.DOTALL)
WIDTHS = {"pred": "?", "8": "u1", "16": "u2", "32": "u4", "64": "u8"}


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Immediate:
    """An integer, or the bits of a float."""

    value: int


@dataclass(frozen=True)
class Vector:
    items: tuple

    def __iter__(self):
        return iter(self.items)


@dataclass(frozen=True)
class Address:
    """``base + offset``: the base is a register, or the name of a parameter or of shared memory."""

    base: Register | str
    offset: int


@dataclass(frozen=True)
class Symbol:
    """A label, a special register or the name of shared memory."""

    name: str


@dataclass(frozen=True)
class Instruction:
    opcode: str  # the part before the first dot
    modifiers: tuple[str, ...]
    operands: tuple
    predicate: str | None = None
    negated: bool = False
    text: str = ""


@dataclass(frozen=True)
class Kernel:
    parameters: list[str]  # their types, b64 for pointers
    registers: dict[str, str]  # prefix or name: numpy dtype
    code: list[Instruction]
    labels: dict[str, int]
    threads: int


def parse(text: str) -> Kernel:
    """The first kernel of a module."""
    text = re.sub(r"//[^\n]*", "", text)
    head, body = text[text.index(".entry") :].split("{", 1)
    body = body[: _closing_brace(body)]
    registers: dict[str, str] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for raw in _statements(body):
        statement = raw.strip()
        while label := re.match(r"^(\$\w+):\s*", statement):
            labels[label[1]] = len(code)
            statement = statement[label.end() :]
        if declared := _DECLARED.match(statement):
            width = re.sub(r"^[a-z]+(?=\d)", "", declared[1])
            for name in declared[2].split(","):
                registers[re.sub(r"<\d+>", "", name.strip())] = WIDTHS[width]
        elif statement and not statement.startswith((".loc", ".pragma")):
            code.append(_instruction(statement))
    threads = int(re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head)[1])
    return Kernel(re.findall(r"\.param\s+\.\w(\d+)", head), registers, code, labels, threads)


def _closing_brace(body: str) -> int:
    depth = 1
    for at, char in enumerate(body):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return at
    raise SyntaxError("the kernel's body has no end")


def _statements(body: str) -> list[str]:
    """Split at semicolons; `.loc` ends with its line; braces that open and close a scope of inline asm are dropped."""
    body = re.sub(r"^\s*\.loc\b[^\n]*$", "", body, flags=re.MULTILINE)
    body = re.sub(r"(^|;|:)\s*\{(?=\s*(\.reg|@|[a-z]))", r"\1 ", body, flags=re.MULTILINE)
    body = re.sub(r";\s*\}", "; ", body)
    return body.split(";")


def _instruction(statement: str) -> Instruction:
    found = _STATEMENT.match(statement)
    if not found:
        raise SyntaxError(f"cannot read the PTX statement {statement!r}")
    negated, predicate, opcode, rest = found.groups()
    name, *modifiers = opcode.split(".")
    operands = tuple(_operand(part) for part in _split(rest))
    return Instruction(name, tuple(modifiers), operands, predicate, bool(negated), statement)


def _split(rest: str) -> list[str]:
    """At commas outside braces and brackets."""
    parts, depth, begin = [], 0, 0
    for i, char in enumerate(rest):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(rest[begin:i])
            begin = i + 1
    parts.append(rest[begin:])
    return [part.strip() for part in parts if part.strip()]


def _operand(part: str):
    if part.startswith("{"):
        return Vector(tuple(_operand(item) for item in _split(part[1:-1])))
    if part.startswith("["):
        inner = re.match(r"^\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]$", part)
        return Address(Register(inner[1]) if inner[1].startswith("%") else inner[1], int(inner[2] or "0", 0))
    if part.startswith("0f"):
        return Immediate(int(part[2:], 16))
    if re.match(r"^-?(0x[0-9a-fA-F]+|\d+)U?$", part):
        return Immediate(int(part.rstrip("U"), 0))
    if "|" in part:
        return Vector(tuple(_operand(item) for item in part.split("|")))
    if re.match(r"^%(tid|ntid|ctaid|nctaid|laneid|warpid)\b", part) or part.startswith("$") or part == "global_smem":
        return Symbol(part)
    return Register(part)
