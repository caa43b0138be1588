"""Tables for the report and for the terminal, built from the board and from published tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite
from typing import Any

import pyarrow as pa

from pipeline.report.board import Board, Column, Estimate, role
from pipeline.report.format import MISSING, decimals, interval, number, p_value, signed


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""  # small print under the text: an interval, a p-value, a role
    sort: float | str | None = None  # what the column sorts by; the text where this is None
    bar: tuple[float, float, float] | None = None  # an interval's low, value and high, in % of the column's range
    numeric: bool = False


@dataclass(frozen=True)
class DataTable:
    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def leaderboard_table(board: Board) -> DataTable:
    """One row an agent: the main metrics, each with its interval, and the difference to the reference."""
    head, rows = [Cell("Agent")], [[_agent_cell(board, agent)] for agent in board.agents]
    for position, column in enumerate(headline_columns(board)):
        head.append(_heading(board, column, column.label))
        scale = _scale(board.column(column))
        for agent, row in zip(board.agents, rows, strict=True):
            row.append(_estimate_cell(board.get(agent, column), scale))
        if position == 0 and board.reference:
            head.append(Cell(f"against {board.reference}", "paired"))
            for agent, row in zip(board.agents, rows, strict=True):
                row.append(_difference_cell(board.get(agent, column)))
    return DataTable("Every agent on the main metrics, best first", head, rows)


def headline_columns(board: Board) -> list[Column]:
    """The main metrics, with MAP once: one-shot MAP stands among all metrics."""
    return [column for column in board.columns if column[1:] != ("oneshot", "map")]


def all_metrics_table(board: Board, leg: str, setting: str, caption: str) -> DataTable:
    """Every metric of one leg and setting."""
    columns = [c for c in board.every_column if (c.leg, c.setting) == (leg, setting)]
    ranked = [agent for agent in board.agents if any(board.get(agent, column) for column in columns)]
    rows = [
        [_agent_cell(board, agent), *(_estimate_cell(board.get(agent, column), None) for column in columns)]
        for agent in ranked
    ]
    return DataTable(caption, [Cell("Agent"), *(_heading(board, column, column.metric) for column in columns)], rows)


def ranks_table(board: Board) -> DataTable:
    """The place that each leg gives each agent, among the agents that the leg knows."""
    columns = board.main_columns()
    places = {c: {e.agent: place for place, e in enumerate(board.column(c), start=1)} for c in columns}
    rows = []
    for agent in board.agents:
        row = [_agent_cell(board, agent)]
        for column in columns:
            place = places[column].get(agent)
            of = f"of {len(places[column])}"
            row.append(Cell(f"{place}.", of, place, numeric=True) if place else _missing())
        rows.append(row)
    return DataTable("The place of each agent by each leg", [Cell("Agent"), *(Cell(c.label) for c in columns)], rows)


def plain_table(caption: str, table: pa.Table, head: Mapping[str, str] | None = None, note: str = "") -> DataTable:
    """Any table as it is, its columns named by ``head`` (all columns, in its order, or those of the table)."""
    columns = dict(head or {name: name for name in table.column_names})
    rows = [[_plain_cell(row[name]) for name in columns] for row in table.to_pylist()]
    return DataTable(caption, [Cell(title) for title in columns.values()], rows, note)


def number_cell(value: float | None, note: str = "", places: int | None = None) -> Cell:
    """A number that sorts as one; a dash, without the note, where there is none."""
    if value is None or not isfinite(value):
        return _missing()
    return Cell(number(value, places), note, float(value), numeric=True)


def interval_cell(
    value: float | None,
    low: float | None,
    high: float | None,
    written: Callable[[float, int], str] = number,
) -> Cell:
    """A value with its interval under it, to the same digits."""
    if value is None or not isfinite(value):
        return _missing()
    places = decimals(value)
    return Cell(written(value, places), interval(low, high, places), float(value), numeric=True)


def terminal_table(leaderboard: pa.Table) -> str:
    """The leaderboard as aligned plain text: agents as rows, best first, ``*`` at the reference."""
    board = Board(leaderboard)
    if not board.agents:
        return "The leaderboard has no rows yet."
    columns = headline_columns(board)
    lines = [["agent", *(column.label for column in columns)]]
    for agent in board.agents:
        mark = " *" if agent == board.reference else ""
        lines.append([agent + mark, *(_plus_minus(board.get(agent, column)) for column in columns)])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    first, rest = widths[0], widths[1:]
    text = [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, rest, strict=True))])
        for name, *cells in lines
    ]
    foot = "± is half the 95 % interval, resampled over users; - means that the leg does not know the agent."
    legend = [f"* the reference of the differences: {board.reference}."] if board.reference else []
    return "\n".join([*text, "", foot, *legend])


def _plus_minus(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    places = decimals(estimate.value)
    text = f"{estimate.value:.{places}f}"
    return f"{text} ± {(estimate.interval[1] - estimate.interval[0]) / 2:.{places}f}" if estimate.interval else text


def _agent_cell(board: Board, agent: str) -> Cell:
    return Cell(agent, role(agent, board.reference))


def _heading(board: Board, column: Column, title: str) -> Cell:
    """The title with the n behind the column: sessions, users or rows a seed."""
    sizes = sorted({estimate.n for estimate in board.column(column)})
    return Cell(title, f"n = {number(sizes[0])}" if len(sizes) == 1 else f"n = {number(sizes[0])}–{number(sizes[-1])}")


def _estimate_cell(estimate: Estimate | None, scale: tuple[float, float] | None) -> Cell:
    if estimate is None:
        return _missing()
    bar = None
    if scale and estimate.interval:
        low, width = scale
        at_low, at_value, at_high = (
            round(100 * (end - low) / width, 2) for end in (estimate.interval[0], estimate.value, estimate.interval[1])
        )
        bar = (at_low, at_value, at_high)
    return replace(interval_cell(estimate.value, estimate.low, estimate.high), bar=bar)


def _difference_cell(estimate: Estimate | None) -> Cell:
    if estimate is None or estimate.difference is None:
        return _missing()
    cell = interval_cell(estimate.difference, estimate.difference_low, estimate.difference_high, signed)
    return replace(cell, note=f"{cell.note} {p_value(estimate.p_value)}".strip())


def _scale(estimates: Sequence[Estimate]) -> tuple[float, float] | None:
    """Where the bars of a column start, and how wide its range is."""
    ends = [end for estimate in estimates if estimate.interval for end in (*estimate.interval, estimate.value)]
    if not ends or max(ends) == min(ends):
        return None
    return min(ends), max(ends) - min(ends)


def _plain_cell(value: Any) -> Cell:
    if value is None:
        return _missing(numeric=False)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, (int, float)):
        return Cell(number(value), sort=float(value), numeric=True)
    if isinstance(value, datetime):
        return Cell(f"{value:%Y-%m-%d %H:%M}")
    return Cell(str(value))


def _missing(numeric: bool = True) -> Cell:
    return Cell(MISSING, numeric=numeric)
