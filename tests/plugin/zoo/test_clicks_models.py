"""DeepFM, DCN-v2 and two towers: their formulas, and that int8 ones are exported and loaded."""

from itertools import combinations

import pytest
import torch
from torch import nn

import recpress
from recpress.zoo.dcn import DCNv2
from recpress.zoo.deepfm import DeepFM
from recpress.zoo.two_tower import TwoTower

ROWS = (7, 5, 3)
MODELS = {
    "deepfm": (DeepFM, {"deep": (10, 5)}),
    "dcn-v2": (DCNv2, {"deep": (10, 5)}),
    "two-tower": (TwoTower, {"tower": (10,), "out": 6, "item_dense": (1, 3), "item_tables": (1,)}),
}


def inputs(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sparse = torch.stack([torch.randint(0, n, (batch,), generator=generator) for n in ROWS], dim=1)
    return torch.randn(batch, 4, generator=generator), sparse


def small(name, **options):
    kind, own = MODELS[name]
    torch.manual_seed(0)
    model = kind(**{"num_dense": 4, "table_rows": ROWS, "dim": 8} | own | options)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    return model.eval()


def test_deepfm_is_its_formula():
    model, (dense, sparse) = small("deepfm"), inputs(9)
    for row, logit in enumerate(model(dense, sparse)):
        vectors = [table.weight[sparse[row, t]] for t, table in enumerate(model.tables)]
        first = model.first(dense[row]) + sum(w.weight[sparse[row, t]] for t, w in enumerate(model.weights))
        second = sum(a @ b for a, b in combinations(vectors, 2))
        deep = model.deep(torch.cat([dense[row], *vectors]))
        torch.testing.assert_close((first + second + deep)[0], logit)


def test_dcn_is_its_formula():
    model, (dense, sparse) = small("dcn-v2", crosses=3), inputs(9)
    for row, logit in enumerate(model(dense, sparse)):
        x0 = torch.cat([dense[row], *(table.weight[sparse[row, t]] for t, table in enumerate(model.tables))])
        x = x0
        for cross in model.crosses:
            x = x0 * (cross.weight @ x + cross.bias) + x
        torch.testing.assert_close(model.deep(x)[0], logit)


def of_the_towers(model, x):
    """The outputs of both towers on ``x``."""
    seen = []
    hooks = [t.register_forward_hook(lambda _, __, y: seen.append(y)) for t in (model.user, model.item)]
    logits = model(*x)
    for hook in hooks:
        hook.remove()
    return *seen, logits


@torch.no_grad()
def test_towers_see_only_their_own_columns():
    model, x = small("two-tower"), inputs(9)
    user, item, logits = of_the_towers(model, x)
    torch.testing.assert_close(logits, torch.stack([a @ b for a, b in zip(user, item, strict=True)]))
    for place, of_the_item in ((0, (1, 3)), (1, (1,))):
        for column in range(x[place].shape[1]):
            changed = [given.clone() for given in x]
            changed[place][:, column] = 1 - changed[place][:, column].clamp(0, 1)
            other_user, other_item, _ = of_the_towers(model, changed)
            assert torch.equal(user, other_user) == (column in of_the_item) != torch.equal(item, other_item)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name):
    model, (dense, sparse) = small(name), inputs(64)
    model(dense, sparse).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    for batch in (0, 1):
        assert model(*inputs(batch)).shape == (batch,)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_for_training_only(name):
    model, x = small(name, dropout=0.5), inputs(16)
    assert torch.equal(model(*x), model(*x))
    model.train()
    assert not torch.equal(model(*x), model(*x))


@pytest.mark.parametrize("name", MODELS)
def test_compressed_exported_and_loaded(name, tmp_path):
    model, (dense, sparse) = small(name), inputs(64)
    compressed = recpress.compress(model, "int8", calibration=[(dense, sparse)])
    recpress.export(compressed, tmp_path / "a", example_inputs=(dense, sparse), input_names=("dense", "sparse"))
    loaded = recpress.load(tmp_path / "a")
    assert [spec.table_high for spec in loaded.manifest.inputs] == [(None,) * 4, tuple(n - 1 for n in ROWS)]
    for batch in (1, 5):
        x = inputs(batch, seed=batch)
        with torch.no_grad():
            mine, truth = compressed.model(*x), model(*x)
        torch.testing.assert_close(loaded.score({"dense": x[0], "sparse": x[1]})["output"], mine, rtol=1e-5, atol=1e-5)
        assert 0 < (mine - truth).abs().max() < 0.2 * model(*inputs(64)).std()
    status = {name: row.status for row in compressed.report.rows for name in row.names}
    tables_of_one = {n for n in status if n.startswith("weights.")}
    assert all((s == "kept") == (n in tables_of_one or n == "") for n, s in status.items()), status
    assert {row.reason for row in compressed.report.rows if set(row.names) & tables_of_one} <= {
        "its rows take 4 bytes, and would take 5 as int8"
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deepfm", {"table_rows": ()}, "at least one table"),
        ("deepfm", {"deep": (0,)}, "deep"),
        ("dcn-v2", {"crosses": 0}, "crosses"),
        ("dcn-v2", {"dropout": 1.0}, "dropout"),
        ("two-tower", {"out": 0}, "out"),
        ("two-tower", {"item_dense": (4,)}, "item_dense holds 4; columns are 0 to 3"),
        ("two-tower", {"item_tables": (0, 1, 2)}, "each of the two towers needs a table"),
        ("two-tower", {"item_tables": ()}, "each of the two towers needs a table"),
    ],
)
def test_arguments_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        small(name, **options)
