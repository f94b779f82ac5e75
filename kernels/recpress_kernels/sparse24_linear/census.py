"""What to compile of sparse24_linear for ``recpress_kernels.inspect``. Imports triton alone."""

from recpress_kernels.inspect.build import Case
from recpress_kernels.int8_sparse24_linear.census import compiles
from recpress_kernels.int8_sparse24_linear.launch import MAX_TILES_M, WIDTHS, Config
from recpress_kernels.sparse24_linear import kernel
from recpress_kernels.sparse24_linear.launch import STAGED, unrolled

_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
_SIZES = {name: "i32" for name in ("M", "N", "rounds", "tiles", "stride_xm")}
_WORDS = {name: "*i32" for name in ("values_ptr", "metadata_ptr", "x_ptr")}


def gemm(config: Config, kind: str = "fp16", *, rest: int = 0, note: str = "") -> Case:
    """A case with bias and relu."""
    signature = {**_WORDS, **_SIZES, "bias_ptr": f"*{kind}", "y_ptr": f"*{kind}"}
    blocks = {"TILES_N": config.tiles_n, "TILES_M": config.tiles_m, "UNROLL": config.unroll, "WARPS": config.warps}
    return Case(
        kernel="sparse24_linear.gemm",
        function=kernel.gemm_kernel,
        signature=signature,
        constexprs={**blocks, "REST": rest, "STAGES": config.stages, "KIND": kind, "ACTIVATION": "relu"},
        aligned=frozenset(signature) - {"M", "N", "rounds", "tiles"},
        num_warps=config.warps,
        targets=_TARGETS,
        config=f"{config} {kind}{note}",
    )


def cases() -> list[Case]:
    """The tiles of launch.py; none where this triton cannot compile them."""
    if not compiles():
        return []
    large, *smaller = (unrolled(Config(tiles, MAX_TILES_M, 4, warps)) for tiles, warps in WIDTHS[:3])
    found = [gemm(STAGED), gemm(STAGED, "bf16"), gemm(large), gemm(large, rest=1, note=" rest=1")]
    return found + [gemm(config) for config in (*smaller, Config(4, 1, 4, 4), Config(1, 1, 4, 1))]
