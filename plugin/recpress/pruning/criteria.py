"""What a weight or a unit is worth: the scores by which pruning takes the least.

With W the weight ``[out, in]`` of a linear layer, X ``[rows, in]`` its calibration inputs, G_b the gradient of batch
b's loss, and mean_b the mean over batches::

    magnitude   |W|
    gradient    mean_b |G_b|
    taylor      |W| * mean_b |G_b|               first order (P. Molchanov et al. 2017, arXiv 1611.06440)
    wanda       |W| * ||X[:, j]||_2              M. Sun et al. 2023, arXiv 2306.11695
    movement    -sum_b W * G_b                   over training steps (V. Sanh et al. 2020, arXiv 2005.07683)
    activation  ||X'[:, u]||_2 * ||W'[:, u]||_2  of unit u, X' and W' of the layers that take its outputs
    weight-norm ||W[u]||_2                       of unit u

SparseGPT's (sparsegpt.py) depend on what was taken before. Where scores are equal the smaller weight goes first.
"""

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from recpress.errors import PruningError
from recpress.pruning.targets import Target

Loss = Callable[[nn.Module, object], Tensor]
"""``loss(model, item)``: the loss of one calibration item, a scalar."""


def score(criterion: str, weight: Tensor, *, inputs: Tensor | None = None, gradient: Tensor | None = None) -> Tensor:
    """Scores float32 ``[out, in]`` of ``weight`` by magnitude, gradient, taylor or wanda.

    Args:
        inputs: ``[rows, in]``, of wanda.
        gradient: ``mean_b |G_b|`` ``[out, in]``, of gradient and taylor.
    """
    size = weight.detach().float().abs()
    if criterion == "magnitude":
        return size
    if criterion == "wanda":
        return size * inputs.float().norm(dim=0)
    return gradient.float() if criterion == "gradient" else size * gradient.float()


def gradients(model: nn.Module, targets: Iterable[Target], batches: Iterable[object], loss: Loss) -> dict[str, Tensor]:
    """``mean_b |G_b|`` of each target's weight by its name; gradients that the model holds are left as they are.

    Args:
        batches: what ``loss`` takes, an item at a time.

    Raises:
        PruningError: there are no batches, a loss is no finite scalar, or it gives a weight no gradient at all, or
            zeros alone: nothing can be learned from these.
    """
    targets = list(targets)
    total = {target.name: torch.zeros_like(target.weight, dtype=torch.float32) for target in targets}
    missing = {target.name for target in targets}
    count = 0
    frozen = [target.weight for target in targets if not target.weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for batch in batches:
            value = loss(model, batch)
            _check_loss(value, count)
            found = torch.autograd.grad(value, [target.weight for target in targets], allow_unused=True)
            for target, gradient in zip(targets, found, strict=True):
                if gradient is not None:
                    missing.discard(target.name)
                    total[target.name] += gradient.float().abs()
            count += 1
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    if not count:
        raise PruningError("no gradients were computed: calibration holds no batches; give at least one")
    check_learned(total, missing)
    return {name: summed / count for name, summed in total.items()}


def check_learned(scores: dict[str, Tensor], missing: set[str] = frozenset()) -> None:
    """Refuse scores made of gradients where there were none, or zeros alone.

    Raises:
        PruningError: as said, with the layer.
    """
    for name, summed in scores.items():
        if name in missing or not summed.any():
            why = "had no gradient" if name in missing else "had zero gradients alone"
            raise PruningError(
                f"layer {name!r} {why} in all batches, so that nothing was learned about its weights; give a loss that "
                "depends on it, or leave it dense by keep"
            )
        if not torch.isfinite(summed).all():
            raise PruningError(f"layer {name!r} had gradients that are not finite; look for NaN in the batches")


def _check_loss(value: Tensor, count: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not torch.isfinite(value) or not value.requires_grad:
        given = f"{value.detach()}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise PruningError(
            f"the loss of calibration item {count} is {given}; give a finite scalar tensor that depends on the model"
        )


class Accumulator:
    """Gradient scores of weights, gathered in the user's own training: at each step of a ``torch.optim`` optimiser.

    What the optimiser is about to use is what counts: of DistributedDataParallel the mean over processes, the same on
    all of them; of a batch in parts their sum; of mixed precision the unscaled gradient. ``kind`` is gradient, taylor
    or movement. Weights that a mask holds at zero gather no taylor and no movement.
    """

    def __init__(self, kind: str, targets: Iterable[Target]) -> None:
        self.kind, self.steps = kind, 0
        weights = {id(target.weight): target for target in targets}
        self.sums = {t.name: torch.zeros_like(t.weight, dtype=torch.float32) for t in weights.values()}
        self._targets = weights
        itself = weakref.ref(self)

        def before_step(optimizer: Optimizer, _args: tuple, _kwargs: dict) -> None:
            if (alive := itself()) is not None:
                alive._add(optimizer)

        self._handle = register_optimizer_step_pre_hook(before_step)
        weakref.finalize(self, self._handle.remove)

    def scores(self) -> dict[str, Tensor]:
        """The sums so far.

        Raises:
            PruningError: no step was seen, or a weight has had no gradient but zeros.
        """
        if not self.steps:
            raise PruningError(
                f"no gradients were computed: {self.kind} is gathered at the steps of a torch.optim optimiser that "
                "holds these weights, and there was none; call step(step) after optimizer.step()"
            )
        check_learned(self.sums)
        return self.sums

    def reset(self) -> None:
        """Begin again, with the steps that come."""
        self.steps = 0
        for summed in self.sums.values():
            summed.zero_()

    def close(self) -> None:
        """Gather no more."""
        self._handle.remove()

    @torch.no_grad()
    def _add(self, optimizer: Optimizer) -> None:
        for weight in (p for group in optimizer.param_groups for p in group["params"]):
            target = self._targets.get(id(weight))
            if target is None or weight.grad is None:
                continue
            self.steps += 1
            g, w = weight.grad.float(), weight.float()
            new = -g * w if self.kind == "movement" else g.abs() * (w.abs() if self.kind == "taylor" else 1)
            self.sums[target.name] = self.sums[target.name].to(new.device) + new
