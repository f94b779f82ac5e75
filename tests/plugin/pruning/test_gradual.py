"""Pruning in the user's own loop: masks that grow, checkpoints to go on from, and movement's sums."""

import copy

import pytest
import torch
from torch import nn

import recpress
from recpress import Pruner, PruneSpec
from recpress.errors import PruningError
from recpress.pruning.schedules import Constant, Polynomial, Steps


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))


def train(net: nn.Module, pruner: Pruner, steps: range, optimizer: torch.optim.Optimizer | None = None) -> list:
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=0.01)
    fired = []
    for step in steps:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        (net(x)[:, 0] - x[:, :4].sum(dim=1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        fired.append(pruner.step(step))
    return fired


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "gradient", "taylor", "movement"])
def test_sparsity_follows_the_schedule_and_never_comes_back(criterion):
    net = model()
    schedule = Polynomial(final=0.8, begin=5, end=45, frequency=10)
    spec = PruneSpec(pattern="unstructured", criterion=criterion)
    pruner = Pruner(net, spec, schedule, steps=48, calibration=[torch.randn(64, 16)])
    optimizer, gone = torch.optim.Adam(net.parameters(), lr=0.01), torch.zeros(24, 16, dtype=torch.bool)
    for step in range(48):
        fired = train(net, pruner, range(step, step + 1), optimizer)[0]
        assert (fired is not None) == (step in range(5, 46, 10))
        zeros = net[0].weight == 0
        assert not (gone & ~zeros).any() and int(zeros.sum()) == round(pruner.sparsity * 384)
        gone = zeros
    rows = {row.name: row for row in pruner.finish()}
    assert rows["0.weight"].zeros == round(0.8 * 384) and rows["0.bias"].status == "kept"
    assert type(net[0].weight) is nn.Parameter
    if pruner._gathered is not None:
        sums = {name: summed.clone() for name, summed in pruner._gathered.sums.items()}
        train(net, pruner, range(48, 49), optimizer)
        assert all(torch.equal(summed, sums[name]) for name, summed in pruner._gathered.sums.items()), "it has let go"


def test_groups_of_n_m_come_gradually():
    net = model()
    pruner = Pruner(net, "2:4", Steps({0: 0.25, 3: 0.5}))
    train(net, pruner, range(2))
    counts = (net[0].weight != 0).view(24, 4, 4).sum(dim=2)
    assert sorted(counts.unique().tolist()) == [2, 4] and int((counts == 2).sum()) == 48
    before = counts == 2
    train(net, pruner, range(2, 6))
    counts = (net[0].weight != 0).view(24, 4, 4).sum(dim=2)
    assert (counts == 2).all() and before.any()
    assert {row.zeros for row in pruner.finish() if row.name == "2.weight"} == {16 * 12}


def test_what_is_masked_already_stays_masked():
    sparse = recpress.prune(model(), PruneSpec(pattern="unstructured", sparsity=0.7)).model
    gone = sparse[0].weight == 0
    pruner = Pruner(sparse, "2:4", Constant(0.5))
    train(sparse, pruner, range(3))
    assert (sparse[0].weight[gone] == 0).all() and int((sparse[0].weight == 0).sum()) >= int(gone.sum())
    again = recpress.prune(sparse, PruneSpec(criterion="sparsegpt"), calibration=[torch.randn(64, 16)]).model
    assert (again[0].weight[gone] == 0).all()


def test_movement_is_the_sum_of_minus_weight_times_gradient():
    net = model()
    pruner = Pruner(net, PruneSpec(pattern="unstructured", criterion="movement"), Constant(0.5, begin=3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    expected = torch.zeros(24, 16)
    for step in range(4):
        x = torch.randn(32, 16)
        for part in x.split(16):  # two backwards a step: each counts once
            before = None if net[0].weight.grad is None else net[0].weight.grad.clone()
            net(part).square().mean().backward()
            new = net[0].weight.grad - (0 if before is None else before)
            expected -= (new * net[0].weight).detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pruner.step(step)
    order = expected.reshape(-1).argsort()
    assert (net[0].weight.detach().reshape(-1)[order[:180]] == 0).all(), "weights that move to zero go"
    assert (net[0].weight.detach().reshape(-1)[order[-180:]] != 0).all()


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped():
    def fresh() -> tuple[nn.Module, Pruner, torch.optim.Optimizer]:
        net = model()
        spec = PruneSpec(pattern="unstructured", criterion="taylor")
        pruner = Pruner(net, spec, Polynomial(final=0.6, begin=4, end=24, frequency=5))
        return net, pruner, torch.optim.Adam(net.parameters(), lr=0.01)

    straight, pruner, optimizer = fresh()
    train(straight, pruner, range(30), optimizer)
    net, pruner, optimizer = fresh()
    train(net, pruner, range(12), optimizer)
    saved = copy.deepcopy((net.state_dict(), pruner.state_dict(), optimizer.state_dict()))
    net, pruner, optimizer = fresh()
    for part, state in zip((net, pruner, optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(net, pruner, range(12, 30), optimizer)
    assert torch.equal(net[0].weight, straight[0].weight) and pruner.sparsity == 0.6


def test_a_step_that_was_not_reported_is_made_up_for():
    net = model()
    pruner = Pruner(net, PruneSpec(pattern="unstructured"), Steps({10: 0.5}))
    assert pruner.step(9) is None and pruner.step(17) == 0.5 and pruner.step(18) is None


def test_schedules_that_never_fire_or_do_not_fit_are_refused():
    net, loose = model(), PruneSpec(pattern="unstructured")
    for given, says in (
        ((loose, Constant(0.5, begin=100)), "first fires at step 100 of 50 .*never"),
        ((loose, Polynomial(final=0.5, begin=0, end=80)), "in the last of 50 steps, not at its final 0.5"),
        (("2:4", Constant(0.7)), "ends with sparsity 0.7, and 2:4 is 0.5"),
        ((PruneSpec(pattern="unstructured", sparsity=0.5), Constant(0.5)), "leave sparsity and threshold out"),
        ((PruneSpec(pattern="units"), Constant(0.5)), "use recpress.prune"),
        ((PruneSpec(criterion="sparsegpt"), Constant(0.5)), "use recpress.prune"),
        ((PruneSpec(criterion="wanda"), Constant(0.5)), "give calibration"),
    ):
        with pytest.raises(PruningError, match=says):
            Pruner(net, *given, steps=50)
    with pytest.raises(PruningError, match="the schedule never fired and is at sparsity 0.0, not at its final 0.5"):
        Pruner(net, loose, Constant(0.5)).finish()
    pruner = Pruner(net, PruneSpec(criterion="movement"), Constant(0.5))
    with pytest.raises(PruningError, match="no gradients were computed: movement is gathered at the steps of a torch"):
        pruner.step(0)
    (net(torch.zeros(4, 16)).sum() * 0).backward()
    torch.optim.SGD(net.parameters()).step()
    with pytest.raises(PruningError, match="layer '0' had zero gradients alone"):
        pruner.step(0)
