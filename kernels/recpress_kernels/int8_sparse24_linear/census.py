"""What to compile of int8_sparse24_linear for ``recpress_kernels.inspect``. Imports triton alone."""

import triton

from recpress_kernels.inspect.build import Case
from recpress_kernels.int8_sparse24_linear import kernel
from recpress_kernels.int8_sparse24_linear.launch import (
    GLUON_TRITON,
    MAX_SPLIT,
    MAX_TILES_M,
    SPLIT_UNROLL,
    UNROLL,
    WIDTHS,
    Config,
)

_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
_SIZES = {name: "i32" for name in ("M", "N", "steps", "tiles", "stride_qm")}
_FLOATS = {name: "*fp32" for name in ("row_scale_ptr", "w_scale_ptr", "bias_ptr")}
_WORDS = {name: "*i32" for name in ("values_ptr", "metadata_ptr", "q_ptr")}
_QUANTIZED = {"sums_ptr": "*i32", "zero_ptr": "*i32", "out_scale_ptr": "*fp32", "out_zero_ptr": "*i32"}


def gemm(config: Config, y: str = "*fp16", *, quantized: bool = False, rest: int = 0, note: str = "") -> Case:
    """A case with bias and relu; ``quantized``: x and y are uint8."""
    signature = {**_WORDS, **_FLOATS, **_SIZES, **(_QUANTIZED if quantized else {}), "y_ptr": y}
    absent = {} if quantized else dict.fromkeys(_QUANTIZED)
    return Case(
        kernel="int8_sparse24_linear.gemm",
        function=kernel.gemm_kernel,
        signature=signature,
        constexprs={**absent, **blocks(config), "REST": rest, "ACTIVATION": "relu"},
        aligned=frozenset(signature) - {"M", "N", "steps", "tiles"},
        num_warps=config.warps,
        targets=_TARGETS,
        config=f"{config}{note}",
    )


def blocks(config: Config) -> dict:
    """The constants of a kernel that are the configuration's."""
    tiles = {"TILES_N": config.tiles_n, "TILES_M": config.tiles_m, "UNROLL": config.unroll, "WARPS": config.warps}
    return {**tiles, "STAGES": config.stages, "SPLIT": config.split}


def compiles() -> bool:
    """Whether this triton has what these kernels are written with."""
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= GLUON_TRITON


def cases() -> list[Case]:
    """The tiles of launch.py, and two of 4 x 8, which it avoids; none where this triton cannot compile them."""
    if not compiles():
        return []
    large, *smaller = (Config(tiles, MAX_TILES_M, UNROLL, warps) for tiles, warps in WIDTHS[:3])
    found = [gemm(large, rest=rest, note=f" rest={rest}") for rest in range(UNROLL)]
    smaller += [Config(4, 1, UNROLL, 4)]
    smaller += [Config(1, tiles_m, SPLIT_UNROLL, MAX_SPLIT, split=True) for tiles_m in (1, MAX_TILES_M)]
    found += [gemm(config) for config in smaller]
    found.append(gemm(large, "*u8", quantized=True, note=" uint8"))
    found += [gemm(config, note=" avoided") for config in (Config(4, 8, 1, 4), Config(4, 8, 1, 4, stages=3))]
    return found
