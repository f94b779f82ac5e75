"""What to compile of int8_sparse24_linear for ``recpress_kernels.inspect``. Imports triton alone."""

import triton

from recpress_kernels.inspect.build import Case
from recpress_kernels.int8_sparse24_linear import decompress, kernel, plain
from recpress_kernels.int8_sparse24_linear.launch import (
    DENSE_TILES_M,
    DENSE_WIDTHS,
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
_FORMS = {"gemm": kernel, "plain": plain, "decompress": decompress}
_QUANTIZED = {"sums_ptr": "*i32", "zero_ptr": "*i32", "out_scale_ptr": "*fp32", "out_zero_ptr": "*i32"}


def gemm(
    config: Config, y: str = "*fp16", *, form: str = "gemm", quantized: bool = False, rest: int = 0, note: str = ""
) -> Case:
    """A case with bias and relu; ``form``: of ``_FORMS``; ``quantized``: x and y are uint8."""
    words = _WORDS if form == "gemm" else {**_WORDS, "metadata_ptr": "*i8"}
    signature = {**words, **_FLOATS, **_SIZES, **(_QUANTIZED if quantized else {}), "y_ptr": y}
    absent = {} if quantized else dict.fromkeys(_QUANTIZED)
    return Case(
        kernel=f"int8_sparse24_linear.{form}",
        function=_FORMS[form].gemm_kernel,
        signature=signature,
        constexprs={**absent, **blocks(config), "REST": rest, "ACTIVATION": "relu"},
        aligned=frozenset(signature) - {"M", "N", "steps", "tiles"},
        num_warps=config.warps,
        num_stages=2 if form == "decompress" else 3,  # what triton takes for HIP devices, which run that form
        targets=("sm_80", "gfx942") if form == "decompress" else _TARGETS,
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
    """The tiles of launch.py in each form that this triton compiles; and two of 4 x 8, which it avoids."""
    large, *smaller = (Config(tiles, MAX_TILES_M, UNROLL, warps) for tiles, warps in WIDTHS[:3])
    found = [gemm(large, form="plain", rest=rest, note=f" rest={rest}") for rest in (0, UNROLL - 1)]
    found += [gemm(config, form="plain") for config in (smaller[-1], Config(1, 1, UNROLL, 1))]
    found.append(gemm(large, "*u8", form="plain", quantized=True, note=" uint8"))
    warps = DENSE_WIDTHS[0][1]
    found += [gemm(Config(1, tiles, 1, warps), form="decompress") for tiles in DENSE_TILES_M]
    if not compiles():
        return found
    found += [gemm(large, rest=rest, note=f" rest={rest}") for rest in range(UNROLL)]
    smaller += [Config(4, 1, UNROLL, 4)]
    smaller += [Config(1, tiles_m, SPLIT_UNROLL, MAX_SPLIT, split=True) for tiles_m in (1, MAX_TILES_M)]
    found += [gemm(config) for config in smaller]
    found.append(gemm(large, "*u8", quantized=True, note=" uint8"))
    found += [gemm(config, note=" avoided") for config in (Config(4, 8, 1, 4), Config(4, 8, 1, 4, stages=3))]
    return found
