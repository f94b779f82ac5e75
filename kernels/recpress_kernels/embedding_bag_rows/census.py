"""What to compile of embedding_bag_rows for ``recpress_kernels.inspect``. Imports triton alone."""

from dataclasses import replace

from recpress_kernels.embedding_bag_rows import kernel
from recpress_kernels.embedding_bag_rows.launch import Config, Kind, choose_bags, choose_rows
from recpress_kernels.inspect.build import Case

_POINTERS = {"fields_ptr": "*i64", "indices_ptr": "*i64", "bad_ptr": "*i32", "out_ptr": "*fp32"}
_SIZES = {name: "i32" for name in ("B", "L", "F", "OUT_WIDTH", "stride_ib", "stride_ic", "stride_fb")}


def bags(kind: Kind, *, mean: bool = False, weighted: bool = False) -> Case:
    """A case of the configuration that is chosen for tables of this kind, their columns a multiple of 16."""
    config = choose_bags(kind)
    weights = {"weights_ptr": "*fp32"} if weighted else {}
    constexprs = {"MEAN": mean, "UNROLL": config.unroll, **({} if weighted else {"weights_ptr": None})}
    given = {**_POINTERS, "offsets_ptr": "*i64", **weights, **{name: _SIZES[name] for name in ("B", "L", "OUT_WIDTH")}}
    note = " mean" * mean + " weighted" * weighted
    return _case("bags", kernel.bags_kernel, config, kind, given, constexprs, note)


def rows(kind: Kind, batch: int) -> Case:
    """A case of single look-ups behind a front, its width a multiple of 16."""
    config = choose_rows(kind, batch)
    sizes = {name: type_ for name, type_ in _SIZES.items() if name not in ("L", "stride_ic")}
    given = {**_POINTERS, "front_ptr": "*fp32", **sizes}
    return _case("rows", kernel.rows_kernel, config, kind, given, {"stride_ic": 1}, "")


def _case(name: str, function, config: Config, kind: Kind, signature: dict, constexprs: dict, note: str) -> Case:
    blocks = {"BLOCK_B": config.block_b, "BLOCK_D": config.block_d}
    fixed = {
        "BITS": kind.bits,
        "ALIGN": kind.align,
        "OUT_ALIGN": kind.out_align,
        "MAPPED": kind.mapped,
        **blocks,
        **constexprs,
    }
    bits = f"int{kind.bits}" if kind.bits else "mixed"
    return Case(
        kernel=f"embedding_bag_rows.{name}",
        function=function,
        signature=signature,
        constexprs=fixed,
        aligned=frozenset(signature) - {"B", "L", "stride_ib"},
        num_warps=config.num_warps,
        config=f"{config} {bits} align={kind.align}" + " mapped" * kind.mapped + note,
    )


def cases() -> list[Case]:
    """Tables of 64 values in every form, of 16 and of more than a program takes; the poolings; look-ups."""
    kinds = [Kind(bits, align, 4, 64) for bits in (8, 4, 0) for align in (4, 16)]
    kinds += [Kind(8, 1, 1, 65), Kind(8, 4, 4, 16), Kind(8, 4, 4, 512)]
    usual, wide, mixed, packed = kinds[0], kinds[1], kinds[4], kinds[6]
    mapped = replace(usual, mapped=True)
    found = [bags(kind) for kind in (*kinds, mapped)] + [bags(usual, mean=True), bags(usual, weighted=True)]
    return [*found, *(rows(kind, 1) for kind in (usual, wide, mixed, packed, mapped)), rows(usual, 256)]
