import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recpress.zoo.cache import trained

ROWS = (torch.arange(6.0),)


class Counted:
    """A training that adds 1 to every weight and counts how often it ran."""

    def __init__(self):
        self.runs = 0

    def __call__(self, folder, *, seed=0, rows=ROWS, layers=(3, 2), **options):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(*layers), nn.Dropout(options.pop("dropout", 0.1)))
        first = {name: weight.clone() for name, weight in model.state_dict().items()}

        def train():
            self.runs += 1
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1.0)
            model.train()
            return 7

        kept = trained(model, train, rows=rows, options=options, folder=folder)
        assert all(torch.equal(model.state_dict()[name], weight + 1) for name, weight in first.items())
        assert not model.training and kept.steps == 7
        return kept.read


def test_the_second_time_it_is_read(tmp_path):
    train = Counted()
    assert [train(tmp_path / "new"), train(tmp_path / "new"), train.runs] == [False, True, 1]
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"], "nothing staged is left"


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"rows": (torch.arange(6.0) + 1,)},
        {"rows": (torch.arange(6.0).view(2, 3),)},
        {"layers": (3, 4)},
        {"dropout": 0.2},
        {"epochs": 3},
    ],
)
def test_whatever_differs_is_trained_anew(tmp_path, changed):
    train = Counted()
    train(tmp_path, epochs=2)
    assert not train(tmp_path, **{"epochs": 2} | changed) and train.runs == 2
    assert train(tmp_path, epochs=2)


@pytest.mark.parametrize("how", ["cut", "no steps"])
def test_a_damaged_file_is_made_anew(tmp_path, how):
    train = Counted()
    train(tmp_path)
    (path,) = tmp_path.iterdir()
    if how == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        save_file(load_file(path), path)
    assert not train(tmp_path) and train(tmp_path) and train.runs == 2
