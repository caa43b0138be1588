"""The report's section on user models: what the gate says of each, how they are calibrated, and what that was worth."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.report.board import names
from pipeline.report.charts import reliability
from pipeline.report.page import Chart
from pipeline.report.tables import DataTable, plain_table

GATE = {"simulator": "User model", "side": "Side", "head": "Predicts", "criterion": "Criterion", "value": "Value",
        "reference": "Limit", "verdict": "Gate", "n": "n"}  # fmt: skip
ERROR = {"simulator": "User model", "passed_gate": "Gate", "agent": "Agent", "value": "Return there",
         "true_value": "True value", "relative_error": "Relative error", "rank_in_simulator": "Rank there",
         "true_rank": "True rank"}  # fmt: skip
DROP = {"sessions": "Sessions", "agent": "Agent", "train_simulator": "Train side", "train_value": "Return there",
        "judge_simulator": "Judge", "judge_value": "Return there ", "relative_drop": "Relative change"}  # fmt: skip
ROLLOUTS = {"setting": "World", "agent": "Agent", "episodes": "Episodes", "return": "Return", "ci_low": "from",
            "ci_high": "to", "return_variance": "Variance over users", "depth": "Pages", "ctr": "CTR",
            "purchases": "Purchases", "predicted_return": "Predicted", "discounted_return": "Realised",
            "overestimation": "Over-estimated by", "catalogue_coverage": "Catalogue shown", "diversity": "Diversity",
            "repeat_rate": "Repeats", "out_of_support": "Out of support", "disagreement": "Disagreement"}  # fmt: skip


@dataclass(frozen=True)
class Simulators:
    verdicts: list[str]  # a sentence each
    gate: DataTable | None
    charts: list[Chart]
    error: DataTable | None  # only where the truth is known
    drop: DataTable | None
    rollouts: DataTable | None


def simulators(gate: pa.Table, bins: pa.Table, error: pa.Table, drop: pa.Table, rollouts: pa.Table) -> Simulators:
    """The section, from the queries of these names and the table ``simulator_reliability``."""
    rows = [row | {"verdict": _verdict(row["passed"])} for row in gate.to_pylist()]
    errors = [row | {"passed_gate": _verdict(row["passed_gate"])} for row in error.to_pylist()]
    return Simulators(
        verdicts=_verdicts(rows),
        gate=_table("Every criterion of the gate", rows, GATE),
        charts=_charts(bins.to_pylist()),
        error=_table("How far the user models are from the truth", errors, ERROR),
        drop=_table("From the train side's user model to the judge", drop.to_pylist(), DROP),
        rollouts=_table("Every agent in every world", rollouts.to_pylist(), ROLLOUTS),
    )


def failures(gate: pa.Table) -> list[str]:
    """A sentence for each user model that may not judge, from the query ``simulator_gate``."""
    rows = gate.to_pylist()
    failed = {row["simulator"] for row in rows if row["passed"] is False}
    return _verdicts([row for row in rows if row["simulator"] in failed])


def _verdicts(rows: list[dict[str, Any]]) -> list[str]:
    sentences = []
    for name in dict.fromkeys(row["simulator"] for row in rows):
        own = [row for row in rows if row["simulator"] == name]
        failed = [f"{row['head']} {row['criterion'].replace('_', ' ')}" for row in own if row["passed"] is False]
        held = sum(row["passed"] is not None for row in own)
        told = f"fails {names(failed)}, so no roll-outs in it are shown" if failed else f"meets all {held} criteria"
        sentences.append(f"{name} ({own[0]['side']} side) {told}.")
    return sentences


def _charts(bins: list[dict[str, Any]]) -> list[Chart]:
    charts = []
    for head in dict.fromkeys(row["head"] for row in bins):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in bins:
            if (row["head"], row["group"]) == (head, "all"):
                series.setdefault(row["simulator"], []).append((row["predicted"], row["observed"]))
        charts.append(Chart(reliability(series, head), f"Predicted and observed probability of {head}"))
    return charts


def _table(caption: str, rows: Iterable[dict[str, Any]], head: dict[str, str]) -> DataTable | None:
    chosen = [{name: row[name] for name in head} for row in rows]
    return plain_table(caption, pa.Table.from_pylist(chosen), head) if chosen else None


def _verdict(passed: bool | None) -> str:
    return {True: "passed", False: "failed", None: "reported"}[passed]
