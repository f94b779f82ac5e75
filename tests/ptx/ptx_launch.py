"""Stands in for a kernel that triton would launch: compiles it for a target and executes its PTX.

``Emulated(kernel)[grid](*tensors, **options)`` takes what a triton kernel takes, specialises as triton does (None
and 1 become constants, multiples of 16 are told to the compiler), and writes into the tensors, which lie on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from ptx_machine import Machine, Order
from ptx_memory import GlobalMemory
from ptx_parse import parse
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from recpress_kernels.inspect.build import Case, compiled

_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Emulated:
    """A kernel with triton's calling convention.

    Args:
        function: what @triton.jit made.
        writes: names of the arguments that it may store to; a store to others fails.
        holds: for the name of an int64 argument ``[T, ...]``, and each of its columns that holds addresses, the T
            tensors that they lie in, None for one that is 0; the kernel sees them where the emulator has put those.
        edit: changes the PTX before it runs, for tests of the emulator itself.
    """

    def __init__(
        self,
        function: object,
        writes: tuple[str, ...],
        *,
        target: str = "sm_80",
        order: Order = "in step",
        holds: Mapping[str, Mapping[int, Sequence[torch.Tensor | None]]] = MappingProxyType({}),
        edit: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.function, self.writes, self.target, self.order, self.edit = function, writes, target, order, edit
        self.holds = holds
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **named: self._launch((*grid, 1, 1)[:3], arguments, named)

    def warmup(self, *arguments, grid: tuple[int, ...], **named) -> CompiledKernel:
        """What a launch with these arguments would compile; nothing runs."""
        return compiled(self._case(*self._given(arguments, named)), self.target)

    def _launch(self, grid: tuple[int, int, int], arguments: tuple, named: dict) -> None:
        self.launches += 1
        given, options = self._given(arguments, named)
        case = self._case(given, options)
        made = compiled(case, self.target)
        kernel = parse(self.edit(made.asm["ptx"]))
        memory = GlobalMemory()
        places: dict[str, tuple[torch.Tensor, int]] = {}
        parameters: list[int] = []
        for name in case.signature:
            value = given[name]
            tensor = value.base if isinstance(value, TensorDescriptor) else value
            if name in self.holds:
                tensor = _moved(tensor, self.holds[name], memory)
            if isinstance(tensor, torch.Tensor):
                base = memory.place(_storage(tensor), writable=name in self.writes)
                places[name] = (tensor, base)
                parameters.append(base + tensor.storage_offset() * tensor.element_size())
            else:
                parameters.append(value)
            if isinstance(value, TensorDescriptor):
                parameters += _descriptor(value, kernel.parameters[len(parameters) :])
        Machine(kernel, memory, parameters, grid, made.metadata.shared).run(self.order)
        for name in self.writes:
            if name in places:
                tensor, base = places[name]
                _storage(tensor)[:] = memory.fetch(base)

    def _given(self, arguments: tuple, named: dict) -> tuple[dict, dict]:
        """The kernel's arguments by name, and the options of the launch."""
        options = {name: value for name, value in named.items() if name in _OPTIONS}
        rest = {name: value for name, value in named.items() if name not in _OPTIONS}
        return {**dict(zip(self.function.arg_names, arguments, strict=False)), **rest}, options

    def _case(self, given: dict, options: dict) -> Case:
        constexprs, signature, aligned = {}, {}, set()
        for parameter in self.function.params:
            name = parameter.name
            value = given[name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                constexprs[name] = value
                continue
            if isinstance(value, TensorDescriptor):
                rows, columns = value.block_shape
                signature[name] = f"tensordesc<{_TYPES[value.base.dtype][1:]}[{rows},{columns}]>"
                continue
            signature[name] = _TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            at = value.storage_offset() * value.element_size() if isinstance(value, torch.Tensor) else value
            if at % 16 == 0:
                aligned.add(name)
        return Case(
            kernel=self.function.__name__,
            function=self.function,
            signature=signature,
            constexprs=constexprs,
            aligned=frozenset(aligned),
            num_warps=options.get("num_warps", 4),
            num_stages=options.get("num_stages", 3),
        )


def _moved(
    addresses: torch.Tensor, columns: Mapping[int, Sequence[torch.Tensor | None]], memory: GlobalMemory
) -> torch.Tensor:
    """``addresses`` whose ``columns`` point into their tensors where ``memory`` has them now."""
    moved = addresses.clone()
    for column, tensors in columns.items():
        for row, tensor in zip(moved, tensors, strict=True):
            if tensor is not None:
                row[column] += memory.place(_storage(tensor)) - tensor.untyped_storage().data_ptr()
    return moved


def _descriptor(value: TensorDescriptor, widths: list[str]) -> list[int]:
    """What follows a descriptor's pointer where the target has none in hardware, so that triton loads by pointers.

    Shape and strides, flags of one byte (as many as this triton has, all off), shape and strides again.
    """
    flags = 0
    while widths[4 + flags] == "8":
        flags += 1
    return [*value.shape, *value.strides, *[0] * flags, *value.shape, *value.strides]


def _storage(tensor: torch.Tensor) -> np.ndarray:
    """All bytes behind a tensor, views' gaps included."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).numpy()
