"""A load test as a file of JSON, from which tables, plots and the report are made."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recpress.errors import LoadTestError
from recpress.files import replace
from recpress.latency import quantile
from recpress.loadtest.result import Load, Step
from recpress.loadtest.run import LoadTest

PERCENTS = (50.0, 90.0, 99.0, 99.9, 100.0)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SavedStep(_Frozen):
    """A :class:`recpress.loadtest.result.Step`.

    Attributes:
        percentiles: seconds by percent, of :data:`PERCENTS`; None for what was never answered.
        spectrum: the same as :meth:`Step.spectrum` has it.
    """

    rate: float | None
    clients: int | None
    warm_up_s: float
    seconds: float
    requests: int
    outcomes: dict[str, int]
    errors: dict[str, str]
    throughput: float | None
    deadline_s: float | None
    goodput: float | None
    percentiles: dict[str, float | None]
    spectrum: tuple[tuple[float, float | None], ...]
    sent_late_p99_s: float | None
    client_s: float
    broken_off: str | None

    @model_validator(mode="after")
    def _whole(self) -> "SavedStep":
        if (self.rate is None) == (self.clients is None):
            raise ValueError("a load has either a rate or clients")
        if set(self.percentiles) != set(map(_key, PERCENTS)):
            raise ValueError(f"percentiles are of {', '.join(map(_key, PERCENTS))}")
        return self

    @property
    def load(self) -> str:
        return str(Load(rate=self.rate, clients=self.clients))

    def percentile(self, percent: float) -> float | None:
        """One of :data:`PERCENTS`."""
        return self.percentiles[_key(percent)]


class SavedScores(_Frozen):
    """How the scores of all answers compare with the expected ones; see :class:`recpress.artifact.golden.Verdict`."""

    rows: int
    worst: float | None
    beyond: int
    ok: bool


class Saved(_Frozen):
    """The whole file; see :class:`recpress.loadtest.run.LoadTest`.

    Attributes:
        server: its address, ``host:port``, as the tester was given it.
        machine: the processor and cores of the tester.
    """

    schema_version: Literal[1] = 1
    model: str
    version: str
    server: str
    machine: str
    protocol: Literal["grpc", "http"]
    started: str
    batch: int
    rows: str
    objective_p99_s: float | None
    steps: Annotated[tuple[SavedStep, ...], Field(min_length=1)]
    scores: SavedScores
    problems: tuple[str, ...]

    @property
    def held(self) -> SavedStep | None:
        """The load with the most right answers a second of those that kept to the objective, if any did."""
        objective = self.objective_p99_s
        kept = [s for s in self.steps if objective is not None and (s.percentile(99) or math.inf) <= objective]
        return max(kept, key=lambda step: step.throughput or 0.0, default=None)


def saved(test: LoadTest) -> Saved:
    """The form of ``test`` that is written."""
    scores, where = test.scores, test.endpoint
    return Saved(
        model=where.model,
        version=where.version,
        server=where.url,
        machine=test.machine,
        protocol=where.protocol,
        started=test.started,
        batch=test.batch,
        rows=test.rows,
        objective_p99_s=test.objective_s,
        steps=tuple(_step(step) for step in test.steps),
        scores=SavedScores(rows=scores.rows, worst=_finite(scores.worst), beyond=scores.beyond, ok=scores.ok),
        problems=tuple(test.problems),
    )


def _step(step: Step) -> SavedStep:
    return SavedStep(
        rate=step.load.rate,
        clients=step.load.clients,
        warm_up_s=step.load.warm_up_s,
        seconds=step.seconds,
        requests=step.requests,
        outcomes={outcome.label: count for outcome, count in step.counts.items()},
        errors={outcome.label: text for outcome, text in step.first_error.items()},
        throughput=_finite(step.throughput),
        deadline_s=step.load.deadline_s,
        goodput=None if step.goodput is None else _finite(step.goodput),
        percentiles={_key(percent): _finite(step.percentile(percent)) for percent in PERCENTS},
        spectrum=tuple((percent, _finite(seconds)) for percent, seconds in step.spectrum()),
        sent_late_p99_s=_finite(quantile(step.behind, 0.99)),
        client_s=step.client_s,
        broken_off=step.broken_off,
    )


def _key(percent: float) -> str:
    """Of a percentile in JSON."""
    return f"{percent:g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read(path: str | Path) -> Saved:
    """Read a test that was written.

    Raises:
        LoadTestError: there is none, or it is not as it should be.
    """
    try:
        return Saved.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise LoadTestError(f"{path} cannot be read ({error.strerror}); give what --json wrote") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LoadTestError(f"{path}, at {where or 'the top'}: {first['msg']}; run the load test again") from None
    except ValueError as error:
        raise LoadTestError(f"{path} is not JSON ({error}); give what --json wrote") from None


def write(path: Path, test: Saved) -> None:
    """Write ``test`` to ``path``.

    Raises:
        OutputError: it cannot be written.
    """
    replace(path, test.model_dump_json(indent=1) + "\n")
