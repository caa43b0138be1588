"""Two runs in one page: what changed between them, and which figures moved by more than chance."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.report.board import LEGS, Board, names
from pipeline.report.changes import Change, changed_figures, same_log
from pipeline.report.charts import Dot, whiskers
from pipeline.report.claims import question_of
from pipeline.report.format import MISSING, p_value, signed
from pipeline.report.origins import SettingChange, changed_files, changed_modules, changed_origins, changed_settings
from pipeline.report.page import Chart, render
from pipeline.report.runs import Run
from pipeline.report.tables import Cell, DataTable, interval_cell, number_cell
from pipeline.results import query, read
from pipeline.storage import write_atomically

SHOWN_PARTS = 6  # of those that a changed setting made


def write_comparison(before: Run, after: Run, target: Path, resamples: int = 10_000) -> None:
    """Write the page that compares two runs to ``target``."""
    changes = changed_figures(before, after, resamples)
    html = render(
        "compare.html",
        kicker="Hindsight comparison",
        name=f"{before.name} → {after.name}",
        description="",
        headline=headline(changes),
        movements=[_sentence(change) for change in changes if change.significant],
        paired=same_log(before, after),
        figures=_figures(changes),
        charts=_charts(changes),
        only=_only(before, after),
        verdicts=_verdicts(before, after),
        origins=_origins(before, after),
        files=[f"{Path(path).name}: {what}" for path, what in changed_files(before, after)],
        modules=changed_modules(before, after),
        settings=_settings(changed_settings(before, after)),
        recipes=bool(before.recipes and after.recipes),
    )
    write_atomically(target, html)


def headline(changes: Sequence[Change]) -> str:
    moved = sum(change.significant for change in changes)
    if not changes:
        return "The runs have no figure in common"
    if all(change.identical for change in changes):
        return f"All {len(changes)} figures are the same"
    return f"{moved or 'None'} of {len(changes)} figures changed significantly"


def _sentence(change: Change) -> str:
    difference = interval_cell(change.delta.mean, change.delta.low, change.delta.high, signed)
    return (f"{change.agent}, {change.column.label}: {difference.text} {difference.note}, "
            f"{p_value(change.p_adjusted)}.")  # fmt: skip


def _figures(changes: Sequence[Change]) -> DataTable:
    head = ("Agent", "Figure", "Before", "After", "Difference", "Compared on", "Significance", "Changed")
    rows = [
        [
            Cell(change.agent),
            Cell(change.column.label),
            interval_cell(change.before.value, change.before.low, change.before.high),
            interval_cell(change.after.value, change.after.low, change.after.high),
            interval_cell(change.delta.mean, change.delta.low, change.delta.high, signed),
            number_cell(change.delta.n, "in both") if change.delta.n else Cell("the two intervals", "not paired"),
            Cell(p_value(change.p_adjusted), f"{p_value(change.delta.p_value)} alone", change.p_adjusted, numeric=True),
            Cell("same" if change.identical else "yes" if change.significant else "not shown"),
        ]
        for change in changes
    ]
    return DataTable("Every main figure that both runs have", [Cell(title) for title in head], rows)


def _charts(changes: Sequence[Change]) -> list[Chart]:
    charts = []
    for leg, name in LEGS.items():
        series: dict[str, list[Dot]] = {}
        for change in changes:
            if change.column.leg == leg and not change.identical:
                dot = Dot(change.agent, change.delta.mean, (change.delta.low, change.delta.high))
                series.setdefault(change.column.label, []).append(dot)
        if series:
            figure = whiskers(series, "after − before", None)
            charts.append(Chart(figure, f"{name}: differences of {names(series)} with 95 % intervals", name))
    return charts


def _only(before: Run, after: Run) -> list[str]:
    agents = [set(Board(read(run.results, "leaderboard")).agents) for run in (before, after)]
    pairs = ((before, agents[0] - agents[1]), (after, agents[1] - agents[0]))
    return [f"Only in {run.name}: {names(sorted(found))}." for run, found in pairs if found]


def _verdicts(before: Run, after: Run) -> DataTable | None:
    """What each run answers to the questions that one of them asks."""
    published = [query(run.results, "verdicts").to_pylist() for run in (before, after)]
    answers = [{(row["verdict"], row["subject"] or ""): row["headline"] for row in rows} for rows in published]
    rows = [[Cell(question_of(key[0])), Cell(key[1]), *(Cell(found.get(key, MISSING)) for found in answers)]
            for key in dict.fromkeys([*answers[1], *answers[0]])]  # fmt: skip
    head = ("Question", "Of", "Before", "After")
    return DataTable("What each run may say", [Cell(title) for title in head], rows) if rows else None


def _origins(before: Run, after: Run) -> DataTable:
    rows = [
        [Cell(what), Cell(first or MISSING), Cell(second or MISSING), Cell("same" if first == second else "changed")]
        for what, first, second in changed_origins(before, after)
    ]
    head = ("What", "Before", "After", "")
    return DataTable("What the figures come from", [Cell(title) for title in head], rows)


def _settings(changes: Sequence[SettingChange]) -> DataTable | None:
    parts: dict[tuple[str, str, str], list[str]] = {}
    for change in changes:
        parts.setdefault(change[:3], []).append(change.part)
    rows = [[Cell(name), Cell(first or MISSING), Cell(second or MISSING), Cell(names(made, SHOWN_PARTS))]
            for (name, first, second), made in parts.items()]  # fmt: skip
    head = ("Setting", "Before", "After", "Of")
    return DataTable("Settings that differ", [Cell(title) for title in head], rows) if rows else None
