"""The report's section on goals: what one trained model reaches under a grid of them, beside all other rankers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.report.board import names, world
from pipeline.report.charts import Mark, trade_off
from pipeline.report.format import number
from pipeline.report.page import Chart
from pipeline.report.tables import Cell, DataTable, interval_cell

AXES = ("clicks", "purchases", "depth", "return")
OTHERS = "other rankers"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goals:
    fronts: list[str]  # a sentence a world: who is on its front
    charts: list[Chart]
    tables: list[DataTable]


def goals(pareto: pa.Table) -> Goals:
    """The section, from the query ``pareto``."""
    worlds: dict[str, list[Row]] = {}
    for row in pareto.to_pylist():
        worlds.setdefault(row["setting"], []).append(row)
    ordered = sorted(worlds, key=lambda setting: (setting != "truth", setting))
    return Goals(
        fronts=[_front(setting, worlds[setting]) for setting in ordered],
        charts=[_chart(setting, worlds[setting]) for setting in ordered],
        tables=[_table(setting, worlds[setting]) for setting in ordered],
    )


def _front(setting: str, rows: Sequence[Row]) -> str:
    on_front = [_name(row) for row in rows if row["on_front"]]
    judged = sum(row["on_front"] is not None for row in rows)  # oracles are no part of it
    return f"{_world(setting)}: {len(on_front)} of {judged} are on the front: {names(on_front)}."


def _chart(setting: str, rows: Sequence[Row]) -> Chart:
    series: dict[str, list[Mark]] = {}
    for row in sorted(rows, key=lambda row: (not row["goal"], row["agent"], row["goal"] or "")):
        swept = f"{row['agent']}, a point a goal" if row["goal"] else OTHERS
        figures = ", ".join(f"{number(row[axis])} {axis}" for axis in AXES[:3])
        mark = Mark(
            x=row["clicks"],
            y=row["purchases"],
            colour=row["depth"],
            label=_label(row),
            story=f"{_name(row)}: {figures}",
            stands_out=bool(row["on_front"]),
        )
        series.setdefault(swept, []).append(mark)
    figure = trade_off(series, "clicks a session", "purchases a session", "pages")
    description = f"{_world(setting)}: clicks, purchases and (as colour) pages of {names(series)}; ringed: on the front"
    return Chart(figure, description, _world(setting))


def _table(setting: str, rows: Sequence[Row]) -> DataTable:
    head = [Cell("Ranker"), Cell("Goal"), *(Cell(axis.capitalize()) for axis in AXES), Cell("On the front")]
    cells = [
        [
            Cell(row["agent"]),
            Cell(row["goal"] or "–"),
            *(interval_cell(row[axis], row[f"{axis}_low"], row[f"{axis}_high"]) for axis in AXES),
            Cell({True: "yes", False: "no", None: "sees the truth"}[row["on_front"]]),
        ]
        for row in rows
    ]
    return DataTable(f"{_world(setting)}: every goal and every ranker", head, cells)


def _label(row: Row) -> str:
    """Every other ranker by its name; of the many goals those on the front."""
    if not row["goal"]:
        return str(row["agent"])
    return str(row["goal"]) if row["on_front"] else ""


def _name(row: Row) -> str:
    return f"{row['agent']} ({row['goal']})" if row["goal"] else str(row["agent"])


def _world(setting: str) -> str:
    return "In the truth" if setting == "truth" else f"In {world(setting)}"
