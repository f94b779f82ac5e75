"""What compression promises of a model's quality and size, and whether a comparison keeps it."""

from dataclasses import dataclass, field

from recpress.report.paired import Paired

LOGLOSS, CALIBRATION = 1.001, 0.005


@dataclass(frozen=True)
class Bounds:
    """The least share of the AUC that is kept, and of HR@10 and NDCG@10; of the rest, None: nothing is promised.

    ``bytes`` are at most that share of the original's, ``over_least`` that many times what the formats allow; ``gone``
    is the least share of the linear layers' parameters that is taken out; training takes at most ``steps`` times the
    original's.
    """

    auc: float
    ranking: float
    bytes: float | None = None
    over_least: float | None = None
    gone: float | None = None
    steps: float | None = None


INT8 = Bounds(0.9995, 0.999, bytes=0.30)
INT4 = Bounds(0.999, 0.999, bytes=0.30)
PRUNED = Bounds(0.999, 0.995, steps=0.2)


@dataclass(frozen=True)
class Compared:
    """The original and the compressed model on the same rows.

    ``metrics`` are those that more is better of, such as AUC; ``levels`` are ``(before, after)`` of logloss and of
    calibration, the mean prediction over the mean label, where the model predicts chances.
    """

    metrics: dict[str, Paired]
    levels: dict[str, tuple[float, float]] = field(default_factory=dict)

    def change(self, level: str) -> float:
        """After over before."""
        before, after = self.levels[level]
        return after / before


@dataclass(frozen=True)
class Promise:
    """``value`` of what ``name`` says, the ``bound`` that is promised, and whether it is ``kept``."""

    name: str
    value: float
    bound: float
    kept: bool


def promises(
    compared: Compared, bounds: Bounds, *, bytes_ratio: float, over_least: float, gone: float, steps: float
) -> list[Promise]:
    """The promises that ``bounds`` makes, each with its verdict; the shares are those that :class:`Bounds` says.

    Whatever they are, logloss rises by 0.1 % at most, and calibration stays within 0.5 % of the original's.
    """
    made = []
    for name, paired in compared.metrics.items():
        made.append(_at_least(name, paired.ratio, bounds.auc if name == "AUC" else bounds.ranking))
    if "logloss" in compared.levels:
        made.append(_at_most("logloss", compared.change("logloss"), LOGLOSS))
    if "calibration" in compared.levels:
        made.append(_at_most("calibration", abs(compared.change("calibration") - 1), CALIBRATION))
    if bounds.bytes is not None:
        made.append(_at_most("bytes", bytes_ratio, bounds.bytes))
    if bounds.over_least is not None:
        made.append(_at_most("bytes over the least", over_least, bounds.over_least))
    if bounds.gone is not None:
        made.append(_at_least("parameters gone", gone, bounds.gone))
    if bounds.steps is not None:
        made.append(_at_most("steps", steps, bounds.steps))
    return made


def _at_least(name: str, value: float, bound: float) -> Promise:
    return Promise(name, value, bound, value >= bound)


def _at_most(name: str, value: float, bound: float) -> Promise:
    return Promise(name, value, bound, value <= bound)
