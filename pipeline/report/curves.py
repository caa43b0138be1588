"""The report's section on training: learning curves, losses, and what tuning tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.report.board import names
from pipeline.report.charts import Point, curves
from pipeline.report.page import Chart
from pipeline.report.tables import DataTable, plain_table

TRIALS = {"agent": "Agent", "trial": "Settings tried", "validation": "Best validation", "best_step": "at step",
          "steps": "Steps", "seconds": "Seconds", "chosen": "Chosen"}  # fmt: skip


@dataclass(frozen=True)
class Training:
    chart: Chart | None  # the validation metric
    losses: Sequence[Chart]
    trials: DataTable | None


def training(log: pa.Table, trials: pa.Table) -> Training:
    """The section, from the queries ``learning_curves`` and ``trials``."""
    series: dict[str, dict[str, list[Point]]] = {}
    for row in log.to_pylist():
        point = Point(row["step"], row["value"], row["lowest"], row["highest"])
        series.setdefault(row["metric"], {}).setdefault(row["agent"], []).append(point)
    charts = {metric: _chart(metric, agents) for metric, agents in series.items()}
    first = next((charts[metric] for metric in charts if metric.startswith("validation") or "ndcg" in metric), None)
    tried = plain_table("What tuning tried", trials, TRIALS) if len(trials) else None
    return Training(first, [chart for chart in charts.values() if chart is not first], tried)


def _chart(metric: str, agents: Mapping[str, Sequence[Point]]) -> Chart:
    return Chart(curves(agents, "gradient steps", metric), f"{metric} by gradient step of {names(agents)}")
