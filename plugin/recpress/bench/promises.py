"""What compression promises of a model's quality and size, and whether a comparison keeps it."""

from dataclasses import dataclass, field

from recpress.report.paired import Paired

AUC_INT8, RANKING_INT8, INT4 = 0.9995, 0.999, 0.999
BYTES = 0.30
LOGLOSS, CALIBRATION = 1.001, 0.005


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


def promises(compared: Compared, *, bytes_ratio: float, int4: bool) -> list[Promise]:
    """The promises on a post-training int8 model, or where ``int4`` on one with int4 tables, each with its verdict.

    * int8 keeps 99.95 % of the AUC, and 99.9 % of HR@10 and NDCG@10; with int4 tables 99.9 %.
    * logloss rises by 0.1 % at most, and calibration stays within 0.5 % of the original's.
    * bytes are 30 % at most.
    """
    made = []
    for name, paired in compared.metrics.items():
        bound = INT4 if int4 else AUC_INT8 if name == "AUC" else RANKING_INT8
        made.append(Promise(name, paired.ratio, bound, paired.ratio >= bound))
    if "logloss" in compared.levels:
        ratio = compared.change("logloss")
        made.append(Promise("logloss", ratio, LOGLOSS, ratio <= LOGLOSS))
    if "calibration" in compared.levels:
        change = abs(compared.change("calibration") - 1)
        made.append(Promise("calibration", change, CALIBRATION, change <= CALIBRATION))
    made.append(Promise("bytes", bytes_ratio, BYTES, bytes_ratio <= BYTES))
    return made
