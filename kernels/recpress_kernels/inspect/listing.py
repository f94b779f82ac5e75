"""Machine code as a list of instructions with labels, and what can be read from its hottest loop.

Knows the two texts that triton's wheel can produce without a GPU: SASS as ``nvdisasm -c`` prints it, and AMD
assembly as the compiler leaves it.
"""

import re
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """How one kind of machine code is spelt."""

    instruction: re.Pattern  # group 1: predicate or nothing, group 2: opcode, group 3: operands
    label: re.Pattern
    branch: re.Pattern  # on an instruction's text; group 1: the label it goes to
    leaves: re.Pattern  # on an opcode, unless predicated: the next instruction is not reached
    mma: re.Pattern  # on an opcode; its match names the shape
    widths: tuple[tuple[re.Pattern, str], ...]  # first match on an opcode of a global load names its width in bytes


SASS = Dialect(
    instruction=re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;"),
    label=re.compile(r"^(\.L\w+):"),
    branch=re.compile(r"^BRA\b.*\((\.L\w+)\)"),
    leaves=re.compile(r"^(BRA|EXIT|RET)(\.|$)"),
    mma=re.compile(r"^(?:[IHQDO]G?MMA|UTC\w*MMA)(?:\.SP)?(?:\.\d+(?:x\d+x\d+)?)?"),
    widths=(
        (re.compile(r"^UTMALDG"), "tma"),
        (re.compile(r"^LDG.*\.128"), "16"),
        (re.compile(r"^LDG.*\.64"), "8"),
        (re.compile(r"^LDG.*\.[US]16"), "2"),
        (re.compile(r"^LDG.*\.[US]8"), "1"),
        (re.compile(r"^LDG(STS|\.|$)"), "4"),
    ),
)
AMDGCN = Dialect(
    instruction=re.compile(r"^\s+()([a-z]\w*)\s*([^;]*)"),
    label=re.compile(r"^(\.LBB\w+):"),
    branch=re.compile(r"^s_c?branch\w*\s+(\.LBB\w+)"),
    leaves=re.compile(r"^s_(branch|endpgm|setpc\w*)$"),
    mma=re.compile(r"^v_(?:s?mfmac?|s?wmmac?)_\w+"),
    widths=(
        (re.compile(r"^(global|buffer)_load.*(x4|b128)"), "16"),
        (re.compile(r"^(global|buffer)_load.*(x3|b96)"), "12"),
        (re.compile(r"^(global|buffer)_load.*(x2|b64)"), "8"),
        (re.compile(r"^(global|buffer)_load.*(short|[usdb]16)"), "2"),
        (re.compile(r"^(global|buffer)_load.*(byte|[ui]8)"), "1"),
        (re.compile(r"^(global|buffer)_load"), "4"),
    ),
)


@dataclass(frozen=True)
class Loop:
    """A loop of the code: the basic blocks of its body, as ranges of instruction numbers."""

    blocks: frozenset[tuple[int, int]]

    def __contains__(self, other: "Loop") -> bool:
        return other.blocks < self.blocks


class Listing:
    """The instructions of one kernel in address order."""

    def __init__(self, text: str, dialect: Dialect) -> None:
        self.dialect = dialect
        self.opcodes: list[str] = []
        jumps: dict[int, str] = {}
        leaving: set[int] = set()
        labels: dict[str, int] = {}
        for line in text.splitlines():
            if label := dialect.label.match(line):
                labels[label[1]] = len(self.opcodes)
            elif found := dialect.instruction.match(line):
                predicate, opcode, operands = found.groups()
                at = len(self.opcodes)
                if branch := dialect.branch.match(f"{opcode} {operands}"):
                    jumps[at] = branch[1]
                # BRA.U and its kind carry the predicate among the operands.
                if dialect.leaves.match(opcode) and not predicate and not re.match(r"!?U?P\d", operands):
                    leaving.add(at)
                self.opcodes.append(opcode)
        size = len(self.opcodes)
        targets = {at: labels[to] for at, to in jumps.items() if labels.get(to, size) < size}
        self.loops = _loops(size, targets, leaving)

    def body(self, loop: Loop | None = None) -> list[str]:
        """The opcodes of the loop, or of all of the code.

        Loops inside it are left out where they hold no tensor-core instruction and it does: they wait.
        """
        if loop is None:
            return self.opcodes
        blocks = loop.blocks
        if self.mma_counts(loop, self._opcodes(blocks)):
            for inner in self.loops:
                if inner in loop and not self.mma_counts(inner, self._opcodes(inner.blocks)):
                    blocks = blocks - inner.blocks
        return self._opcodes(blocks)

    def _opcodes(self, blocks: frozenset[tuple[int, int]]) -> list[str]:
        return [opcode for begin, end in sorted(blocks) for opcode in self.opcodes[begin : end + 1]]

    def mma_counts(self, loop: Loop | None = None, opcodes: list[str] | None = None) -> Counter:
        """How often each tensor-core instruction stands in the loop, or in all of the code."""
        opcodes = self.body(loop) if opcodes is None else opcodes
        return Counter(found[0] for op in opcodes if (found := self.dialect.mma.match(op)))

    def hottest_loop(self) -> Loop | None:
        """The innermost loop that multiplies most on tensor cores, if any loop does."""
        busy = {loop: work for loop in self.loops if (work := _work(self.mma_counts(loop)))}
        innermost = [loop for loop in busy if not any(other in loop for other in busy)]
        return max(innermost, key=lambda loop: (busy[loop], len(self.body(loop))), default=None)

    def load_widths(self, loop: Loop | None = None) -> dict[str, int]:
        """How many global loads of each width in bytes (``"tma"``: whole tiles) stand in the loop, or in the code."""
        opcodes = self.body(loop)
        widths = (next((w for pattern, w in self.dialect.widths if pattern.match(op)), None) for op in opcodes)
        return dict(sorted(Counter(w for w in widths if w).items()))


def _work(mmas: Counter) -> int:
    """Multiplications of some tensor-core instructions, roughly: tcgen05 keeps its shape in a descriptor."""
    total = 0
    for name, count in mmas.items():
        shape = re.search(r"(\d+)x(\d+)x(\d+)", name)
        if shape:
            total += count * int(shape[1]) * int(shape[2]) * int(shape[3])
        else:
            total += count * (128 * 128 * 32 if name.startswith("UTC") else 16 * 8 * 32)
    return total


def _loops(size: int, targets: dict[int, int], leaving: set[int]) -> list[Loop]:
    """The natural loops of the control flow graph: back edges lead to a block that every way to them passes.

    Going by addresses alone would not do: a block that waits is laid out behind the code and comes back into the
    middle of the main loop, which would look like a loop of its own.
    """
    starts = sorted({0, *targets.values(), *(at + 1 for at in targets.keys() | leaving if at + 1 < size)})
    block_at = {start: i for i, start in enumerate(starts)}
    ends = [*(start - 1 for start in starts[1:]), size - 1]
    before: list[set[int]] = [set() for _ in starts]
    for i, end in enumerate(ends):
        if end in targets:
            before[block_at[targets[end]]].add(i)
        if end not in leaving and i + 1 < len(starts):
            before[i + 1].add(i)
    dominators = _dominators(before)
    bodies: dict[int, set[int]] = {}
    for head in range(len(starts)):
        for latch in before[head]:
            if dominators[latch] >> head & 1:
                body = bodies.setdefault(head, {head})
                reach = [latch]
                while reach:
                    block = reach.pop()
                    if block not in body:
                        body.add(block)
                        reach.extend(before[block])
    return [Loop(frozenset((starts[i], ends[i]) for i in body)) for body in bodies.values()]


def _dominators(before: list[set[int]]) -> list[int]:
    """For each block the set of those that every way to it passes, as bits; blocks never reached pass all."""
    everything = (1 << len(before)) - 1
    dominators = [1] + [everything] * (len(before) - 1)
    changed = True
    while changed:
        changed = False
        for i in range(1, len(before)):
            common = everything
            for j in before[i]:
                common &= dominators[j]
            if (updated := common | 1 << i) != dominators[i]:
                dominators[i], changed = updated, True
    return dominators
