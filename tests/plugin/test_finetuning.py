"""finetune: it lowers the quantised loss, is repeatable, has its control, and refuses what it cannot do."""

import copy
import math

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import recpress
from recpress.errors import CalibrationError, RecipeError, TrainingError
from recpress.recipe import Recipe
from recpress.report.tables import training_lines
from recpress.training import Settings

pytestmark = pytest.mark.usefixtures("one_thread")
INT4 = Recipe(embedding="int4", embedding_search="range")


class Rater(nn.Module):
    """Users and items of rows whose first value is far larger than the others and takes most of an int4 row's range."""

    def __init__(self):
        super().__init__()
        self.users, self.items, self.top = nn.Embedding(60, 8), nn.Embedding(40, 8), nn.Linear(16, 1)
        self.dropout = nn.Dropout(0.3)
        with torch.no_grad():
            self.users.weight[:, 0] += 6 * torch.randn(60).sign()
            self.top.weight.mul_(3)

    def forward(self, ids):
        u, i = self.users(ids[:, 0]), self.items(ids[:, 1])
        return self.top(self.dropout(torch.cat([u * i, u + i], dim=1))).squeeze(1)


@pytest.fixture(scope="module")
def rater():
    """The model, training batches, validation batches, and the least loss that distilling can reach on them."""
    torch.manual_seed(0)
    model, generator = Rater().eval(), torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(0, n, (4000,), generator=generator) for n in (60, 40)], dim=1)
    with torch.no_grad():
        logits = model(ids)
        labels = torch.bernoulli(logits.sigmoid(), generator=generator)
        floor = float(bce(logits[3000:], logits[3000:].sigmoid()))
    train = [(ids[i : i + 200], labels[i : i + 200]) for i in range(0, 3000, 200)]
    return model, train, [(ids[3000:], labels[3000:])], floor


def small_batches(count=3, rows=32, seed=0):
    batches = []
    for i in range(count):
        dense, sparse = small_inputs(rows, seed=seed + i)
        batches.append((dense, sparse, (dense[:, 0] > 0).float()))
    return batches


def test_training_wins_back_what_int4_tables_lost(rater):
    model, train, valid, floor = rater
    tuned = recpress.finetune(model, INT4, train, valid, epochs=30, lr=0.1, patience=30)
    run = tuned.report.training.run
    lost, left = run.epochs[0].valid_loss - floor, run.best.valid_loss - floor
    assert lost > 0.003 and left < 0.5 * lost
    with torch.no_grad():
        converted = bce(tuned.model(valid[0][0]), model(valid[0][0]).sigmoid())
    assert float(converted) == pytest.approx(run.best.valid_loss, abs=1e-6), "what is returned is the best state"
    control = tuned.report.training.control
    assert control.best.valid_loss == pytest.approx(floor, abs=1e-6), "the original distilled from itself stays"


def test_labels_move_the_control_too(rater):
    model, train, valid, _ = rater
    before = copy.deepcopy(model.state_dict())
    tuned = recpress.finetune(model, "int8", train, valid, loss="labels", epochs=2, lr=1e-3, patience=2)
    training = tuned.report.training
    assert training.objective == "labels" and training.settings.dropout
    losses = [epoch.loss for epoch in training.control.epochs[1:]]
    assert training.control.epochs[1].valid_loss != training.control.epochs[0].valid_loss and losses[1] != losses[0]
    assert training.control.best.valid_loss <= training.control.epochs[0].valid_loss
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m.training for m in [*tuned.model.modules(), *tuned.control.modules()])


def test_the_loss_of_the_user_is_given_model_teacher_and_batch(rater):
    model, train, _valid, _ = rater
    seen = []

    def squares(student, teacher, batch):
        seen.append((student, teacher, batch["ids"].shape))
        return (student(batch["ids"]) - teacher(batch["ids"])).square().mean()

    model.requires_grad_(True)
    batches = [{"ids": ids, "anything": None} for ids, _ in train[:2]]
    tuned = recpress.finetune(model, INT4, batches, batches, loss=squares, epochs=1, calibration=[train[0][0]])
    assert tuned.report.training.objective == "squares"
    assert all(teacher is model for _, teacher, _ in seen) and {student for student, _, _ in seen}
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_metrics_before_after_and_of_the_control_are_in_the_report(rater):
    model, train, valid, _ = rater
    metrics = lambda m: {"mean": float(m(valid[0][0]).mean())}  # noqa: E731
    report = recpress.finetune(model, INT4, train[:2], valid, epochs=1, evaluate=metrics).report
    post_training = recpress.compress(model, INT4, calibration=[ids for ids, _ in train[:2]], evaluate=metrics).report
    assert report.quality_before == post_training.quality_before
    assert report.training.quality_post_training == post_training.quality_after
    assert set(report.quality_after) == set(report.training.quality_control) == {"mean"}
    assert "mean" in training_lines(report.training)[1]
    assert report.bytes_after == post_training.bytes_after


def test_a_control_that_was_turned_off_is_reported(rater):
    model, train, valid, _ = rater
    tuned = recpress.finetune(model, INT4, train[:1], valid, epochs=1, control=False)
    assert tuned.control is None and tuned.report.training.control is None
    assert "turned off" in training_lines(tuned.report.training)[1]


def test_the_same_seed_gives_the_same_bits(rater):
    model, train, valid, _ = rater
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*(torch.cat(c) for c in zip(*train[:3], strict=True))), 100, shuffle=True
    )

    def losses(seed):
        options = {"loss": "labels", "epochs": 2, "lr": 1e-2, "learn_scales": True, "control": False}
        run = recpress.finetune(model, "int8", loader, valid, seed=seed, **options).report.training.run
        return [(epoch.loss, epoch.valid_loss) for epoch in run.epochs]

    state = torch.random.get_rng_state()
    first = losses(1)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert first == losses(1) and first != losses(2)


def test_the_control_is_given_the_same_batches_in_the_same_order(rater):
    model, train, valid, _ = rater
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*train[0]), 50, shuffle=True)
    seen = []

    def loss(student, _teacher, batch):
        if torch.is_grad_enabled():
            seen.append((student, batch[0]))
        return student(batch[0]).square().mean()

    recpress.finetune(model, "int8", loader, valid, loss=loss, epochs=2)
    (ours, theirs) = ([ids for student, ids in seen if (student is seen[0][0]) is mine] for mine in (True, False))
    assert len(ours) == len(theirs) == 8 and all(map(torch.equal, ours, theirs))
    assert not torch.equal(ours[0], ours[4]), "they are shuffled"


def test_static_ranges_are_found_on_the_training_batches_and_learned():
    recipe = Recipe(activations="static", observer="percentile")
    options = {"epochs": 2, "learn_scales": True, "control": False, "loss": "labels", "lr": 1e-2, "scale_lr": 1e-3}
    tuned = recpress.finetune(small_model(), recipe, small_batches(), small_batches(), **options)
    prepared = recpress.prepare(small_model(), recipe, calibration=[b[:2] for b in small_batches()])
    assert tuned.report.training.run.best.number > 0
    assert not torch.equal(tuned.model.top[0].x_scale, prepared.top[0].x_scale)


@pytest.mark.parametrize("form", ["flat", "nested", "mapping"])
def test_batches_come_in_three_forms(form):
    batches = small_batches()
    if form == "nested":
        batches = [((dense, sparse), label) for dense, sparse, label in batches]
    elif form == "mapping":
        batches = [{"dense": dense, "sparse": sparse, "labels": label} for dense, sparse, label in batches]
    tuned = recpress.finetune(small_model(), "int8", batches, batches, loss="labels", epochs=1, control=False)
    flat = recpress.finetune(
        small_model(), "int8", small_batches(), small_batches(), loss="labels", epochs=1, control=False
    )
    assert tuned.report.training.run.best.valid_loss == flat.report.training.run.best.valid_loss


def test_tables_of_sparse_gradients_are_trained():
    model = small_model()
    model.tables[0].sparse = True
    batches = small_batches()
    tuned = recpress.finetune(model, "int8", batches, batches, loss="labels", epochs=1, lr=1e-2, control=False)
    used = torch.cat([sparse[:, 0] for _, sparse, _ in batches]).unique()
    changed = (tuned.model.tables[0].rows != recpress.compress(model).model.tables[0].rows).any(dim=1)
    assert changed[used].any() and not changed[[i for i in range(40) if i not in used]].any()


def test_batch_norms_keep_their_statistics():
    model = small_model()
    model.norm = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8))
    model.eval()
    batches = small_batches()
    tuned = recpress.finetune(model, "int8", batches, batches, loss="labels", epochs=2, control=False)
    assert torch.equal(tuned.model.norm[1].running_mean, torch.zeros(8))


def test_it_stops_when_nothing_gets_better_and_is_left_at_the_best():
    validation, weights = [1.0, 0.5, 0.9, 0.8, 0.1], []

    def loss(student, _teacher, batch):
        if torch.is_grad_enabled():
            return student(*batch[:2]).square().mean()
        weights.append(student.top[2].bias.detach().clone())
        return torch.tensor(validation[len(weights) - 1])

    batches = small_batches(1)
    options = {"loss": loss, "epochs": 4, "lr": 0.1, "patience": 2, "control": False}
    tuned = recpress.finetune(small_model(), "int8", batches, batches, **options)
    run = tuned.report.training.run
    assert [epoch.valid_loss for epoch in run.epochs] == pytest.approx(validation[:4])
    assert run.best.number == 1 and torch.equal(tuned.model.top[2].bias, weights[1])
    assert not torch.equal(weights[1], weights[3])


def test_the_rate_rises_and_falls():
    settings = Settings(1, 1.0, 1.0, "cosine", 0.1, 1, False, 0)
    factors = [settings.factor(step, 100) for step in range(100)]
    assert factors[:3] == [0.1, 0.2, 0.3] and max(factors) == 1.0 and factors[99] < 0.001
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert [Settings(1, 1.0, 1.0, "constant", 0.0, 1, False, 0).factor(i, 9) for i in (0, 8)] == [1.0, 1.0]


def test_a_loss_that_diverges_names_the_step_and_leaves_the_model():
    model, batches = small_model().train(), small_batches()
    before = copy.deepcopy(model.state_dict())
    broken = [*batches[:2], (batches[2][0] * torch.nan, *batches[2][1:])]
    with pytest.raises(TrainingError, match=r"loss is nan at step 3 \(pass 1\).*as it was"):
        recpress.finetune(model, "int8", broken, batches, loss="labels", calibration=[batches[0][:2]])
    with pytest.raises(TrainingError, match="at step [0-9]+"):
        recpress.finetune(model, "int8", batches, batches, loss="labels", lr=1e30)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"train": []}, TrainingError, "train holds no batches"),
        ({"valid": []}, TrainingError, "valid holds no batches"),
        ({"train": iter([1])}, TrainingError, "used up after one pass"),
        ({"lr": 0.0}, TrainingError, "lr is 0.0"),
        ({"lr": math.nan}, TrainingError, "lr is nan"),
        ({"scale_lr": -1.0}, TrainingError, "scale_lr is -1.0"),
        ({"epochs": 0}, TrainingError, "epochs is 0"),
        ({"patience": True}, TrainingError, "patience is True"),
        ({"warmup": 2.0}, TrainingError, "warmup is 2.0"),
        ({"schedule": "step"}, TrainingError, "allowed are cosine, constant"),
        ({"loss": "hinge"}, TrainingError, "allowed are distill, labels"),
        ({"recipe": Recipe(linear="keep", embedding="keep")}, RecipeError, "compresses nothing"),
        ({"recipe": "int8-static", "loss": lambda *_: None}, CalibrationError, "give calibration"),
        ({"loss": lambda model, *_: model(*small_inputs(3))}, TrainingError, "give a scalar tensor"),
        ({"loss": lambda *_: torch.ones(())}, TrainingError, "does not depend on the model"),
        ({"train": [torch.ones(3, 5)]}, TrainingError, "a batch is a Tensor"),
        ({"loss": "labels", "valid": [(*small_inputs(3), torch.ones(2))]}, TrainingError, r"shape \(2,\)"),
    ],
)
def test_what_cannot_be_done_is_refused(change, error, match):
    given = {"recipe": "int8", "train": small_batches(1), "valid": small_batches(1), **change}
    with pytest.raises(error, match=match):
        recpress.finetune(small_model(), **given)


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(TrainingError, match="requires a gradient"):
        recpress.finetune(small_model().requires_grad_(False), "int8", small_batches(1), small_batches(1))
