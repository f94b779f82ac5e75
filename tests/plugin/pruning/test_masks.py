"""Masks stay on the parameters: through optimisers, checkpoints, copies, pickle and fake quantisation."""

import copy
import io

import pytest
import torch
from torch import nn

from recpress.errors import PruningError
from recpress.pruning import masks


def masked() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
    keep = torch.rand(6, 8) > 0.5
    masks.mask(model[0].weight, keep)
    return model, keep


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()


def exactly(weight: torch.Tensor, keep: torch.Tensor) -> bool:
    """Zero where masked, and nowhere else."""
    return torch.equal(weight != 0, keep)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_mask_that_comes_in_the_middle_of_training_holds_against_momentum(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
    more = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.05, weight_decay=0.01, **more)
    train(model, optimizer)
    weight, keep = model[0].weight, torch.rand(6, 8) > 0.5
    masks.mask(weight, keep)
    assert model[0].weight is weight, "in place: the optimiser holds it"
    before = weight.detach().clone()
    train(model, optimizer)
    assert exactly(weight, keep)
    assert not torch.equal(before, weight), "and what stays is trained"
    masks.finish(model)
    assert type(weight) is nn.Parameter
    train(model, optimizer)
    assert not exactly(weight, keep), "without the mask the zeros are gone"


def test_copies_and_pickles_hold_their_own_masks():
    model, keep = masked()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for new in (copy.deepcopy(model), torch.load(stream, weights_only=False), copy.deepcopy(model).double()):
        train(new.float(), torch.optim.Adam(new.parameters(), lr=0.1))
        assert exactly(new[0].weight, keep)
        assert new[0].weight.mask is not model[0].weight.mask
        masks.finish(new)
    assert exactly(model[0].weight, keep) and list(masks.masks(model)) == ["0.weight"]


def test_a_shared_parameter_is_copied_once():
    model, _ = masked()
    model.again = model[0]
    model.tied = nn.Linear(8, 6)
    model.tied.weight = model[0].weight
    new = copy.deepcopy(model)
    assert new.tied.weight is new[0].weight is new.again.weight


def test_checkpoints_are_those_of_the_dense_model():
    model, keep = masked()
    dense = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    dense.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(dense[0].weight, model[0].weight)
    masks.apply(dense, masks.masks(model))
    train(dense, torch.optim.Adam(dense.parameters()))
    assert exactly(dense[0].weight, keep)
    model.load_state_dict(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)).state_dict())
    assert exactly(model[0].weight, keep), "what a dense checkpoint brings is masked"


def test_training_without_an_optimiser_is_masked_when_asked():
    model, keep = masked()
    model[0].weight.data.add_(1)
    masks.enforce(model)
    assert exactly(model[0].weight, keep)


def test_masks_that_do_not_fit_are_refused():
    model, keep = masked()
    with pytest.raises(PruningError, match=r"mask is torch.bool of shape \(8, 6\); give torch.bool of shape \(6, 8\)"):
        masks.mask(model[0].weight, keep.T)
    with pytest.raises(PruningError, match="mask is torch.float32"):
        masks.mask(model[0].weight, keep.float())
    with pytest.raises(PruningError, match="mask '3.weight' fits no parameter; the model's are: 0.weight"):
        masks.apply(model, {"3.weight": keep})
    with pytest.raises(PruningError, match="cannot be masked; give a torch.nn.Parameter"):
        masks.mask(nn.Buffer(torch.zeros(6, 8)), keep)
