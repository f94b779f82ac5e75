"""What to prune, declared.

>>> PruneSpec(pattern="2:4", criterion="wanda", keep=("top.4",))
>>> PruneSpec(pattern="unstructured", sparsity=0.7, ranking="global")
>>> PruneSpec(pattern="units", criterion="activation", sparsity=0.5)
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from recpress.errors import PruningError
from recpress.pruning.patterns import n_m

WEIGHTS = ("magnitude", "gradient", "taylor", "wanda", "sparsegpt", "movement")
UNITS = ("activation", "weight-norm")
FOLLOWED = ("ablation", "weight-norm")
STRUCTURED = {"units": UNITS, "dimensions": FOLLOWED, "heads": FOLLOWED}
"""Patterns that remove whole parts of layers, with their criteria."""
FROM_GRADIENTS = ("gradient", "taylor", "movement")
FROM_INPUTS = ("wanda", "sparsegpt", "activation")


class PruneSpec(BaseModel):
    """A pattern, what decides within it, and how much goes.

    Attributes:
        pattern: ``"2:4"`` or another "n:m": n of each m inputs in a row stay. ``"unstructured"``: any weights go.
            ``"units"``: whole outputs of hidden layers go, and with them their places in the layers behind, so that
            shapes shrink. ``"dimensions"``: columns of embedding tables go, and all that consumes them
            (dimensions.py). ``"heads"``: whole heads of attention (heads.py).
        criterion: the scores of criteria.py: magnitude, gradient, taylor, wanda, sparsegpt or movement for weights,
            activation or weight-norm for units, ablation or weight-norm for dimensions and heads. None: the first of
            each. SparseGPT also updates the weights that
            stay; movement is gathered in training and is for :class:`recpress.Pruner` alone.
        sparsity: share of the weights or units that goes, over 0 and under 1; n:m says it itself, and to
            :class:`recpress.Pruner` its schedule does.
        threshold: instead of ``sparsity``, for unstructured magnitude: what is no more than it goes. "median", for
            unstructured gradient: the median of each layer's; where that is 0, since units are dead, half of the
            weights go all the same, by rank, and equal scores by magnitude.
        ranking: for unstructured weights and whole parts: what is compared, the weights of a ``"layer"`` (dimensions:
            of tables that lose the same ones), those of a ``"row"`` of it (an output; as Wanda's paper has it), or
            all, ``"global"``.
        keep: patterns over layers' names (``*``, ``?``, ``[...]``) that stay dense; tables' for dimensions, and
            attentions' for heads.
        permute: for n:m: look for an order of hidden units in which more of the scores stays, and put it into the
            layers on either side (permute.py); the model is the same but for the order of its sums. ``"auto"``: where
            torch.fx can follow the model; True: an error where it cannot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: str = "2:4"
    criterion: str | None = None
    sparsity: float | None = None
    threshold: float | Literal["median"] | None = None
    ranking: Literal["layer", "row", "global"] = "layer"
    keep: tuple[str, ...] = ()
    permute: bool | Literal["auto"] = False

    def __init__(self, **given: object) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            items = ", ".join(f"{item['loc'][0]!r}: {item['msg']}" for item in error.errors())
            raise PruningError(f"what to prune: {items}; allowed are: {', '.join(PruneSpec.model_fields)}") from None
        if problem := self._problem():
            raise PruningError(f"what to prune: {problem}")

    @property
    def n_m(self) -> tuple[int, int] | None:
        """n and m of an n:m pattern, else None."""
        return n_m(self.pattern)

    @property
    def by(self) -> str:
        """The criterion, with its default."""
        return self.criterion or STRUCTURED.get(self.pattern, WEIGHTS)[0]

    @property
    def share(self) -> float | None:
        """The share of the weights or units that goes; None where a threshold decides, or a schedule is to."""
        return self.sparsity if self.n_m is None else 1 - self.n_m[0] / self.n_m[1]

    def _problem(self) -> str:
        """What keeps this from being something to do; empty where nothing does."""
        if self.pattern not in ("unstructured", *STRUCTURED) and self.n_m is None:
            names = ", ".join(map(repr, ("unstructured", *STRUCTURED)))
            return f"pattern is {self.pattern!r}; allowed are {names} and n:m such as '2:4'"
        allowed = STRUCTURED.get(self.pattern, WEIGHTS)
        if self.by not in allowed:
            return (
                f"criterion {self.by!r} does not fit pattern {self.pattern!r}; allowed there are {', '.join(allowed)}"
            )
        if self.n_m:
            given = [name for name in ("sparsity", "threshold") if getattr(self, name) is not None]
            if given:
                return f"pattern {self.pattern!r} says how much goes; leave {given[0]} out"
            if self.ranking != "layer":
                return f"ranking {self.ranking!r} has no meaning in groups of inputs; leave it out"
            if self.permute and self.by == "sparsegpt":
                return "permute compares all inputs' scores at once, and sparsegpt finds them one after another"
            return ""
        if self.permute:
            return f"permute is for n:m, not for pattern {self.pattern!r}"
        if self.sparsity is not None and self.threshold is not None:
            return "both sparsity and threshold say how much goes; give one of them"
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            return f"sparsity is {self.sparsity}; give a share over 0 and under 1"
        return self._threshold_problem() or self._ranking_problem()

    def _threshold_problem(self) -> str:
        if self.threshold is None:
            return ""
        if self.pattern in STRUCTURED:
            return f"{self.pattern} go by sparsity, not by a threshold"
        if self.by != ("gradient" if self.threshold == "median" else "magnitude"):
            return f"threshold {self.threshold!r} does not fit {self.by}; magnitude takes a number, gradient 'median'"
        if self.threshold != "median" and not 0 <= self.threshold < float("inf"):
            return f"threshold is {self.threshold}; give a finite number of at least 0"
        return "" if self.ranking == "layer" else "with a threshold nothing is ranked; leave ranking out"

    def _ranking_problem(self) -> str:
        if self.by == "sparsegpt" and self.ranking != "layer":
            return "sparsegpt decides a block of inputs at a time; leave ranking out"
        if self.pattern in STRUCTURED and self.ranking == "row":
            return f"{self.pattern} have no rows; allowed are 'layer' and 'global'"
        return ""
