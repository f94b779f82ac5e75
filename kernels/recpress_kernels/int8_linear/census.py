"""What to compile of int8_linear for ``recpress_kernels.inspect``. Imports triton alone."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import triton

from recpress_kernels.inspect.build import TARGETS, Case
from recpress_kernels.int8_linear import kernel, launch
from recpress_kernels.int8_linear.launch import Config, Device, halves

_SM8X = ("sm_80", "sm_86", "sm_89")
_CUDA = tuple(target for target, gpu in TARGETS.items() if gpu.backend == "cuda")
_DESCRIPTORS = ("sm_90", "sm_100")
_SCALARS = {"out_scale_ptr": "*fp32", "out_zero_ptr": "*i32", "x_scale_ptr": "*fp32", "x_zero_ptr": "*i32"}
_SIZES = {
    name: "i32" for name in ("M", "N", "K", "K_READABLE", "K_SPLIT", "K_PADDED", "stride_xm", "stride_qm", "stride_wn")
}
_POINTERS = {"w_ptr": "*i8", "q_ptr": "*i8", "w_scale_ptr": "*fp32", "bias_ptr": "*fp32", "row_scale_ptr": "*fp32"}
_TYPES = {**_SCALARS, **_SIZES, **_POINTERS, "zero_ptr": "*i32", "partial_ptr": "*i32"}
_CROSS = ("x0_ptr", "xl_ptr")
_OPTIONAL = frozenset({*_SCALARS, "zero_ptr", "partial_ptr"})


def case(
    name: str,
    function: object,
    config: Config,
    types: Mapping[str, str],
    constexprs: Mapping[str, object],
    *,
    given: tuple[str, ...] = (),
    odd: tuple[str, ...] = (),
    targets: tuple[str, ...] = tuple(TARGETS),
    note: str = "",
) -> Case:
    """A case whose optional operands are absent unless ``given``, and whose sizes but the ``odd`` divide by 16."""
    known = {**_TYPES, **types, **{name: types["y_ptr"] for name in _CROSS if name in given}}
    if "partial_ptr" not in given:
        known.pop("row_scale_ptr" if function is kernel.fused_kernel else "", None)
    signature, absent = {}, {}
    for argument in function.arg_names:
        if argument in constexprs:
            continue
        if argument in known and (argument not in _OPTIONAL or argument in given):
            signature[argument] = known[argument]
        else:
            absent[argument] = None
    descriptors = {argument for argument, t in signature.items() if t.startswith("tensordesc")}
    aligned = frozenset(signature.keys() - descriptors - set(odd))
    return Case(
        kernel=name,
        function=function,
        signature=signature,
        constexprs={**constexprs, **absent},
        aligned=aligned,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        targets=targets,
        config=f"{config}{note}",
    )


def fused(config: Config, x: str = "*fp16", activation: str = "relu", **options) -> Case:
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    note = f" x={x[1:]}" + options.pop("note", "")
    types = {"x_ptr": x, "y_ptr": x}
    constexprs = {**blocks, "ACTIVATION": activation}
    return case("int8_linear.fused", kernel.fused_kernel, config, types, constexprs, note=note, **options)


def gemm(config: Config, y: str = "*fp16", *, tail: bool = False, activation: str = "relu", **options) -> Case:
    constexprs = {
        "SCALAR_SCALE": "zero_ptr" in options.get("given", ()),
        "ACTIVATION": activation,
        "HALVES": config.halves,
        "TAIL": tail,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
    }
    return case("int8_linear.gemm", kernel.gemm_kernel, config, {"y_ptr": y}, constexprs, **options)


def tma(config: Config, y: str = "*fp16", **options) -> Case:
    types = {
        "y_ptr": y,
        "q_desc": f"tensordesc<i8[{config.block_m},{config.block_k}]>",
        "w_desc": f"tensordesc<i8[{config.block_n},{config.block_k}]>",
    }
    constexprs = {
        "SCALAR_SCALE": "zero_ptr" in options.get("given", ()),
        "ACTIVATION": "relu",
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
    }
    return case("int8_linear.gemm_tma", kernel.gemm_tma_kernel, config, types, constexprs, **options)


def quantize_rows(block_m: int, block_k: int, *, one_block: bool, x: str = "*fp16", **options) -> Case:
    config = Config("gemm", block_m, 0, block_k, 4, 3)
    constexprs = {"ONE_BLOCK": one_block, "BLOCK_M": block_m, "BLOCK_K": block_k}
    made = case("int8_linear.quantize_rows", kernel.quantize_rows_kernel, config, {"x_ptr": x}, constexprs, **options)
    return replace(made, config=f"{block_m}x{block_k} warps=4 x={x[1:]}")


def reduce(splits: int) -> Case:
    config = Config("gemm", 4, 128, 0, 4, 3, splits=splits)
    constexprs = {"SPLITS": splits, "SCALAR_SCALE": False, "ACTIVATION": "relu", "BLOCK_M": 4, "BLOCK_N": 128}
    made = case(
        "int8_linear.reduce", kernel.reduce_kernel, config, {"y_ptr": "*fp16"}, constexprs, given=("partial_ptr",)
    )
    return replace(made, config=f"4x128 warps=4 splits={splits}")


def cases() -> list[Case]:
    """Every kernel with the tiles of launch.py, in the form that launch.py would take under this triton.

    Beside them stand forms that it avoids, marked ``avoided``: the full-width dot on sm_8x, and pointers on sm_90.
    """
    found = [*_fused_cases()]
    for tile in launch.MMA_TILES:
        for target in (*_SM8X, "sm_120", "gfx942"):
            chosen = replace(tile, halves=halves(_device(target), tile.block_m))
            found.append(gemm(chosen, targets=(target,)))
    large = launch.MMA_TILES[0]
    for target in _SM8X:
        chosen = replace(large, halves=halves(_device(target), large.block_m))
        found.append(gemm(chosen, targets=(target,), tail=True, note=" tail"))
        found.append(gemm(chosen, targets=(target,), given=("zero_ptr",), note=" uint8"))
        quantized = ("out_scale_ptr", "out_zero_ptr")
        found.append(gemm(chosen, "*u8", targets=(target,), given=quantized, activation="gelu_erf", note=" out=u8"))
    found.append(gemm(Config("gemm", 16, 128, 128, 4, 4, halves=2), targets=_SM8X))
    other = replace(large, halves=3 - halves(_device("sm_80"), large.block_m))
    found.append(gemm(other, targets=_SM8X, note=" avoided"))
    found.append(gemm(launch.WGMMA_POINTER_TILES[0], targets=("sm_90",), note=" rows not aligned"))
    found.append(gemm(launch.TCGEN_POINTER_TILES[0], targets=("sm_100",), note=" rows not aligned"))
    found.append(gemm(large, targets=_DESCRIPTORS, note=" avoided"))
    found.append(tma(launch.WGMMA_TILES[0], targets=("sm_90",), given=("zero_ptr",), note=" uint8"))
    found += _odd_cases()
    found += _cross_cases()
    found += [tma(tile, targets=("sm_90",)) for tile in launch.WGMMA_TILES if tile.route == "tma"]
    found += [tma(tile, targets=("sm_100",)) for tile in launch.TCGEN_TILES if tile.route == "tma"]
    found += [quantize_rows(2, 1024, one_block=True), quantize_rows(1, 4096, one_block=False), reduce(4)]
    return found


def _fused_cases() -> Iterator[Case]:
    wide, middle, narrow = launch.FUSED_TILES
    for tile, m, x in ((narrow, 1, "*fp16"), (narrow, 1, "*fp32"), (middle, 8, "*fp16"), (wide, 16, "*fp16")):
        yield fused(launch.fused(tile, m, _device("sm_80")), x, targets=_CUDA)
    yield fused(launch.fused(narrow, 1, _device("gfx942")), targets=("gfx942",))
    static = launch.fused(middle, 16, _device("sm_80"))
    yield fused(static, given=("x_scale_ptr", "x_zero_ptr"), note=" static", targets=_CUDA)


def _odd_cases() -> Iterator[Case]:
    """An odd K: its weights as they are stored, and with rows that cuda.pad_rows padded."""
    wide = replace(launch.MMA_TILES[1], halves=halves(_device("sm_80"), launch.MMA_TILES[1].block_m))
    narrow = launch.fused(launch.FUSED_TILES[1], 8, _device("sm_80"))
    stored = ("K", "K_READABLE", "stride_wn", "stride_xm")
    padded = ("K", "stride_xm")
    yield gemm(wide, targets=("sm_80",), odd=stored, tail=True, note=" K odd, rows not padded")
    yield fused(narrow, targets=("sm_80",), odd=stored, note=" K odd, rows not padded")
    yield fused(narrow, targets=("sm_80",), odd=padded, note=" K odd")


def _cross_cases() -> Iterator[Case]:
    """The epilogue of a cross layer, by every route."""
    options = {"given": _CROSS, "activation": "none"}
    for tile in launch.MMA_TILES:
        for target in ("sm_80", "sm_120"):
            chosen = replace(tile, halves=halves(_device(target), tile.block_m))
            yield gemm(launch.with_cross(chosen, _device(target)), targets=(target,), note=" cross", **options)
    large = launch.with_cross(launch.MMA_TILES[0], _device("sm_80"))
    yield gemm(large, "*fp32", targets=("sm_80",), note=" cross fp32", **options)
    for tile in launch.WGMMA_TILES[:3]:
        wide = launch.with_cross(tile, _device("sm_90"))
        yield tma(wide, targets=("sm_90",), given=_CROSS, note=" cross")
        yield tma(wide, "*fp32", targets=("sm_90",), given=_CROSS, note=" cross fp32")
    few = launch.fused(launch.FUSED_TILES[0], 16, _device("sm_80"))
    yield fused(few, targets=_CUDA, note=" cross", **options)


def _device(target: str) -> Device:
    gpu = TARGETS[target]
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return Device(gpu.backend, gpu.arch if gpu.backend == "cuda" else 0, 108, version)
