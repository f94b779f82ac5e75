"""dot_interaction and fm_interaction on every path of the CPU: exact on whole numbers, else within their bounds."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from int8_cases import PATHS, guarded, path
from support.interaction_oracle import PAIR, SHAPES, dots, quantized, second_order, whole_numbers

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.dot_interaction import op as dot_op
from recpress_kernels.fm_interaction import op as fm_op

UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
@pytest.mark.parametrize("front", [0, 1, 16, 37])
def test_whole_numbers_are_exact(name, dtype, front):
    """Sums of whole numbers below 2^24: a wrong pair, place or tail shows as such."""
    for shape in (*SHAPES, (3, 1, 5), (0, 4, 8), (2, 5, 8), (2, 4, 4), (2, 29, 24)):
        vectors, given = whole_numbers(*shape, front, dtype)
        with path(name):
            for own in (False, True):
                want = dots(vectors, given, own)
                assert torch.equal(rk.dot_interaction(vectors, given, own), want.to(dtype)), (shape, own)
                assert torch.equal(rk.dot_interaction(vectors, given, own, *PAIR), quantized(want)), (shape, own)
            assert torch.equal(rk.fm_interaction(vectors), second_order(vectors).to(dtype)), shape


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_within_the_bounds_of_the_truth(name, dtype):
    g = torch.Generator().manual_seed(0)
    for batch, count, dim in ((3, 27, 64), (2, 6, 16), (2, 9, 131)):
        x = torch.randn(batch, count, dim, generator=g).to(dtype)
        want = dots(x)
        bound = dim * 2**-24 * dots(x.abs()) + UNIT[dtype] * want.abs() * 1.01
        wide = x.double()
        every = (wide.abs().sum(1).square() + wide.square().sum(1)).sum(1, keepdim=True) / 2
        total = second_order(x)
        with path(name):
            assert ((rk.dot_interaction(x).double() - want).abs() <= bound).all()
            error = (rk.fm_interaction(x).double() - total).abs()
        assert (error <= (count + dim + 3) * 2**-24 * every + UNIT[dtype] * total.abs() * 1.01).all()


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operands_of_other_strides(name, dtype):
    vectors, front = whole_numbers(4, 9, 16, 8, dtype)
    want, total = dots(vectors, front).to(dtype), second_order(vectors).to(dtype)
    apart = torch.full((8, 20, 18), 9.0, dtype=dtype)
    apart[::2, 1:19:2, 1:17] = vectors
    wide = torch.full((4, 20), 9.0, dtype=dtype)
    wide[:, 3:11] = front
    views = (apart[::2, 1:19:2, 1:17], vectors.transpose(1, 2).contiguous().transpose(1, 2))
    with path(name):
        for view in views:
            assert not view.is_contiguous()
            assert torch.equal(rk.dot_interaction(view, front), want)
            assert torch.equal(rk.fm_interaction(view), total)
        assert torch.equal(rk.dot_interaction(vectors, wide[:, 3:11]), want)
        assert torch.equal(rk.dot_interaction(vectors, front.t().contiguous().t()), want)
        same = vectors[:1].expand(4, -1, -1)
        assert torch.equal(rk.dot_interaction(same, front), dots(same, front).to(dtype))


def test_nothing_beyond_the_operands_is_touched():
    for shape in SHAPES:
        for dtype in UNIT:
            plain = whole_numbers(*shape, 3, dtype)
            vectors, front = (guarded(t) for t in plain)
            for isa in native.isas():
                with path(isa):
                    assert torch.equal(rk.dot_interaction(vectors, front), dots(*plain).to(dtype))
                    assert torch.equal(rk.fm_interaction(vectors), second_order(plain[0]).to(dtype))
        batch, count, dim = shape
        vectors = plain[0].float()
        out = guarded(torch.full((batch, count * (count + 1) // 2), torch.nan))
        for isa in native.isas():
            failed = native.dots(
                *(vectors.data_ptr(), batch, count, dim, count * dim, dim, 0, None, 0, 0, 1),
                *(out.data_ptr(), 0, 0.0, 0, native.ISAS.index(isa)),
            )
            assert not failed and torch.equal(out, dots(vectors, None, True).float())


@pytest.mark.parametrize("name", PATHS)
def test_not_a_number_stays_in_its_row_and_is_no_integer(name):
    vectors, front = whole_numbers(3, 6, 13, 4)
    vectors[1, 5, 12] = float("nan")
    with path(name):
        y = rk.dot_interaction(vectors, front)
        assert torch.equal(y.isnan(), dots(vectors, front).isnan()) and y[1].isnan().sum() == 5
        assert rk.fm_interaction(vectors).isnan().flatten().tolist() == [False, True, False]
        with pytest.raises(rk.KernelInputError, match="dot_interaction: the output holds NaN"):
            rk.dot_interaction(vectors, front, False, *PAIR)
        far = torch.tensor([[[1e30], [1e30]], [[-1e30], [1e30]]])
        assert rk.dot_interaction(far, None, False, *PAIR).flatten().tolist() == [127, 0]


def test_many_threads_at_once():
    vectors, front = whole_numbers(40, 27, 33, 5, torch.float16)
    want = dots(vectors, front).half()
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(rk.dot_interaction, vectors, front) for _ in range(100)]
        assert all(torch.equal(job.result(), want) for job in jobs)


X = torch.ones(2, 3, 4)
SCALE, ZERO = PAIR


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ((X.int(),), "vectors is torch.int32; give float32"),
        ((X[0],), r"vectors has shape \(3, 4\); give \[B, V, D\]"),
        ((X[:, :0],), "V >= 1"),
        ((X[:, :, :0],), "D >= 1"),
        ((X, X[:, 0].half()), r"front is torch.float16 of shape \(2, 4\); give torch.float32 \[2, F\]"),
        ((X, X), "front is"),
        ((X, X[:1, 0]), "front is"),
        ((X, X[:, 0].to("meta")), "move them to one device"),
        ((X, None, False, SCALE), "give both or neither"),
        ((X, None, False, None, ZERO), "give both or neither"),
        ((X, None, False, SCALE.double(), ZERO), "out_scale is torch.float64"),
        ((X, None, False, torch.tensor(0.0), ZERO), "give a positive finite number"),
        ((X, None, False, SCALE, torch.tensor(128, dtype=torch.int32)), "allowed are 0 to 127"),
    ],
)
def test_bad_operands_are_named(name, operands, message):
    with path(name), pytest.raises(rk.KernelInputError, match=f"dot_interaction: .*{message}"):
        rk.dot_interaction(*operands)
    if len(operands) == 1:
        with path(name), pytest.raises(rk.KernelInputError, match=f"fm_interaction: .*{message}"):
            rk.fm_interaction(*operands)
        assert not fm_op.supports(*operands)


def test_supports_says_which_path_runs():
    assert dot_op.supports(X).reason == fm_op.supports(X).reason == native.status().reason
    assert not dot_op.supports(X.int()) and not fm_op.supports(X[0])
    assert "at most 128" in dot_op.most_problem(torch.ones(1, 129, 1)) and not dot_op.most_problem(X)


def test_graphs_see_the_ops():
    torch.library.opcheck(torch.ops.recpress.dot_interaction.default, (X, X[:, 0], True, *PAIR))
    torch.library.opcheck(torch.ops.recpress.dot_interaction.default, (X,))
    torch.library.opcheck(torch.ops.recpress.fm_interaction.default, (X,))

    class Net(torch.nn.Module):
        def forward(self, x):
            return rk.dot_interaction(x, x[:, 0]), rk.fm_interaction(x)

    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Net(), (X,), dynamic_shapes=shapes)
    vectors = whole_numbers(5, 3, 4)[0]
    got = program.module()(vectors)
    assert torch.equal(got[0], dots(vectors, vectors[:, 0]).float()) and torch.equal(got[1], rk.fm_interaction(vectors))
    targets = {node.target for node in program.graph.nodes}
    assert {torch.ops.recpress.dot_interaction.default, torch.ops.recpress.fm_interaction.default} <= targets
