"""What the kernels compile to, read from machine code on a machine without a GPU.

``python -m recpress_kernels.inspect [--json]`` prints one row a kernel, tile and target. It needs triton alone:
where torch is not installed, ``recpress_kernels`` registers no ops and the rest of the package can still be read,
so ``PYTHONPATH=kernels python -m recpress_kernels.inspect`` runs under any triton from 3.7 to 3.9. These are
counts of instructions, not timings.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from recpress_kernels.inspect.build import TARGETS, Build, Case, build
from recpress_kernels.inspect.listing import AMDGCN, SASS, Listing

__all__ = ["TARGETS", "Build", "Case", "Listing", "Row", "all_cases", "build", "census", "describe"]


@dataclass(frozen=True)
class Row:
    """One line of the census.

    ``mma``, ``instructions_per_mma`` (all instructions of the loop, the tensor-core ones included) and
    ``load_widths`` are of the hottest loop; where no loop multiplies on tensor cores, of all of the code.
    """

    kernel: str
    target: str
    config: str
    registers: int
    spills: int
    shared_bytes: int
    mma: str | None
    instructions_per_mma: float | None
    load_widths: dict[str, int]


def describe(case: Case, target: str, built: Build | None = None) -> Row:
    """Compile ``case`` for ``target`` (unless ``built`` is given) and read its row."""
    built = built or build(case, target)
    listing = Listing(built.code, SASS if built.vendor == "cuda" else AMDGCN)
    loop = listing.hottest_loop()
    mmas = listing.mma_counts(loop)
    return Row(
        kernel=case.kernel,
        target=target,
        config=case.config,
        registers=built.registers,
        spills=built.spills,
        shared_bytes=built.shared_bytes,
        mma=mmas.most_common(1)[0][0] if mmas else None,
        instructions_per_mma=round(len(listing.body(loop)) / mmas.total(), 2) if mmas and loop else None,
        load_widths=listing.load_widths(loop),
    )


def all_cases() -> list[Case]:
    """The cases of every op of this package."""
    from recpress_kernels.dot_interaction import census as dot_interaction
    from recpress_kernels.embedding_bag_rows import census as embedding_bag_rows
    from recpress_kernels.fm_interaction import census as fm_interaction
    from recpress_kernels.int8_linear import census as int8_linear
    from recpress_kernels.int8_sparse24_linear import census as int8_sparse24_linear
    from recpress_kernels.sparse24_linear import census as sparse24_linear
    from recpress_kernels.weight_only_linear import census as weight_only_linear

    products = (dot_interaction, fm_interaction, int8_linear, int8_sparse24_linear, sparse24_linear, weight_only_linear)
    return [case for op in (*products, embedding_bag_rows) for case in op.cases()]


def census(cases: Iterable[Case], targets: Iterable[str] = tuple(TARGETS)) -> Iterator[Row]:
    """One row for every case on each of its targets that is asked for, as they are compiled."""
    wanted = list(targets)
    for case in cases:
        for target in case.targets:
            if target in wanted:
                yield describe(case, target)
