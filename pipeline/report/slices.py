"""The report's tables of slices: who is served well, by kind of user, session and item."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.report.board import metric_name
from pipeline.report.format import number
from pipeline.report.tables import Cell, DataTable, interval_cell, number_cell

Row = Mapping[str, Any]


def slice_tables(slices: pa.Table, agents: Sequence[str]) -> list[DataTable]:
    """A table a dimension and metric from the query ``slices``, paged; rows in the order of ``agents``."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in slices.to_pylist():
        if row["mode"] == "paged":
            groups.setdefault((row["dimension"], row["metric"]), []).append(row)
    return [
        _table(f"{metric_name(metric)} by {dimension}", rows, agents) for (dimension, metric), rows in groups.items()
    ]


def _table(caption: str, rows: Sequence[Row], agents: Sequence[str]) -> DataTable:
    sizes = {row["slice"]: row["n"] for row in rows}  # the same for every agent
    found = {(row["agent"], row["slice"]): interval_cell(row["value"], row["ci_low"], row["ci_high"]) for row in rows}
    shown = [agent for agent in agents if any((agent, name) in found for name in sizes)]
    head = [Cell("Agent"), *(Cell(str(name), f"n = {number(n)}") for name, n in sizes.items())]
    cells = [[Cell(agent), *(found.get((agent, name), number_cell(None)) for name in sizes)] for agent in shown]
    return DataTable(caption, head, cells)
