"""Weights that share values: the codebook, its codes, its training, and the way to an artifact."""

import pytest
import torch
from sklearn.cluster import KMeans
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress import PruneSpec, Recipe
from recpress.errors import KernelInputError, RecipeError, UnsupportedLayerError
from recpress.layers import ClusteredLinear, compressed, refusal
from recpress.quantize import cluster
from recpress.quantize.fake import FakeClusteredLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def wide_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 70), nn.ReLU(), nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 1)).eval()


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("draw", ["normal", "uniform", "outliers"])
def test_the_codebook_is_as_good_as_that_of_scikit_learn(levels, draw):
    torch.manual_seed(0)
    weight = torch.rand(40, 61) if draw == "uniform" else torch.randn(40, 61)
    if draw == "outliers":
        weight[0, :3] = torch.tensor([30.0, -25.0, 40.0])
    codes, centroids = cluster.cluster(weight, levels)
    assert torch.equal(centroids, centroids.sort().values) and centroids.shape == (levels,)
    distances = (weight[:, :, None] - centroids).abs()
    chosen = (weight - centroids[codes.int()]).abs()
    assert torch.allclose(chosen, distances.amin(dim=2), atol=1e-6), "each has its nearest"
    oracle = KMeans(levels, n_init=1, random_state=0).fit(weight.reshape(-1, 1).double().numpy()).inertia_
    assert float(chosen.double().square().sum()) <= 1.1 * oracle
    grid = torch.linspace(float(weight.min()), float(weight.max()), levels)
    even = (weight[:, :, None] - grid).abs().amin(dim=2).square().sum()
    assert draw == "uniform" or chosen.square().sum() < 0.8 * even, "better than a grid"


def test_zeros_stay_and_few_values_are_kept():
    weight = torch.tensor([[0.5, -2.0, 0.0, 0.5], [0.0, 1e-30, 3.0, -2.0]])
    codes, centroids = cluster.cluster(weight, 16)
    assert torch.equal(centroids[codes.int()], weight)
    torch.manual_seed(0)
    pruned = torch.randn(30, 30) * (torch.rand(30, 30) < 0.4)
    codes, centroids = cluster.cluster(pruned, 16)
    assert (centroids[codes.int()][pruned == 0] == 0).all() and len(centroids.unique()) == 16
    close = torch.cat([torch.full((4, 10), 1e6), 1e6 + torch.arange(0, 20).reshape(2, 10) / 16])  # sums round
    codes, centroids = cluster.cluster(close, 16)
    assert (centroids[codes.int()] - close).abs().max() <= 0.125 and len(centroids.unique()) == 16
    zero = cluster.cluster(torch.zeros(3, 3), 16)
    assert torch.equal(zero[1][zero[0].int()], torch.zeros(3, 3))


@pytest.mark.parametrize("columns", [1, 2, 7, 13])
@pytest.mark.parametrize("levels", [16, 256])
def test_codes_are_packed_and_found_again(levels, columns):
    codes = torch.randint(0, levels, (5, columns), dtype=torch.uint8)
    packed = cluster.pack(codes, levels)
    assert packed.dtype == torch.uint8 and packed.shape == (5, columns if levels == 256 else -(-columns // 2))
    assert torch.equal(cluster.unpack(packed, levels, columns), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_is_linear_with_shared_values(dtype):
    torch.manual_seed(0)
    linear = nn.Linear(37, 11).to(dtype)
    layer = compressed(linear, "clustered-16")
    codes, centroids = cluster.cluster(linear.weight, 16)
    x = torch.randn(2, 3, 37, dtype=dtype)
    expected = nn.functional.linear(x, centroids[codes.int()].to(dtype), linear.bias)
    assert torch.equal(layer(x), expected) and layer(x).dtype == dtype


@pytest.mark.parametrize(("scheme", "most"), [("clustered-16", 0.2), ("clustered-256", 0.3)])
def test_from_a_recipe_to_scores_of_an_artifact(tmp_path, scheme, most):
    model, inputs = wide_model(), torch.randn(50, 5)
    made = recpress.compress(model, Recipe(linear=scheme, overrides={"0": "keep", "4": "keep"}), calibration=[inputs])
    row = next(row for row in made.report.rows if row.names == ("2",))
    assert row.status == "compressed" and row.scheme.startswith(f"{cluster.LEVELS[scheme]} shared values")
    stored = sum(t.nbytes for t in made.model[2].buffers())
    assert row.bytes_after == stored and made.report.bytes_after < most * made.report.bytes_before + 2000
    assert row.sqnr_db > (18 if scheme == "clustered-16" else 40)
    recpress.export(made, tmp_path / "a", example_inputs=(inputs,), input_names=("x",))
    loaded = recpress.load(tmp_path / "a")
    assert "weights of 1 layers decoded to float" in loaded.kernels
    assert not any("codes" in str(node.target) for node in loaded.module.graph.nodes), "decoded once, not at each call"
    (scores,) = loaded.score({"x": inputs}).values()
    torch.testing.assert_close(scores, made.model(inputs), rtol=1e-5, atol=1e-6)
    assert not torch.equal(scores, model(inputs))


@pytest.mark.parametrize("scheme", ["clustered-16", "clustered-256"])
def test_centroids_are_trained_by_the_sum_of_their_weights_gradients(scheme):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40)
    twin, x = FakeClusteredLinear(linear, cluster.LEVELS[scheme], folded=False), torch.randn(9, 24)
    weight = twin.values()[twin.codes].detach().requires_grad_(True)
    nn.functional.linear(x, weight, linear.bias).square().sum().backward()
    twin(x).square().sum().backward()
    expected = torch.zeros_like(twin.centroids).index_add_(0, twin.codes.reshape(-1), weight.grad.reshape(-1))
    torch.testing.assert_close(twin.centroids.grad, expected, rtol=1e-4, atol=1e-4)


def test_what_is_trained_is_what_is_converted_and_pruned_weights_stay_zero():
    model, x = wide_model(), torch.randn(300, 5)
    recipe = Recipe(linear="clustered-16", prune=PruneSpec(pattern="unstructured", sparsity=0.5))
    prepared = recpress.prepare(model, recipe)
    first = recpress.convert(prepared).model
    assert torch.equal(first(x), recpress.compress(model, recipe).model(x)), "before training it is what compress gives"
    zeros = [(module.values()[module.codes] == 0) for module in (prepared[0], prepared[2])]
    truth = model(x).detach()
    before = float((prepared(x) - truth).square().mean())
    optimizer = torch.optim.Adam(prepared.train().parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (prepared(x) - truth).square().mean().backward()
        optimizer.step()
    converted = recpress.convert(prepared.eval())
    torch.testing.assert_close(converted.model(x), prepared(x), rtol=1e-6, atol=1e-7)
    assert float((converted.model(x) - truth).square().mean()) < 0.3 * before, "centroids alone learn"
    for module, zero in zip((converted.model[0], converted.model[2]), zeros, strict=True):
        assert type(module) is ClusteredLinear and 0.49 < zero.float().mean() < 0.7
        assert (module.centroids[cluster.unpack(module.codes, 16, module.in_features).int()] == 0)[zero].all()
    with torch.no_grad():
        prepared[0].centroids[3] = float("nan")
    with pytest.raises(UnsupportedLayerError, match="'0' .* its centroids are not finite"):
        recpress.convert(prepared)


def test_what_cannot_be_clustered_says_why():
    small = nn.Linear(8, 4)
    assert refusal(small, "clustered-256") == "its weights take 128 bytes, and would take 1056 with 256 shared values"
    assert refusal(small, "clustered-16") is None and refusal(nn.Linear(0, 3), "clustered-16") is not None
    assert "int64" in refusal(_whole(small), "clustered-16")
    made = recpress.compress(small_model(), Recipe(linear="clustered-256"), calibration=[small_inputs(20)])
    row = next(row for row in made.report.rows if row.names == ("top.2",))
    assert row.status == "kept" and "with 256 shared values" in row.reason
    with pytest.raises(KernelInputError, match="weight holds NaN or infinity"):
        cluster.cluster(torch.tensor([[1.0, float("nan")]]), 16)
    with pytest.raises(RecipeError, match="'clustered-16', 'clustered-256' or 'keep'"):
        Recipe(linear="clustered-8")
    with pytest.raises(RecipeError, match="'embedding' is 'clustered-16'"):
        Recipe(embedding="clustered-16")
    with pytest.raises(RecipeError, match="asks for 'clustered-16' and matches 'tables.0'"):
        recpress.compress(small_model(), Recipe(overrides={"tables.*": "clustered-16"}))


def _whole(linear: nn.Linear) -> nn.Linear:
    new = nn.Linear(8, 4)
    new.weight = nn.Parameter(linear.weight.long(), requires_grad=False)
    return new
