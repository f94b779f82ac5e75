"""embedding_bag_rows as compiled: its PTX, executed, gives the bits of the reference. Then broken on purpose."""

from dataclasses import replace

import pytest
import torch
from ptx_launch import Emulated
from ptx_memory import AccessError
from support.ptx_edits import broken
from support.rows_oracle import EQUAL, MIXED, UNEQUAL, Bags, bags, expected, mapped_bags, padded, same, table

import recpress_kernels as rk
from recpress_kernels.embedding_bag_rows import cuda, kernel
from recpress_kernels.embedding_bag_rows.launch import Kind
from recpress_kernels.errors import IndexBoundsError

FUNCTIONS = {"bags_kernel": kernel.bags_kernel, "rows_kernel": kernel.rows_kernel}


@pytest.fixture
def emulate(monkeypatch):
    """Replaces the kernels; returns a function that sets how they run, on which tables."""

    def to(tables: list[torch.Tensor], remaps: list[torch.Tensor | None] | None = None, **options) -> None:
        addresses = {0: tables} if remaps is None else {0: tables, 10: remaps}
        for name, function in FUNCTIONS.items():
            stand_in = Emulated(function, ("out_ptr", "bad_ptr"), holds={"fields_ptr": addresses}, **options)
            monkeypatch.setattr(kernel, name, stand_in)

    return to


def run(b: Bags, pooling: str = "sum", weights=None, described: cuda.Described | None = None) -> torch.Tensor:
    described = described or cuda.describe(b.tables, b.dims, range(len(b.tables)))
    return cuda.embedding_bag_rows(described, b.indices, b.offsets, pooling, weights)


def look_up(b: Bags, ids: torch.Tensor, front: torch.Tensor | None) -> torch.Tensor:
    described = cuda.describe(b.tables, b.dims, range(len(b.tables)))
    return cuda.look_up_rows(described, ids, front, lambda: pytest.fail("nothing was wrong"))


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
@pytest.mark.parametrize("shapes", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_every_target(emulate, target, shapes):
    b = bags(shapes, 5, 6)
    emulate(b.tables, target=target)
    same(run(b), expected(b))


@pytest.mark.parametrize("shapes", [UNEQUAL, ((9, 64, 4), (5, 10, 4)), ((5, 17, 8),), ((4, 300, 8),)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_every_pooling(emulate, shapes, dtype):
    b = bags(shapes, 5, 6, dtype)
    emulate(b.tables)
    for pooling, weights in (("mean", None), ("sum", b.weights), ("none", None)):
        if pooling != "none" or len(shapes) == 1:
            same(run(b, pooling, weights), expected(b, pooling, weights))


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_16_bytes(emulate, bits):
    b = bags([(9, 64, bits), (5, 24, bits)], 17, 5)
    b = replace(b, tables=[padded(t) for t in b.tables])
    emulate(b.tables, order="backward")
    assert cuda.describe(b.tables, b.dims, (0, 1)).kind.align == 16
    same(run(b), expected(b))


@pytest.mark.parametrize("shapes", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("width", [0, 64, 13])
def test_single_look_ups_behind_a_front(emulate, shapes, width):
    b = bags(shapes, 1, 1)
    emulate(b.tables)
    ids = torch.stack([torch.randint(0, len(t), (9,)) for t in b.tables], dim=1)
    front = torch.randn(9, width) if width else None
    looked = replace(b, indices=ids.t().reshape(-1), offsets=torch.arange(ids.numel() + 1))
    parts = [expected(looked)] if front is None else [front, expected(looked)]
    same(look_up(b, ids, front), torch.cat(parts, dim=1))


def test_a_large_batch_takes_four_rows_a_thread(emulate):
    b = bags(EQUAL[:1], 1, 1)
    emulate(b.tables)
    ids = torch.randint(0, 30, (256,))
    looked = replace(b, indices=ids, offsets=torch.arange(257))
    same(look_up(b, ids[:, None], None), expected(looked))


def test_ids_are_mapped_on_the_way(emulate):
    b, maps, ids = mapped_bags(6)
    emulate(b.tables, [None if m is None else m.remap for m in maps])
    described = cuda.describe(b.tables, b.dims, range(4), maps)
    same(run(replace(b, indices=ids), described=described), expected(b))


@pytest.mark.parametrize("target", ["sm_90", "sm_120"])
def test_a_remap_that_leads_outside_reads_nothing(emulate, target):
    b = bags(EQUAL[:1], 3, 4)
    remap = torch.arange(30, dtype=torch.int32)
    described = cuda.describe(b.tables, b.dims, [0], [rk.IdMap(30, -1, remap)])
    emulate(b.tables, [remap], target=target)
    same(run(b, described=described), expected(b))
    remap[b.indices[0]] = 1 << 30
    assert run(b, described=described).isnan().any()


def test_rows_beyond_two_gibibytes(emulate):
    """The table is said to begin 2.3 GB before its first row."""
    before = 60_000_000
    b = bags(((3, 32, 8),), 3, 4)
    described = cuda.describe(b.tables, b.dims, [0])
    described.fields[0, 0] -= before * 36
    described.fields[0, 1] += before
    emulate(b.tables)
    same(run(replace(b, indices=b.indices + before), described=described), expected(b))


@pytest.mark.parametrize("value", [-1, 4, 2**32 + 1])
def test_an_index_outside_its_table_is_named_and_read_nowhere(emulate, value):
    b = bags(EQUAL, 4, 3)
    emulate(b.tables)
    b.indices[b.offsets[4]] = value
    with pytest.raises(IndexBoundsError, match=f"index {value} at position .* is outside table 1"):
        run(b)


def test_a_table_of_no_rows(emulate):
    b = Bags([table(1, 8, 8)[:0]], torch.tensor([0]), torch.tensor([0, 1]), None, [8])
    emulate(b.tables)
    with pytest.raises(IndexBoundsError, match="outside table 0"):
        run(b)


PRODUCT_AND_SUM = r"(?s)mul\.rn\.f32\s+(%r\d+), (%r\d+, %r\d+);(.*?)add\.rn\.f32\s+(%r\d+), (%r\d+), \1;"
SCALE_AND_BIAS = r"(?s)(cvt\.f32\.f16\s+%r\d+, )(%rs\d+);(.*?)(cvt\.f32\.f16\s+%r\d+, )(%rs\d+);"


@pytest.mark.parametrize(
    ("bits", "edit"),
    [
        (8, broken(PRODUCT_AND_SUM, r"\3fma.rn.f32 \4, \2, \5;", 0)),
        (8, broken(SCALE_AND_BIAS, r"\1\5;\3\4\2;")),
        (8, broken(r"(prmt\.b32\s+%r\d+, %r\d+, 0, 0x777)1U", r"\g<1>2U")),
        (4, broken(r"(shr\.u16\s+%rs\d+, %rs\d+, )4", r"\g<1>3")),
    ],
    ids=["one rounding", "scale and bias swapped", "a code of its neighbour", "the wrong half"],
)
def test_a_defect_shows(emulate, bits, edit):
    b = bags([(30, 64, bits)], 6, 9)
    emulate(b.tables, edit=edit)
    with pytest.raises(AssertionError, match="values differ"):
        same(run(b, "sum", b.weights), expected(b, "sum", b.weights))


def test_a_row_that_is_read_without_asking_its_bounds_shows(emulate):
    b = bags(EQUAL[:1], 3, 4)
    b.indices[0] = 10**9
    emulate(b.tables, edit=broken(r"@%p\d+ (ld\.global\.b32)", r"\1", 0))
    with pytest.raises(AccessError, match=r"ld\.global"):
        run(b)


def test_an_alignment_that_rows_do_not_have_shows(emulate):
    b = bags(EQUAL[:1], 6, 9)
    described = cuda.describe(b.tables, b.dims, [0])
    emulate(b.tables)
    with pytest.raises(AccessError, match="no multiple of 16"):
        run(b, described=replace(described, kind=Kind(8, 16, 4, 64)))


def test_loads_that_reach_behind_the_last_row_show(emulate):
    """Rows that are padded to 64 bytes, all but the last: none are read 16 bytes at a time, and rightly so."""
    packed = table(9, 52, 8)
    rows = padded(packed).as_strided((8 * 64 + 56,), (1,)).clone().as_strided((9, 56), (64, 1))
    b = Bags([rows], torch.tensor([8]), torch.tensor([0, 1]), None, [52])
    emulate(b.tables)
    described = cuda.describe(b.tables, b.dims, [0])
    assert described.kind.align == 4
    same(run(b), expected(b))
    with pytest.raises(AccessError, match=r"16 bytes at global"):
        run(b, described=replace(described, kind=Kind(8, 16, 4, 52)))
