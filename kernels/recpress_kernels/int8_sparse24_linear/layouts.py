"""Whether triton laid a plain-language sparse kernel out as mma.sp needs: asserted of what it compiled, before it runs.

``tl.inline_asm_elementwise(..., pack=4)`` hands an instruction four elements that a thread holds, whichever they are.
mma.sp needs those of one row of ``[lanes, 4]``, rows in the order of the lanes. The language leaves that to the
compiler, and another choice gives wrong numbers without an error.

Imports neither torch nor triton.
"""

import re

from recpress_kernels.errors import KernelInputError

_LAYOUT = (
    "#ttg.blocked<{{sizePerThread = [1, 4], threadsPerWarp = [32, 1], warpsPerCTA = [{warps}, 1], order = [1, 0]}}>"
)
_ASM = re.compile(r'tt\.elementwise_inline_asm "mma\.sp[^"]*" \{([^}]*)\} [^:]* : (.*) loc\(')
_ALIAS = re.compile(r"^(#\w+) = (#ttg\..*)$", re.MULTILINE)
_TYPE = re.compile(r"tensor<(\w+), (#\w+)>")
_CACHED = 4096
_passed: set[tuple] = set()


def check(ttgir: str, warps: int) -> None:
    """Raises KernelInputError unless every mma.sp in ``ttgir``, for blocks of ``warps`` warps, takes whole rows.

    Args:
        ttgir: triton's last form of a kernel that still names layouts, ``compiled.asm["ttgir"]``.
    """
    wanted = _LAYOUT.format(warps=warps)
    layouts = dict(_ALIAS.findall(ttgir))
    products = _ASM.findall(ttgir)
    if not products or len(products) != ttgir.count('"mma.sp'):
        raise _refusal(f"{len(products)} of {ttgir.count(chr(34) + 'mma.sp')} products could be read", wanted)
    for name, number in (("num-warps", warps), ("threads-per-warp", 32), ("num-ctas", 1)):
        if f'"ttg.{name}" = {number} : i32' not in ttgir:
            raise _refusal(f"{name} is not {number}", wanted)
    shapes = [f"{32 * warps}x4x{kind}" for kind in ("i32", "i8", "i32", "i32", "i32")]  # the last: the result
    for attributes, types in products:
        found = _TYPE.findall(types)
        if "packed_element = 4 : i32" not in attributes or [shape for shape, _ in found] != shapes:
            raise _refusal(f"a product takes {types} with {attributes}", wanted)
        for _, alias in found:
            if layouts.get(alias) != wanted:
                raise _refusal(f"a product's operands lie as {layouts.get(alias, alias)}", wanted)


class Checked:
    """A kernel in triton's calling convention whose every compiled variant is checked before its first launch."""

    def __init__(self, kernel: object) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]):
        """A callable that takes what the kernel takes.

        Raises:
            KernelInputError: triton laid the kernel out otherwise; nothing was launched.
        """
        return lambda *arguments, **options: self._launch(grid, arguments, options)

    def _launch(self, grid: tuple[int, ...], arguments: tuple, options: dict) -> None:
        variant = (self.kernel, *map(_distinguishing, arguments), *options.items())
        if variant not in _passed:
            compiled = self.kernel.warmup(*arguments, grid=grid, **options)
            check(compiled.asm["ttgir"], options["num_warps"])
            if len(_passed) >= _CACHED:
                _passed.clear()
            _passed.add(variant)
        self.kernel[grid](*arguments, **options)


def _distinguishing(argument: object) -> object:
    """At least all that triton tells variants apart by: numbers whole, of a tensor its type, device and alignment."""
    if hasattr(argument, "data_ptr"):
        return argument.dtype, argument.device, argument.data_ptr() % 16
    return argument


def _refusal(found: str, wanted: str) -> KernelInputError:
    return KernelInputError(
        f"int8_sparse24_linear: this triton compiled the plain form so that {found}; allowed is {wanted} for every "
        "operand: take a triton from 3.9 on, whose Gluon form names its layouts, or run the weight dense"
    )
