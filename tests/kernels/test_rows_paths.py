"""embedding_bag_rows and look_up_rows: every path gives the bits of the reference, and touches nothing beyond a row."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from int8_cases import PATHS, guarded, path
from torch.fx.experimental.proxy_tensor import make_fx

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.embedding_bag_rows import reference
from recpress_kernels.embedding_bag_rows.op import check_bags, supports
from recpress_kernels.formats.rows import dequantize_rows, quantize_rows_int4, quantize_rows_int8, row_bytes

DIMS = [1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 64, 100, 128, 200]


def same_bits(a, b):
    """Equal in shape, dtype and every bit, the sign of zero too; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


def table(rows, dim, seed=0, bits=8):
    g = torch.Generator().manual_seed(seed + 1000 * rows + dim)
    floats = torch.randn(rows, dim, generator=g) * 10 ** torch.linspace(-6, 3, rows)[:, None]
    return (quantize_rows_int8 if bits == 8 else quantize_rows_int4)(floats)


def bags(tables, batch, longest, dtype=torch.int64, seed=0):
    """indices, offsets and weights of bags of 0 to ``longest`` indices; the last bag of each table is empty."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (len(tables), batch), generator=g)
    lengths[:, -1:] = 0
    indices = [torch.randint(0, len(t), (int(n),), generator=g) for t, n in zip(tables, lengths.sum(1), strict=True)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
    indices = torch.cat(indices)
    return indices.to(dtype), offsets.to(dtype), torch.randn(indices.numel(), generator=g)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("batch", [0, 1, 2, 33])
def test_bags_have_the_bits_of_the_reference(name, dtype, batch):
    """Tables of int8 and int4 rows take turns; half of the widths are int8 at one batch and int4 at another."""
    bits = [8, 4] * 7 + [8] if batch % 2 else [4, 8] * 7 + [4]
    shapes = zip([1, 5, 300] * 5, DIMS, bits, strict=True)
    tables = [table(rows, dim, bits=bit) for rows, dim, bit in shapes]
    described = rk.RowTables(tables, dims=DIMS)
    for longest in (1, 3, 40):
        indices, offsets, weights = bags(tables, batch, longest, dtype, seed=longest)
        for pooling, given in (("sum", None), ("mean", None), ("sum", weights)):
            operands = (indices, offsets, pooling, given)
            want = reference.embedding_bag_rows(tables, *operands, DIMS)
            assert want.shape == (batch, sum(DIMS))
            with path(name):
                assert same_bits(rk.embedding_bag_rows(tables, *operands, DIMS), want), longest
                assert same_bits(rk.embedding_bag_rows(described, *operands), want), longest
                assert same_bits(torch.ops.recpress.embedding_bag_rows(tables, *operands, DIMS), want)


@pytest.mark.parametrize("name", PATHS)
def test_rows_as_they_are(name):
    for bits, dim in ((8, 7), (4, 7), (4, 64)):
        rows = table(30, dim, bits=bits)
        indices, offsets, _ = bags([rows], 9, 5)
        want = dequantize_rows(rows, dim)[indices] + 0.0
        with path(name):
            assert same_bits(rk.embedding_bag_rows([rows], indices, offsets, "none", None, [dim]), want)
            assert same_bits(rk.embedding_bag_rows(rk.RowTables([rows], None, [dim]), indices, offsets, "none"), want)
            operands = ([rows], torch.full_like(indices, 30), offsets, "none", None, [dim])
            told = message(lambda o=operands: rk.embedding_bag_rows(*o))
            assert "index 30 at position 0 is outside table 0" in told


@pytest.mark.parametrize("name", PATHS)
def test_every_scale_and_bias(name):
    """All 65536 halves: subnormal, infinite, NaN, both zeros; as scale and as bias, on codes 0, 1 and 255."""
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8).view(-1, 2)
    codes = torch.tensor([[0, 1, 255] * 6]).expand(1 << 16, 18).to(torch.uint8)
    other = torch.tensor([-1.5], dtype=torch.float16).view(torch.uint8).expand(1 << 16, 2)
    zero = torch.zeros(1 << 16, 2, dtype=torch.uint8)
    indices = torch.arange(1 << 16)
    for tail in ((halves, other), (other, halves), (halves, zero), (halves, halves.flip(0))):
        rows = torch.cat([codes, *tail], dim=1)
        for dims in ([18], [35]):  # int8, and int4 with the halves of the same bytes
            operands = ([rows], indices, torch.arange(len(rows) + 1), "sum", None, dims)
            want = reference.embedding_bag_rows(*operands)
            with path(name):
                assert same_bits(rk.embedding_bag_rows(*operands), want)
                assert same_bits(rk.look_up_rows(rk.RowTables([rows], None, dims), indices), want)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", DIMS)
def test_nothing_beyond_the_last_row_is_touched(name, bits, dim):
    rows = guarded(table(3, dim, bits=bits))
    indices, offsets = guarded(torch.tensor([2, 0, 2, 2, 1])), guarded(torch.tensor([0, 1, 1, 5]))
    weights = guarded(torch.randn(5))
    with path(name):
        for pooling, given in (("sum", None), ("mean", None), ("sum", weights)):
            want = reference.embedding_bag_rows([rows], indices, offsets, pooling, given, [dim])
            assert same_bits(rk.embedding_bag_rows([rows], indices, offsets, pooling, given, [dim]), want)
        got = rk.look_up_rows(rk.RowTables([rows], None, [dim]), indices[:, None], guarded(torch.ones(5, 3)))
        assert same_bits(got[:, 3:], reference.embedding_bag_rows([rows], indices, torch.arange(6), dims=[dim]))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", native.isas())
def test_nothing_beyond_the_output_is_written(name, dim):
    """The kernel, called with an output that ends at a page without access."""
    tables = rk.RowTables([table(3, dim), table(4, dim, bits=4)], None, [dim, dim])
    indices, offsets = torch.tensor([0, 2, 2, 1]), torch.tensor([0, 1, 2, 4, 4])
    out = guarded(torch.full((2, 2 * dim), torch.nan))
    address, isa = out.data_ptr(), native.ISAS.index(name)
    assert not native.bags(tables.address, 2, indices.data_ptr(), 4, 1, offsets.data_ptr(), 2, None, 0, address, isa)
    dims = tables.dims
    assert same_bits(out, reference.embedding_bag_rows(list(tables.tables), indices, offsets, dims=dims))
    assert not native.rows(tables.address, 2, indices.data_ptr(), 2, 2, 1, 1, None, 0, 0, address, isa)
    by_table = indices.view(2, 2).t().reshape(-1)
    assert same_bits(out, reference.embedding_bag_rows(list(tables.tables), by_table, torch.arange(5), dims=dims))


@pytest.mark.parametrize("name", PATHS)
def test_tables_operands_and_offsets_of_other_strides(name):
    wide = table(9, 20)
    shifted = torch.cat([torch.zeros(9, 3, dtype=torch.uint8), wide, torch.ones(9, 2, dtype=torch.uint8)], dim=1)
    tables = [wide, shifted[:, 3:-2], wide.t().contiguous().t(), wide[::2], wide[2:3].expand(4, -1)]
    indices = torch.tensor([[8, 0, 8, 4, 3], [1, 2, 3, 0, 1]]).t().reshape(-1)
    apart = torch.stack([indices, indices], dim=1)[:, 0]
    offsets = torch.stack([torch.arange(11)] * 2, dim=1)[:, 1]
    weights = torch.rand(20)[::2]
    want = reference.embedding_bag_rows(tables, indices, offsets, "sum", weights)
    with path(name):
        assert same_bits(rk.embedding_bag_rows(tables, apart, offsets, "sum", weights), want)
        reason = supports(tables, apart, offsets, "sum", weights).reason
        assert "torch look-ups" in reason and ("not built" in reason or name == "torch" or "table 2" in reason)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("batch", [0, 1, 5, 64, 513, 1100])
def test_look_ups_have_the_bits_of_bags_of_one(name, dtype, batch):
    columns, dims = [2, 0, 3, 3], [7, 64, 100, 1]
    rows = [table(30, 7, bits=4), table(5, 64), table(9, 100, bits=4), table(2, 1)]
    g = torch.Generator().manual_seed(batch)
    indices = torch.stack([torch.randint(0, n, (batch,), generator=g) for n in (5, 50, 30, 2)], dim=1).to(dtype)
    front = torch.randn(batch, 5)
    flat = torch.cat([indices[:, c] for c in columns])
    want = reference.embedding_bag_rows(rows, flat, torch.arange(flat.numel() + 1), dims=dims)
    tables = rk.RowTables(rows, columns, dims)
    assert len(tables) == 4 and tables.dims == dims
    with path(name):
        for given in (indices, indices.t().contiguous().t(), torch.cat([indices, indices], dim=1)):
            assert same_bits(rk.look_up_rows(tables, given), want)
            for before in (front, front.t().contiguous().t(), torch.randn(batch, 0)):
                assert same_bits(rk.look_up_rows(tables, given, before), torch.cat([before, want], dim=1))
        one = rk.look_up_rows(rk.RowTables(rows[1:2]), indices[:, 0])
        assert same_bits(one, want[:, 7:71])


def message(call):
    with pytest.raises(rk.IndexBoundsError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "indices, offsets",
    [
        ([0, 1, 2, 3], [1, 2, 3, 4, 4]),
        ([0, 1, 2, 3], [0, 2, 3, 4, 5]),
        ([0, 1, 2, 3], [0, 2, 3, 3, 3]),
        ([0, 1, 2, 3], [0, 3, 2, 4, 4]),
        ([0, 1, 2, 3], [0, -1, 2, 4, 4]),
        ([0, 1, 2, 3], [0, 2, 9, 4, 4]),
        ([0, 1, 2, 4], [0, 1, 2, 4, 4]),
        ([-1, 1, 2, 3], [0, 1, 2, 4, 4]),
        ([0, 5, 2, 3], [0, 1, 2, 4, 4]),
        ([0, 4, 2, -(2**31)], [0, 1, 2, 4, 4]),
        ([0, 4, 2**31 - 1, 3], [0, 1, 2, 4, 4]),
        ([], [0, 0, 0, 0, 1]),
        ([], [1]),
    ],
)
def test_every_refusal_has_the_words_of_check_bags(name, dtype, indices, offsets):
    tables = [table(5, 3), table(4, 20)]
    indices, offsets = torch.tensor(indices, dtype=dtype), torch.tensor(offsets, dtype=dtype)
    want = message(lambda: check_bags(tables, indices, offsets))
    with path(name):
        assert message(lambda: rk.embedding_bag_rows(tables, indices, offsets)) == want
        assert message(lambda: torch.ops.recpress.embedding_bag_rows(tables, indices, offsets)) == want


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("value", [2**32 + 1, -(2**32) + 1, 2**63 - 1, -(2**63)])
def test_an_index_past_int32_is_not_cut_to_one_that_is_inside(name, value):
    tables = [table(5, 3), table(4, 20, bits=4)]
    indices, offsets = torch.tensor([0, 1, value, 2]), torch.tensor([0, 1, 2, 4, 4])
    with path(name):
        told = message(lambda: rk.embedding_bag_rows(tables, indices, offsets, "sum", None, [3, 20]))
        assert told == f"embedding_bag_rows: index {value} at position 2 is outside table 1; allowed are 0 to 3"
        told = message(lambda: rk.embedding_bag_rows(tables[:1], indices, torch.tensor([0, 4]), "none"))
        assert f"index {value} at position 2 is outside table 0" in told


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_table_of_no_rows_has_empty_bags_alone(name, dtype):
    none, tables = torch.zeros(0, dtype=dtype), [table(5, 3), table(1, 3)[:0]]
    described = rk.RowTables(tables, [0, 0])
    with path(name):
        got = rk.embedding_bag_rows(
            tables, torch.tensor([4, 1], dtype=dtype), torch.tensor([0, 1, 2, 2, 2], dtype=dtype)
        )
        assert not got[:, 3:].any() and same_bits(got[:, :3], dequantize_rows(tables[0], 3)[[4, 1]] + 0.0)
        assert rk.look_up_rows(described, none[:, None]).shape == (0, 6)
        told = message(lambda: rk.look_up_rows(described, torch.zeros(1, 1, dtype=dtype)))
        assert "index 0 at row 0, column 0 is outside table 1" in told
        told = message(lambda: rk.embedding_bag_rows(tables[1:], none.new_zeros(1), torch.tensor([0, 1], dtype=dtype)))
        assert "index 0 at position 0 is outside table 0" in told


@pytest.mark.parametrize("name", PATHS)
def test_weights_that_are_not_finite_stay_in_their_bag(name):
    rows = table(30, 17)
    indices, offsets = torch.arange(9), torch.tensor([0, 3, 3, 6, 9])
    for bad in (torch.nan, torch.inf, -torch.inf):
        weights = torch.rand(9)
        weights[4] = bad
        with path(name):
            got = rk.embedding_bag_rows([rows], indices, offsets, "sum", weights)
        assert same_bits(got, reference.embedding_bag_rows([rows], indices, offsets, "sum", weights))
        assert got[[0, 1, 3]].isfinite().all() and not got[2].isfinite().any()


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("value", [-1, 4, 2**40, -(2**62)])
def test_a_look_up_out_of_range_is_named(name, value):
    tables = rk.RowTables([table(5, 3), table(4, 20)], [2, 0])
    indices = torch.tensor([[0, 77, 4], [3, 77, 0], [value, 77, 0]])
    with path(name):
        told = message(lambda: rk.look_up_rows(tables, indices))
    assert told == f"look_up_rows: index {value} at row 2, column 0 is outside table 1; allowed are 0 to 3"


@pytest.mark.parametrize("name", native.isas())
def test_nothing_is_written_before_all_is_checked(name):
    tables = rk.RowTables([table(5, 3)])
    indices, offsets, out = torch.tensor([0, 1, 5]), torch.tensor([0, 1, 2, 3]), torch.zeros(3, 3)
    isa, address = native.ISAS.index(name), out.data_ptr()
    assert native.bags(tables.address, 1, indices.data_ptr(), 3, 1, offsets.data_ptr(), 3, None, 0, address, isa) == -12
    assert native.rows(tables.address, 1, indices.data_ptr(), 3, 1, 1, 1, None, 0, 0, address, isa) == -12
    assert not out.any()


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "indices, front, text",
    [
        (torch.zeros(2, 3), None, "indices is torch.float32"),
        (torch.zeros(2, 1).long(), None, "C >= 2"),
        (torch.zeros(2).long(), None, "C >= 2"),
        (torch.zeros(2, 2).long(), torch.zeros(3, 4), r"front is torch.float32 of shape \(3, 4\)"),
        (torch.zeros(2, 2).long(), torch.zeros(2, 4).double(), "front is torch.float64"),
        (torch.zeros(2, 2).long(), torch.zeros(2), "front is"),
    ],
)
def test_look_ups_refuse(name, indices, front, text):
    with path(name), pytest.raises(rk.KernelInputError, match=text):
        rk.look_up_rows(rk.RowTables([table(5, 3), table(4, 20)]), indices, front)


@pytest.mark.parametrize(
    "dims, text",
    [
        ([8], "dims has 1 entries for 2 tables"),
        ([8, 7], r"table 1 is torch.uint8 of shape \(4, 24\), its dim 7; .* take 11 \(int8\) or 8 \(int4\) bytes"),
        ([8, 0], "table 1 .* its dim 0"),
    ],
)
def test_refuses_dims_that_do_not_fit(dims, text):
    tables = [table(5, 8), table(4, 20)]
    with pytest.raises(rk.KernelInputError, match=text):
        rk.embedding_bag_rows(tables, torch.tensor([0, 0]), torch.tensor([0, 1, 2]), "sum", None, dims)
    with pytest.raises(rk.KernelInputError, match=text):
        rk.RowTables(tables, None, dims)
    with pytest.raises(rk.KernelInputError, match=r"RowTables have \[8, 20\]; leave it out"):
        rk.embedding_bag_rows(rk.RowTables(tables), torch.tensor([0]), torch.tensor([0]), "sum", None, dims)


def test_refuses_rows_as_they_are_of_two_tables():
    tables = [table(5, 8), table(4, 20)]
    for given in (tables, rk.RowTables(tables)):
        with pytest.raises(rk.KernelInputError, match="pooling 'none' with 2 tables; it is defined for one"):
            rk.embedding_bag_rows(given, torch.tensor([0, 0]), torch.tensor([0, 1, 2]), "none")


@pytest.mark.parametrize("name", PATHS)
def test_rows_past_2_to_the_31_bytes(name, tmp_path):
    """In a sparse file, of which three pages are ever written."""
    for bits, count in ((8, 32_000_000), (4, 60_000_000)):
        stride = row_bytes(64, bits)
        assert count * stride > 2**31
        rows = torch.from_file(str(tmp_path / f"{bits}"), True, count * stride, dtype=torch.uint8).view(count, stride)
        at = torch.tensor([count - 1, 0, 2**31 // stride + 1])
        rows[at] = table(3, 64, bits=bits)
        with path(name):
            got = rk.embedding_bag_rows([rows], at, torch.arange(4), "sum", None, [64])
            assert same_bits(got, reference.embedding_bag_rows([rows], at, torch.arange(4), dims=[64]))
            assert same_bits(rk.look_up_rows(rk.RowTables([rows], None, [64]), at), got)
        assert bool(got.any(dim=1).all())


@pytest.mark.parametrize(
    "tables, columns, text",
    [
        ([], None, "0 tables"),
        ([table(2, 3)], [0, 1], "1 tables and columns"),
        ([table(2, 3)], [-1], "from 0"),
        ([torch.zeros(2, 3)], None, "table 0 is torch.float32"),
    ],
)
def test_row_tables_refuse(tables, columns, text):
    with pytest.raises(rk.KernelInputError, match=text):
        rk.RowTables(tables, columns)


def test_row_tables_keep_what_they_describe_and_copies_describe_their_own():
    given = [table(50, 16), table(60, 8, bits=4)]
    tables = rk.RowTables(given, [1, 0], [16, 8])
    indices = torch.tensor([[59, 49], [0, 3]])
    want = rk.look_up_rows(tables, indices)
    twin = copy.deepcopy(tables)
    assert tables.address != twin.address
    assert twin.tables[0].data_ptr() != tables.tables[0].data_ptr()
    given.clear()
    litter = [torch.full((50, 20), 7, dtype=torch.uint8) for _ in range(50)]
    assert same_bits(rk.look_up_rows(tables, indices), want) and litter
    del tables
    litter += [torch.full((50, 20), 7, dtype=torch.uint8) for _ in range(50)]
    assert same_bits(rk.look_up_rows(twin, indices), want)


@pytest.mark.parametrize("name", PATHS)
def test_autograd_and_tracing_go_round_the_short_way(name):
    tables = rk.RowTables([table(5, 3)])
    front = torch.ones(2, 4, requires_grad=True)
    indices = torch.tensor([[1], [2]])
    with path(name):
        rk.look_up_rows(tables, indices, front).sum().backward()
        assert torch.equal(front.grad, torch.ones(2, 4))
        rows, offsets = list(tables.tables), torch.arange(3)
        traced = make_fx(lambda i: rk.embedding_bag_rows(rows, i, offsets))(indices[:, 0])
        assert torch.ops.recpress.embedding_bag_rows.default in {n.target for n in traced.graph.nodes}
        traced = make_fx(lambda i: rk.embedding_bag_rows(tables, i, offsets))(indices[:, 0])
        assert torch.ops.recpress.embedding_bag_rows.default in {n.target for n in traced.graph.nodes}
        looked = make_fx(lambda i: rk.look_up_rows(tables, i))(indices)
        assert torch.ops.recpress.embedding_bag_rows.default in {n.target for n in looked.graph.nodes}
        assert same_bits(looked(indices.flip(0)), rk.look_up_rows(tables, indices.flip(0)))


@pytest.mark.parametrize("name", native.isas())
def test_many_threads_at_once(name):
    tables = [table(1000, dim) for dim in (16, 7, 64)]
    indices, offsets, weights = bags(tables, 50, 9)
    want = reference.embedding_bag_rows(tables, indices, offsets, "sum", weights)
    with path(name), ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(rk.embedding_bag_rows, tables, indices, offsets, "sum", weights) for _ in range(200)]
        assert all(same_bits(job.result(), want) for job in jobs)


def test_supports_says_which_path_runs():
    operands = ([table(5, 3)], torch.tensor([0]), torch.tensor([0, 1]), "sum", None)
    assert supports(*operands).reason == native.status().reason
    assert not supports(*operands[:3], "max", None)
