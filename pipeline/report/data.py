"""The data report as people read it: the same figures as parts of an HTML page and as pictures for Dagster's metadata.

``data_topics`` says once what is shown; a page draws its bars with plotly, the metadata with matplotlib.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data_report import Figures
from pipeline.report.board import names
from pipeline.report.charts import stacked_bars
from pipeline.report.format import MISSING, number, percent
from pipeline.report.page import Chart, Part, Section, render
from pipeline.report.tables import Cell, DataTable, plain_table
from pipeline.storage import write_atomically

CONSTRUCTED = """\
This log tells what users acted on, not what they were shown. The shown set of a session is therefore constructed: the
items that the user acted on in it, in the order of time, with those below the threshold of positive feedback as skips.
A ranker is judged on telling liked items from others that the same user chose to rate, which is not the task of a shop;
nothing here says how users would react to items that they never met."""
LABELS = {
    "first_event": "First event (UTC)",
    "last_event": "Last event (UTC)",
    "raw_files": "Raw files",
    "rows_in": "Rows read",
    "unpacked": "Further facts in them",
    "rejects": "Refused",
    "left_out": "Of these, left out by choice",
    "p50": "Median",
    "positives": "Positive impressions",
    "positives_share": "Positive, of all impressions",
    "impressions_with_propensity_share": "Impressions with a propensity",
    "shown_set_is_constructed": "The shown set is constructed",
    "pairs_shown_share": "Pairs of a user and an item that were shown, of all",
    "pairs_positive_share": "Pairs with a positive, of all",
    "sessions_without_positive_share": "Sessions without a positive",
    "sessions_of_positives_only_share": "Sessions of positives only",
    "sessions_cut_by_length_share": "Sessions cut by the length cap",
    "top_1_percent_share": "Top 1 % of the items",
    "top_10_percent_share": "Top 10 % of the items",
    "gini": "Gini coefficient",
    "cut_off": "The last fifth of the sessions starts at (UTC)",
    "cold_users_share": "Its users without an earlier session",
    "cold_sessions_share": "Its sessions by such users",
    "cold_items_share": "Its items that were not shown before",
    "cold_impressions_share": "Its impressions of such items",
}
INGEST = {"path": "Raw file", "rows_in": "Rows read", "unpacked": "Further facts in them", "events": "Events kept",
          "duplicates": "Duplicates", "rejects": "Refused", "left_out": "Of these, by choice"}  # fmt: skip
SHARES = ("session_id", "request_id", "position", "propensity", "value")  # names of the coverage, which are shares too
DRAWN_SPREADS = {
    "impressions_of_a_session": ("items shown", "sessions"),
    "sessions_of_a_user": ("sessions", "users"),
    "impressions_of_an_item": ("times shown", "items"),
}
SHOWN_FILES = 50

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Bars:
    """A bar chart before anything draws it: stacked values by series and bucket, all series with the same buckets."""

    title: str
    series: Mapping[str, Mapping[str, float]]
    x_axis: str
    y_axis: str
    are_shares: bool = False


@dataclass(frozen=True)
class Topic:
    title: str
    text: str
    bars: Sequence[Bars]
    tables: Sequence[DataTable]
    folded: DataTable | None = None  # a long one, which a page shows when asked


def data_topics(report: pa.Table, counts: pa.Table) -> list[Topic]:
    """What the tables ``data_report`` and ``ingest_counts`` have to say."""
    figures = Figures(report)
    return [_arrived(figures, counts), _over_time(figures), _sessions(figures), _popularity(figures)]


def data_parts(report: pa.Table, counts: pa.Table) -> list[Part]:
    """The topics as parts of an HTML page."""
    return [
        Part(topic.title, topic.text, [_chart(bars) for bars in topic.bars], topic.tables, topic.folded)
        for topic in data_topics(report, counts)
    ]


def write_data_page(
    report: pa.Table, counts: pa.Table, target: Path, name: str, description: str = "", notes: Sequence[Section] = ()
) -> None:
    """Write the data report as a page of its own, for a log that gets no further than this as well."""
    parts = data_parts(report, counts)
    html = render("data.html", kicker="Hindsight data report", name=name, description=description, notes=notes,
                  parts=parts)  # fmt: skip
    write_atomically(target, html)


def file_names(table: pa.Table) -> pa.Table:
    """Paths without their folders, which may name a person."""
    short = [Path(path).name for path in table["path"].to_pylist()]
    return table.set_column(table.column_names.index("path"), "path", pa.array(short, pa.string()))


def _arrived(figures: Figures, counts: pa.Table) -> Topic:
    worst = counts.sort_by([("rejects", "descending"), ("path", "ascending")]).slice(0, SHOWN_FILES)
    left = len(counts) - len(worst)
    note = f"The {SHOWN_FILES} files with the most refused rows; {left:,} more are in the results." if left else ""
    return Topic(
        "What came in",
        "The rows read, with the further facts that a row may hold, are events, duplicates or refused: none is lost.",
        [],
        [
            _listed("The log in figures", figures.rows("overview")),
            _listed("What became of the raw rows", figures.rows("ingest")),
            _crossed("Refused rows by reason", "Reason", figures.rows("rejects")),
            _crossed("Events that fill an optional column, of all", "Type of event", figures.rows("coverage")),
        ],
        plain_table("What became of the rows of each raw file", file_names(worst), INGEST, note),
    )


def _over_time(figures: Figures) -> Topic:
    feedback = _complete(figures.series("feedback_by_period"))
    totals = {kind: sum(counts.values()) for kind, counts in feedback.items()}
    shown = {period: sum(counts[period] for counts in feedback.values()) for period in _buckets(feedback)}
    rates = {
        kind: {period: n / shown[period] for period, n in counts.items()}
        for kind, counts in feedback.items()
        if kind != "skip"
    }
    charts = (
        ("Events by type", figures.series("events_by_period"), "events"),
        ("Positives by kind", rates, "share of impressions"),
        ("Sessions with and without a positive", figures.series("sessions_by_period"), "sessions"),
        ("New and known users", figures.series("users_by_period"), "users with events"),
        ("New and known items", figures.series("items_by_period"), "items with events"),
    )
    bars = [
        Bars(title, {_label(name): found for name, found in _complete(series).items()}, "period", axis, series is rates)
        for title, series, axis in charts
        if series
    ]
    rows = [
        [Cell(_label(kind)), _cell("impressions", n), _cell("share", n / sum(totals.values()))]
        for kind, n in totals.items()
    ]
    return Topic(
        "Over time",
        "Events count at their own time, impressions when they were shown, sessions when they start. A user or an item "
        "is new in the first period in which it has an event.",
        bars,
        [DataTable("What came of the impressions", [Cell("At best"), Cell("Impressions"), Cell("Of all")], rows)],
    )


def _sessions(figures: Figures) -> Topic:
    histograms = figures.series("histogram")
    bars = [
        Bars(_label(name), {y_axis: histograms[name]}, x_axis, y_axis)
        for name, (x_axis, y_axis) in DRAWN_SPREADS.items()
        if name in histograms
    ]
    return Topic(
        "Sessions, users and items",
        "How unlike each other they are. Minutes are whole ones, and the ranges under the bars double in width.",
        bars,
        [
            _crossed(
                "How lengths are spread: at P90, nine of ten are as long or shorter",
                "Measure",
                figures.rows("spread"),
                "name",
                "bucket",
            )
        ],
    )


def _popularity(figures: Figures) -> Topic:
    return Topic(
        "Popularity and cold start",
        "Popularity is among the items that were shown; the Gini coefficient is 0 where all have the same and near 1 "
        "where one has everything. Cold is what the last fifth of the sessions meets for the first time.",
        [],
        [
            _crossed("What the most popular items take", "Of the", figures.rows("popularity")),
            _listed("Cold users and items", figures.rows("cold_start")),
        ],
    )


def _chart(bars: Bars) -> Chart:
    figure = stacked_bars(bars.series, bars.x_axis, bars.y_axis, bars.are_shares)
    return Chart(figure, f"{bars.title}: {bars.y_axis} by {bars.x_axis}, {names(bars.series)}", bars.title)


def _complete(series: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Series over the same periods: 0 where one has nothing."""
    periods = _buckets(series)
    return {name: {period: found.get(period, 0.0) for period in periods} for name, found in series.items()}


def _buckets(series: Mapping[str, Mapping[str, float]]) -> list[str]:
    return sorted({bucket for found in series.values() for bucket in found})


def _listed(caption: str, rows: Sequence[Row]) -> DataTable:
    """One row a figure; an instant stands in its bucket."""
    cells = [[Cell(_label(row["name"])), _cell(row["name"], row["value"], row["bucket"])] for row in rows]
    return DataTable(caption, [Cell("Figure"), Cell("Value")], cells)


def _crossed(caption: str, first: str, rows: Sequence[Row], down: str = "bucket", across: str = "name") -> DataTable:
    """One row a value of ``down``, one column a value of ``across``, both in the order of appearance."""
    columns = list(dict.fromkeys(row[across] for row in rows))
    found: dict[str, dict[str, Cell]] = {}
    for row in rows:
        found.setdefault(row[down], {})[row[across]] = _cell(row["name"], row["value"])
    none = Cell(MISSING, numeric=True)
    cells = [[Cell(_label(name)), *(row.get(column, none) for column in columns)] for name, row in found.items()]
    return DataTable(caption, [Cell(first), *(Cell(_label(column)) for column in columns)], cells)


def _cell(name: str, value: float | None, instant: str | None = None) -> Cell:
    if value is None:
        return Cell(instant or MISSING, numeric=True)
    if name in SHARES or name.endswith("share"):
        return Cell(percent(value), sort=value, numeric=True)
    if name == "shown_set_is_constructed":
        return Cell("yes" if value else "no", sort=value, numeric=True)
    return Cell(number(int(value) if value.is_integer() else value), sort=value, numeric=True)


def _label(name: str) -> str:
    """A name as people read it; a sentence, such as a reason, stays as it is."""
    if " " in name:
        return name
    return LABELS.get(name) or name[:1].upper() + name[1:].replace("_", " ")
