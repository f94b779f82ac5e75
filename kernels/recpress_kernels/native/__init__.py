"""The native CPU kernels: a shared library with a plain C ABI, found and called through ctypes.

The library is built by ``pip install`` where there is a C++ compiler; without one the ops run through torch, several
times slower, and :func:`status` says so. It links neither torch nor OpenMP and starts no threads: a call runs on the
thread that makes it, with the interpreter's lock released, and any number of threads may call at once.
"""

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from recpress_kernels.errors import KernelInputError

ISAS = ("auto", "portable", "avx2", "avx512_vnni")
"""Instruction sets by their code in abi.h."""
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
LIBRARY_NAME = "librecpress.so"
_ABI = 11

STACK = -10
FLOAT_INPUTS = -13
FEATURES = (-4, -5)
"""The codes for x and y of other widths than the packed layers': the caller knows the numbers."""
_ERRORS = {
    -4: "x has another K than the first packed layer",
    -5: "out_features is not N of the last packed layer",
    -1: "packed does not begin with a packed buffer's header; give what pack() made",
    -2: "packed was made for another format version or layout; pack the canonical weights again",
    -3: "packed is corrupt: its headers contradict its length or each other; pack the canonical weights again",
    -6: "no memory for scratch buffers",
    -7: "x is quantised already and holds a value above 127; allowed are 0 to 127",
    -8: "the output holds NaN, which a quantised output cannot express: x has NaN or infinity in some row; "
    "leave out_scale away to get NaN in that row, or find where x came from",
    -11: "offsets do not describe bags of these indices",
    -12: "an index is outside its table",
    -13: "this packed layer keeps its inputs as floats; leave out x_scale, x_zero_point, out_scale and out_zero_point",
    -10: "packed holds a stack of several layers; give it to int8_mlp_packed",
    -9: "this instruction set is not built in or not on this CPU",
}


@dataclass(frozen=True)
class Status:
    """Whether the native kernels run here; ``reason`` says why not; ``isa`` is what they run on."""

    ok: bool
    reason: str
    isa: str | None = None


class LinearArguments(ctypes.Structure):
    """The structure of the same name in entry.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "packed")),
        ("packed_bytes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("canonical", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "x_stride", "n", "k")),
        *((name, ctypes.c_int32) for name in ("x_dtype", "y_dtype", "activation", "isa", "keeps_floats")),
        ("x_scale", ctypes.c_float),
        ("y_scale", ctypes.c_float),
        ("x_zero_point", ctypes.c_int32),
        ("y_zero_point", ctypes.c_int32),
    ]


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The shared library at ``path`` with its functions declared, or None and why not."""
    if not path.exists():
        return None, f"{LIBRARY_NAME} was not built: install a C++17 compiler (g++ or clang++) and reinstall recpress"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{LIBRARY_NAME} does not load: {error}"
    if library.recpress_abi() != _ABI:
        return None, f"{LIBRARY_NAME} was built from other sources: reinstall recpress"
    library.recpress_mlp.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_int32,
    ]
    library.recpress_linear.argtypes = [ctypes.POINTER(LinearArguments)]
    pointer, int64, int32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.recpress_bags.argtypes = [
        *(pointer, int64, pointer, int64, int32),
        *(pointer, int64, pointer, int32, pointer, int32),
    ]
    library.recpress_rows.argtypes = [
        *(pointer, int64, pointer, int64, int64, int64, int32),
        *(pointer, int64, int64, pointer, int32),
    ]
    library.recpress_quantize_rows.argtypes = [
        *(pointer, int64, int64, int64, int32, int32),
        *(pointer, int64, int32),
    ]
    library.recpress_map_ids.argtypes = [pointer, pointer, int64, int32, pointer]
    library.recpress_dots.argtypes = [
        *(pointer, *[int64] * 5, int32, pointer, int64, int64),
        *(int32, pointer, int32, ctypes.c_float, int32, int32),
    ]
    library.recpress_cross.argtypes = [pointer, int64, pointer, *[int64] * 3, pointer, int64, pointer, int32]
    library.recpress_second_order.argtypes = [pointer, *[int64] * 5, int32, pointer, int32]
    return library, ""


_library, _reason = load(Path(__file__).with_name(LIBRARY_NAME))
mlp = _library.recpress_mlp if _library else None
"""``recpress_mlp`` of entry.cpp; None where the library is missing."""
linear = _library.recpress_linear if _library else None
cross = _library.recpress_cross if _library else None
"""``recpress_cross`` of entry.cpp."""
bags = _library.recpress_bags if _library else None
"""``recpress_bags`` of entry_bags.cpp."""
rows = _library.recpress_rows if _library else None
"""``recpress_rows`` of entry_bags.cpp."""
map_ids = _library.recpress_map_ids if _library else None
"""``recpress_map_ids`` of entry_bags.cpp."""
quantize_rows = _library.recpress_quantize_rows if _library else None
"""``recpress_quantize_rows`` of entry_bags.cpp."""
dots = _library.recpress_dots if _library else None
"""``recpress_dots`` of entry_interaction.cpp."""
second_order = _library.recpress_second_order if _library else None
"""``recpress_second_order`` of entry_interaction.cpp."""
isa = 0
"""The code of the instruction set that calls ask for; 0 is the best of this CPU."""


def status() -> Status:
    """Whether the native kernels run here, on which instruction set, or why not."""
    if _library is None:
        return Status(False, _reason)
    name = ISAS[isa or _library.recpress_isa()]
    return Status(True, f"native kernels, {name}", name)


def isas() -> list[str]:
    """The instruction sets that are built in and on this CPU, the slowest first."""
    return [] if _library is None else [n for c, n in enumerate(ISAS) if c and _library.recpress_has_isa(c)]


@contextmanager
def use_isa(name: str):
    """Within this context calls run on the named instruction set: for tests and comparisons, of one thread."""
    global isa
    before, isa = isa, ISAS.index(name)
    try:
        yield
    finally:
        isa = before


def check(op: str, code: int) -> None:
    """Raise what a return code other than 0 stands for.

    Raises:
        KernelInputError: an operand's fault.
        MemoryError: no scratch memory.
    """
    if code:
        raise (MemoryError if code == -6 else KernelInputError)(f"{op}: {_ERRORS[code]}")
