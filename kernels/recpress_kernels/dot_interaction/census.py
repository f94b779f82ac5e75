"""What to compile of dot_interaction for ``recpress_kernels.inspect``. Imports triton alone."""

from recpress_kernels.dot_interaction import kernel
from recpress_kernels.dot_interaction.launch import Config, choose
from recpress_kernels.inspect.build import TARGETS, Case

_SIZES = ("V", "D", "F", "WIDTH", "stride_xb", "stride_xv", "stride_fb")


def dots(
    config: Config, x: str, *, quantized: bool = False, odd: bool = False, targets: tuple[str, ...] = tuple(TARGETS)
) -> Case:
    """A case with a front part whose D, F and strides divide by 16, or not where ``odd``."""
    pair = {"out_scale_ptr": "*fp32", "out_zero_ptr": "*i32"} if quantized else {}
    signature = {"x_ptr": x, "front_ptr": x, **pair, "y_ptr": "*u8" if quantized else x, **dict.fromkeys(_SIZES, "i32")}
    constexprs = {"SELF": 0, "BLOCK_V": config.block_v, "BLOCK_D": config.block_d}
    absent = {} if quantized else {"out_scale_ptr": None, "out_zero_ptr": None}
    uneven = {"V", "WIDTH"} | ({"D", "F", "stride_xb", "stride_xv", "stride_fb"} if odd else set())
    return Case(
        kernel="dot_interaction.dots",
        function=kernel.dots_kernel,
        signature=signature,
        constexprs={**constexprs, **absent},
        aligned=frozenset(signature) - uneven,
        num_warps=config.num_warps,
        targets=targets,
        config=f"{config} x={x[1:]}" + (" out=u8" if quantized else "") + (" D odd" if odd else ""),
    )


def cases() -> list[Case]:
    """6 vectors of 16, 27 of 64, and the most of 128, in the dtypes."""
    shapes = ((6, 16), (27, 64), (128, 128))
    found = [dots(choose(*shape, float32=x == "*fp32"), x) for x in ("*fp16", "*bf16", "*fp32") for shape in shapes]
    usual = choose(27, 64, float32=False)
    return [*found, dots(usual, "*fp16", quantized=True), dots(usual, "*fp16", odd=True, targets=("sm_80",))]
