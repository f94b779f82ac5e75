import pytest
import torch
from torch import nn

from recpress import layers
from recpress.errors import IndexBoundsError


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scheme", "error"), [("int8", 0.02), ("int8-weights", 0.01)])
def test_linear_is_close_and_small(scheme, error, bias):
    linear = nn.Linear(64, 32, bias=bias)
    small = layers.compressed(linear, scheme)
    x = torch.randn(3, 5, 64)
    assert (small(x) - linear(x)).norm() / linear(x).norm() < error
    assert sum(b.nbytes for b in small.buffers()) < 0.32 * sum(p.nbytes for p in linear.parameters())
    assert not list(small.parameters())


TABLES = [("int8", 0.02), ("int4", 0.3)]


@pytest.mark.parametrize(("scheme", "error"), TABLES)
def test_embedding_takes_any_shape_of_indices(scheme, error):
    embedding = nn.Embedding(20, 8, padding_idx=0)
    small = layers.compressed(embedding, scheme)
    for indices in (
        torch.tensor(3),
        torch.randint(0, 20, (4,)),
        torch.randint(0, 20, (2, 3, 5)),
        torch.zeros(0).long(),
    ):
        torch.testing.assert_close(small(indices), embedding(indices), rtol=0, atol=error)
    assert torch.equal(small(torch.tensor([0])), torch.zeros(1, 8)), "the padding row stays exactly zero"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_takes_rows_of_indices_or_offsets(mode, scheme):
    bag = nn.EmbeddingBag(20, 9, mode=mode)
    small = layers.compressed(bag, scheme)
    with torch.no_grad():
        bag.weight.copy_(small.values(slice(None)))
    square = torch.randint(0, 20, (4, 6))
    torch.testing.assert_close(small(square), bag(square), rtol=1e-5, atol=1e-5)
    flat, offsets = torch.randint(0, 20, (7,)), torch.tensor([0, 0, 3, 7])
    torch.testing.assert_close(small(flat, offsets), bag(flat, offsets), rtol=1e-5, atol=1e-5)
    assert torch.equal(small(flat, offsets)[[0, 3]], torch.zeros(2, 9)), "empty bags are zero"


def test_bag_with_the_last_offset_and_weights():
    bag = nn.EmbeddingBag(20, 8, mode="sum", include_last_offset=True)
    small = layers.compressed(bag, "int8")
    flat, offsets, weights = torch.randint(0, 20, (7,)), torch.tensor([0, 3, 7]), torch.rand(7)
    torch.testing.assert_close(small(flat, offsets, weights), bag(flat, offsets, weights), rtol=0, atol=0.1)


@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.27), ("int4", 0.142)])
@pytest.mark.parametrize("table", [nn.Embedding(1000, 64), nn.EmbeddingBag(1000, 64, mode="sum")])
def test_bytes_of_a_table(table, scheme, most):
    small = layers.compressed(table, scheme)
    assert sum(t.nbytes for t in (*small.buffers(), *small.parameters())) <= most * table.weight.nbytes
    assert small.scheme == f"{scheme} rows with float16 scale and bias" and f"bits={scheme[-1]}" in repr(small)


def test_the_ranges_of_int4_rows_are_searched_or_not():
    table = nn.Embedding(300, 32)
    errors = [
        (layers.compressed(table, "int4", search=search).values(slice(None)) - table.weight).square().mean()
        for search in ("greedy", "range")
    ]
    assert errors[0] < 0.9 * errors[1]


def test_rows_of_one_value_are_called_int8():
    assert layers.compressed(nn.Embedding(5, 1), "int4").scheme.startswith("int8 rows")


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_table_of_no_rows_answers_nothing(scheme):
    small = layers.compressed(nn.Embedding.from_pretrained(torch.zeros(0, 8)), scheme)
    assert small(torch.zeros(0, dtype=torch.int64)).shape == (0, 8)
    with pytest.raises(IndexBoundsError, match="outside table 0"):
        small(torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keeps_the_dtype(dtype):
    for scheme in ("int8", "int4"):
        assert layers.compressed(nn.Embedding(4, 8).to(dtype), scheme)(torch.tensor([1])).dtype == dtype
    for scheme in ("int8", "int8-weights"):
        assert layers.compressed(nn.Linear(4, 8).to(dtype), scheme)(torch.ones(1, 4, dtype=dtype)).dtype == dtype


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    "layer, reason",
    [
        (hooked(), "forward hooks"),
        (nn.Linear(2, 2).double(), "torch.float64"),
        (nn.Linear(0, 2), "0 inputs"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (nn.EmbeddingBag(4, 4, mode="max"), "mode is 'max'"),
        (nn.EmbeddingBag(4, 4, mode="sum", padding_idx=0), "padding_idx"),
    ],
)
def test_says_why_a_layer_is_refused(layer, reason):
    assert reason in layers.refusal(layer, "int8")


def pruned(linear: nn.Linear) -> nn.Linear:
    """The two largest weights of each four inputs."""
    n, k = linear.weight.shape
    with torch.no_grad():
        fours = nn.functional.pad(linear.weight, (0, -k % 4)).view(n, -1, 4)
        smallest = fours.abs().argsort(dim=2)[..., :2]
        linear.weight.copy_(fours.scatter(2, smallest, 0.0).view(n, -1)[:, :k])
    return linear


@pytest.mark.parametrize("inputs", [64, 13])
def test_weights_that_are_2_4_are_stored_so(inputs):
    torch.manual_seed(0)
    linear = pruned(nn.Linear(inputs, 32))
    assert layers.refusal(linear, "int8-24") is None
    sparse, dense = (layers.compressed(linear, scheme) for scheme in ("int8-24", "int8"))
    x = torch.randn(5, inputs)
    assert torch.equal(sparse(x), dense(x))
    assert sparse.values.nbytes + sparse.indices.nbytes == 32 * (-(-inputs // 4) * 2 + -(-inputs // 8))
    assert sparse.scheme == "int8 2:4 weights a channel, 7-bit activations a row"


def test_weights_that_are_not_2_4_are_kept_with_the_place():
    linear = pruned(nn.Linear(13, 32))
    with torch.no_grad():
        linear.weight[7, 4:7] = 1.0
    reason = layers.refusal(linear, "int8-24")
    assert "output 7 has 3 values other than zero among inputs 4 to 7" in reason and "prune it first" in reason


def test_weights_alone_are_not_summed_in_int32():
    wide = nn.Linear(140_000, 1)
    assert "int32 sums take 1 to" in layers.refusal(wide, "int8")
    assert layers.refusal(wide, "int8-weights") is None
    assert "no inputs" in layers.refusal(nn.Linear(0, 1), "int8-weights")
