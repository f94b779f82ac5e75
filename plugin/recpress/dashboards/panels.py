"""The panels of both dashboards: what they ask Prometheus, and how it is shown.

``$model`` and ``$version`` in an expression are regular expressions, which Grafana's variables or the picture fill in.
"""

from dataclasses import dataclass
from typing import Literal

MV = 'model=~"$model", version=~"$version"'
M = 'model=~"$model"'
# Over gRPC the proxy does not know the model.
_PROXY = 'model=~"$model|"'
_V = "{{model}} v{{version}}"
WIDTH = 24
"""Columns of a dashboard."""


@dataclass(frozen=True)
class Query:
    """An expression, and how each of its series is named: ``{{label}}`` stands for a label."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel; ``unit`` is Grafana's name of it, ``width`` in columns."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["lines", "heatmap"] = "lines"
    width: int = 8


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    panels: tuple[Panel, ...]

    @property
    def rows(self) -> list[list[Panel]]:
        """The panels from left to right, in rows of :data:`WIDTH` columns."""
        rows: list[list[Panel]] = [[]]
        for panel in self.panels:
            if sum(other.width for other in rows[-1]) + panel.width > WIDTH:
                rows.append([])
            rows[-1].append(panel)
        return rows


def _panel(title: str, unit: str, *queries: tuple[str, str], **options) -> Panel:
    return Panel(title, unit, tuple(Query(*query) for query in queries), **options)


OPERATORS = Board(
    "recpress-operators",
    "recpress: serving",
    (
        _panel(
            "Execute, p50 and p99",
            "s",
            (f"recpress:execute_seconds:p50_1m{{{MV}}}", f"p50 {_V}"),
            (f"recpress:execute_seconds:p99_1m{{{MV}}}", f"p99 {_V}"),
        ),
        _panel(
            "Execute, by bucket",
            "s",
            (f"sum by (le) (recpress:execute_seconds_bucket:rate1m{{{MV}}})", "{{le}}"),
            kind="heatmap",
        ),
        _panel(
            "Stages, p99",
            "s",
            (
                "histogram_quantile(0.99, sum by (le, stage, model, version) "
                f"(rate(recpress_stage_seconds_bucket{{{MV}}}[1m])))",
                "{{stage}} " + _V,
            ),
        ),
        _panel("Requests", "reqps", (f"recpress:requests:rate1m{{{MV}}}", _V)),
        _panel("Rows", "rowsps", (f"sum by (model, version) (rate(recpress_rows_total{{{MV}}}[1m]))", _V)),
        _panel(
            "Rows by execute",
            "short",
            (
                f"sum by (model, version) (rate(recpress_rows_total{{{MV}}}[1m])) / "
                f"(sum by (model, version) (rate(recpress_executions_total{{{MV}}}[1m])) > 0)",
                f"mean {_V}",
            ),
            (
                f"histogram_quantile(0.99, sum by (le, model, version) (rate(recpress_batch_rows_bucket{{{MV}}}[1m])))",
                f"p99 {_V}",
            ),
        ),
        _panel(
            "Rejected, by reason",
            "reqps",
            (f"recpress:rejected:rate1m{{{MV}}}", "{{reason}} " + _V),
            (f"sum by (reason) (rate(nv_inference_request_failure{{{MV}}}[1m]))", "server: {{reason}}"),
            (
                f'sum by (outcome, protocol) (recpress:proxy_requests:rate1m{{{_PROXY}, outcome!="ok"}})',
                "proxy: {{outcome}} {{protocol}}",
            ),
        ),
        _panel("Queue, mean wait", "s", (f"recpress:queue_seconds:mean1m{{{MV}}}", _V)),
        _panel(
            "Requests that wait", "short", (f"sum by (model, version) (nv_inference_pending_request_count{{{MV}}})", _V)
        ),
        _panel(
            "CPU",
            "short",
            ("sum by (process) (rate(recpress_cpu_seconds_total[1m]))", "{{process}}, cores"),
            ("nv_cpu_utilization", "machine, share"),
        ),
        _panel("Memory", "bytes", ("sum by (process, version) (recpress_pss_bytes)", "{{process}} {{version}}")),
        _panel(
            "End to end",
            "s",
            (f"recpress:proxy_seconds:p50_1m{{{_PROXY}}}", "proxy p50 {{protocol}} {{model}}"),
            (f"recpress:proxy_seconds:p99_1m{{{_PROXY}}}", "proxy p99 {{protocol}} {{model}}"),
            (
                "histogram_quantile(0.99, sum by (le, model, version) "
                f"(rate(recpress_client_seconds_bucket{{{MV}}}[5m])))",
                f"golden rows p99 {_V}",
            ),
            (
                "histogram_quantile(0.99, sum by (le, model, protocol) "
                f"(rate(recpress_loadtest_request_seconds_bucket{{{M}}}[1m])))",
                "load test p99 {{protocol}} {{model}}",
            ),
        ),
        _panel(
            "Probes, and stubs alive of those configured",
            "percentunit",
            (f"recpress_probe_success{{{MV}}}", f"probe {_V}"),
            (f"recpress_stubs{{{MV}}} / recpress_stubs_expected{{{MV}}}", f"stubs {_V}"),
            width=12,
        ),
        _panel(
            "Versions by state",
            "short",
            (f"sum by (model, state) (recpress_version_state{{{M}}})", "{{model}} {{state}}"),
            width=12,
        ),
    ),
)

OWNERS = Board(
    "recpress-owners",
    "recpress: models",
    (
        _panel(
            "Quality, compressed and original",
            "short",
            (
                f"max by (model, version, form, measure) (recpress_model_quality{{{MV}}})",
                "{{measure}} {{form}} " + _V,
            ),
        ),
        _panel(
            "Quality kept",
            "percentunit",
            (
                f'max by (model, version, measure) (recpress_model_quality{{{MV}, form="compressed"}}) / '
                f'max by (model, version, measure) (recpress_model_quality{{{MV}, form="original"}})',
                "{{measure}} " + _V,
            ),
        ),
        _panel(
            "Bytes, compressed and original",
            "bytes",
            (f"max by (model, version, form) (recpress_model_bytes{{{MV}}})", "{{form}} " + _V),
        ),
        _panel(
            "Scores, by bucket",
            "short",
            (f"sum by (le) (rate(recpress_score_bucket{{{MV}}}[5m]))", "{{le}}"),
            kind="heatmap",
        ),
        _panel("Score drift against the day", "percentunit", (f"recpress:score:drift15m{{{MV}}}", _V)),
        _panel(
            "Mean score",
            "short",
            (
                # Not rate: to it a sum that negative scores make fall is a counter that began again.
                f"sum by (model, version) (delta(recpress_score_sum{{{MV}}}[5m])) / "
                f"(sum by (model, version) (delta(recpress_score_count{{{MV}}}[5m])) > 0)",
                _V,
            ),
        ),
        _panel(
            "Golden rows, deviation by its limit",
            "percentunit",
            (
                f"max by (model, version) (recpress_golden_deviation{{{MV}}} "
                f"/ recpress_golden_deviation_limit{{{MV}}})",
                f"at load {_V}",
            ),
            (f"recpress_probe_golden_deviation{{{MV}}} / recpress_probe_golden_deviation_limit{{{MV}}}", f"now {_V}"),
            width=12,
        ),
        _panel(
            "What is served",
            "short",
            (
                f"max by (model, version, recipe, scheme) (recpress_model_info{{{MV}}})",
                _V + ": {{recipe}}, {{scheme}}",
            ),
            width=12,
        ),
    ),
)
BOARDS = (OPERATORS, OWNERS)
