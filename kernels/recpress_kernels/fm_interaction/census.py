"""What to compile of fm_interaction for ``recpress_kernels.inspect``. Imports triton alone."""

from recpress_kernels.fm_interaction import kernel
from recpress_kernels.fm_interaction.launch import choose
from recpress_kernels.inspect.build import TARGETS, Case

_SIZES = ("B", "V", "D", "stride_xb", "stride_xv")


def second_order(dim: int, x: str, *, odd: bool = False, targets: tuple[str, ...] = tuple(TARGETS)) -> Case:
    """Vectors whose D and strides divide by 16, or not where ``odd``."""
    config = choose(dim)
    signature = {"x_ptr": x, "y_ptr": x, **dict.fromkeys(_SIZES, "i32")}
    return Case(
        kernel="fm_interaction.second_order",
        function=kernel.second_order_kernel,
        signature=signature,
        constexprs={"BLOCK_B": config.block_b, "BLOCK_D": config.block_d},
        aligned=frozenset(signature) - {"B", "V"} - (set(_SIZES) if odd else set()),
        num_warps=1,
        targets=targets,
        config=f"{config} x={x[1:]}" + (" D odd" if odd else ""),
    )


def cases() -> list[Case]:
    """Vectors of 16 and 64 numbers."""
    found = [second_order(dim, x) for x in ("*fp16", "*bf16", "*fp32") for dim in (16, 64)]
    return [*found, second_order(64, "*fp16", odd=True, targets=("sm_80",))]
