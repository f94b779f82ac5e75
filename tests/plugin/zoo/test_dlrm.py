import pytest
import torch
from torch import nn

from recpress.zoo.dlrm import DLRM

ROWS = (7, 5, 3)


def inputs(batch, *, rows=ROWS, num_dense=4):
    generator = torch.Generator().manual_seed(batch)
    sparse = torch.stack([torch.randint(0, n, (batch,), generator=generator) for n in rows], dim=1)
    return torch.randn(batch, num_dense, generator=generator), sparse


def small(**options):
    torch.manual_seed(0)
    model = DLRM(**{"num_dense": 4, "table_rows": ROWS, "dim": 6, "bottom": (8,), "top": (10, 5)} | options)
    for table in model.tables:
        nn.init.normal_(table.weight)
    return model.eval()


def test_the_formula():
    model, (dense, sparse) = small(), inputs(9)
    for row, logit in enumerate(model(dense, sparse)):
        x = model.bottom(dense[row])
        vectors = [x, *(table.weight[sparse[row, t]] for t, table in enumerate(model.tables))]
        dots = [vectors[i] @ vectors[j] for i in range(4) for j in range(i)]
        torch.testing.assert_close(model.top(torch.cat([x, torch.stack(dots)]))[0], logit)
    assert (x >= 0).all(), "the bottom MLP ends in a ReLU"


@pytest.mark.parametrize(
    ("rows", "options"),
    [((7, 5, 3), {}), ((4,), {"dim": 1, "bottom": (), "top": ()}), ((2,) * 26, {"dim": 3})],
)
def test_sizes(rows, options):
    model = small(table_rows=rows, **options)
    for batch in (0, 1, 5):
        logits = model(*inputs(batch, rows=rows))
        assert logits.shape == (batch,) and logits.dtype == torch.float32


def test_widths_are_those_asked_for():
    model = DLRM(num_dense=25, table_rows=(943, 1682, 2, 21, 19))
    linears = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert linears == [(25, 256), (256, 128), (128, 16), (31, 512), (512, 256), (256, 1)]
    tables = [(m.num_embeddings, m.embedding_dim) for m in model.modules() if isinstance(m, nn.Embedding)]
    assert tables == [(n, 16) for n in (943, 1682, 2, 21, 19)]
    assert not list(model.buffers())
    in_layers = sum(p.numel() for m in model.modules() if type(m) in (nn.Linear, nn.Embedding) for p in m.parameters())
    assert in_layers == sum(p.numel() for p in model.parameters())


def test_every_parameter_learns():
    model, (dense, sparse) = small(), inputs(64)
    model(dense, sparse).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_is_for_training_only():
    model, x = small(dropout=0.5), inputs(16)
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 2
    assert torch.equal(model(*x), model(*x))
    model.train()
    assert not torch.equal(model(*x), model(*x))
    assert not any(isinstance(m, nn.Dropout) for m in small().modules())


def test_exports_with_a_dynamic_batch():
    model = small(dropout=0.1)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        model, inputs(8), dynamic_shapes={"dense": {0: batch}, "sparse": {0: batch}}, strict=False
    )
    assert not program.constants
    for size in (1, 2, 7, 64):
        torch.testing.assert_close(program.module()(*inputs(size)), model(*inputs(size)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_dense": 0}, "num_dense"),
        ({"dim": 0}, "dim"),
        ({"dim": 2.5}, "dim"),
        ({"dim": True}, "dim"),
        ({"table_rows": ()}, "at least one table"),
        ({"table_rows": (3, 0)}, "table_rows"),
        ({"bottom": (8, -1)}, "bottom"),
        ({"top": (0,)}, "top"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DLRM(**{"num_dense": 4, "table_rows": ROWS} | options)
