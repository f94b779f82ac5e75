"""What to compile of weight_only_linear for ``recpress_kernels.inspect``. Imports triton alone."""

from recpress_kernels.inspect.build import TARGETS, Case
from recpress_kernels.weight_only_linear import kernel
from recpress_kernels.weight_only_linear.launch import FLOAT32_TILES, TILES, Config

_SIZES = {name: "i32" for name in ("M", "N", "K", "stride_xm", "stride_wn")}
_POINTERS = {"w_ptr": "*i8", "w_scale_ptr": "*fp32", "bias_ptr": "*fp32"}


def gemm(config: Config, x: str, *, odd: tuple[str, ...] = (), targets: tuple[str, ...] = tuple(TARGETS)) -> Case:
    """A case with bias and relu whose sizes but the ``odd`` divide by 16."""
    signature = {"x_ptr": x, **_POINTERS, "y_ptr": x, **_SIZES}
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": 8}
    return Case(
        kernel="weight_only_linear.gemm",
        function=kernel.gemm_kernel,
        signature=signature,
        constexprs={"ACTIVATION": "relu", "TAIL": bool(odd), **blocks},
        aligned=frozenset(signature) - set(odd),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        targets=targets,
        config=f"{config} x={x[1:]}" + (" K odd, rows not padded" if odd else ""),
    )


def cases() -> list[Case]:
    """The tiles of launch.py, and an odd K."""
    found = [gemm(tile, "*fp16") for tile in TILES]
    found += [gemm(TILES[0], "*bf16"), *(gemm(tile, "*fp32") for tile in FLOAT32_TILES)]
    return [*found, gemm(TILES[2], "*fp16", odd=("K", "stride_xm", "stride_wn"), targets=("sm_80",))]
