import pytest
import torch

from recpress_kernels import KernelInputError, int8_linear
from recpress_kernels.formats.int8 import quantize_per_channel
from recpress_kernels.int8_linear import cpu, reference

SHAPES = [(0, 3, 4), (1, 1, 1), (1, 7, 13), (3, 1, 479), (17, 33, 1041), (2, 5, 5000)]


def operands(m, n, k, *, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) * torch.rand(m, 1, generator=generator) * 10
    weight, scale = quantize_per_channel(torch.randn(n, k, generator=generator))
    return x.to(dtype), weight, scale, torch.randn(n, generator=generator)


def test_activations_by_hand():
    q, scale = reference.quantize_activations(torch.tensor([[0.0, 127.0, 2.5, 3.5], [-63.5, 0.0, 1.0, 63.5]]))
    assert scale.tolist() == [1.0, 1.0]
    assert q[0].tolist() == [0, 127, 2, 4]  # halves go to the even neighbour
    assert q[1].tolist() == [-64, 0, 1, 63]  # the zero point is 64, and 64 + 64 is clamped to 127


def test_range_always_holds_zero_exactly():
    q, scale = reference.quantize_activations(torch.tensor([[5.0, 6.0], [-5.0, -6.0], [0.0, 0.0]]))
    assert q.tolist() == [[106, 127], [-106, -127], [0, 0]]
    assert scale[2] == 1.0


def test_accumulator_by_hand():
    q = torch.tensor([[127, -127]], dtype=torch.int8)
    w = torch.tensor([[127, -127], [1, 2], [-128, 0]], dtype=torch.int8)
    assert reference.accumulate(q, w).tolist() == [[32258, -127, -16256]]


@pytest.mark.parametrize("m, n, k", SHAPES)
def test_cpu_integers_are_those_of_the_reference(m, n, k):
    x, weight, *_ = operands(m, n, k)
    q, _ = reference.quantize_activations(x)
    assert torch.equal(cpu.accumulate(q, weight), reference.accumulate(q, weight))


def test_cpu_integers_at_the_extremes():
    q = torch.full((2, 5000), 127, dtype=torch.int8)
    weight = torch.full((3, 5000), 127, dtype=torch.int8)
    weight[1] = -128
    assert torch.equal(cpu.accumulate(q, weight), reference.accumulate(q, weight))
    assert int(cpu.accumulate(q, weight)[0, 0]) == 127 * 127 * 5000


@pytest.mark.parametrize("m, n, k", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_op_is_the_reference(m, n, k, bias):
    x, weight, scale, b = operands(m, n, k)
    b = b if bias else None
    assert torch.equal(int8_linear(x, weight, scale, b), reference.int8_linear(x, weight, scale, b))


def test_close_to_the_float_layer():
    x, _, _, b = operands(64, 128, 256)
    w = torch.randn(128, 256)
    weight, scale = quantize_per_channel(w)
    truth = torch.nn.functional.linear(x.double(), w.double(), b.double())
    error = (int8_linear(x, weight, scale, b) - truth).norm() / truth.norm()
    assert error < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_widens_first(dtype):
    x, weight, scale, b = operands(5, 7, 33, dtype=dtype)
    y = int8_linear(x, weight, scale, b)
    assert y.dtype == dtype and torch.equal(y, int8_linear(x.float(), weight, scale, b).to(dtype))


def test_any_leading_shape_and_strides():
    x, weight, scale, b = operands(12, 7, 13)
    expected = int8_linear(x, weight, scale, b)
    assert torch.equal(int8_linear(x.view(3, 4, 13), weight, scale, b), expected.view(3, 4, 7))
    assert torch.equal(int8_linear(x[0], weight, scale, b), expected[0])
    strided = x.T.contiguous().T
    assert not strided.is_contiguous() and torch.equal(int8_linear(strided, weight, scale, b), expected)
    assert torch.equal(int8_linear(x[::2], weight, scale, b), expected[::2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_row_that_is_not_finite_is_nan_and_its_neighbours_are_not(bad):
    x, weight, scale, b = operands(3, 5, 8)
    expected = int8_linear(x, weight, scale, b)
    x[1, 2] = bad
    x[1, 3] = -abs(bad) if bad == bad else 0.0  # with 3e38, the range overflows
    y = int8_linear(x, weight, scale, b)
    assert y[1].isnan().all() and torch.equal(y[[0, 2]], expected[[0, 2]])


def test_zeros_and_subnormals_give_the_bias():
    _, weight, scale, b = operands(1, 5, 8)
    assert torch.equal(int8_linear(torch.zeros(1, 8), weight, scale, b)[0], b)
    tiny = int8_linear(torch.full((1, 8), 1e-45), weight, scale, b)[0]
    assert torch.allclose(tiny, b)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "x is torch.float64"),
        ({"x": torch.zeros(2, 9)}, "last dimensions must agree"),
        ({"x": torch.tensor(1.0)}, "last dimensions must agree"),
        ({"weight": torch.zeros(5, 8)}, "weight is torch.float32"),
        ({"weight": torch.zeros(5, 0, dtype=torch.int8), "x": torch.zeros(2, 0)}, "K is 0"),
        ({"weight_scale": torch.zeros(4)}, "weight_scale is"),
        ({"weight_scale": torch.zeros(5, dtype=torch.float64)}, "weight_scale is"),
        ({"bias": torch.zeros(6)}, "bias is"),
    ],
)
def test_refuses(change, message):
    x, weight, scale, b = operands(2, 5, 8)
    given = {"x": x, "weight": weight, "weight_scale": scale, "bias": b} | change
    with pytest.raises(KernelInputError, match=message):
        int8_linear(**given)


def test_refuses_more_terms_than_an_int32_holds():
    k = 133_145
    with pytest.raises(KernelInputError, match="133144"):
        int8_linear(torch.zeros(1, k), torch.zeros(1, k, dtype=torch.int8), torch.ones(1))


def test_is_a_proper_op():
    x, weight, scale, b = operands(3, 5, 8)
    torch.library.opcheck(torch.ops.recpress.int8_linear.default, (x, weight, scale, b))
    torch.library.opcheck(torch.ops.recpress.int8_linear.default, (x.view(1, 3, 8), weight, scale))
