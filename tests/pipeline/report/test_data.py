import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.report.data import SHOWN_FILES, Bars, data_topics, write_data_page
from pipeline.report.page import Section
from pipeline.schemas import empty
from tests.pipeline.report.test_html import Page
from tests.published import HOSTILE, data_report, table

REPORT = table("data_report", data_report())
COUNTS = table(
    "ingest_counts",
    [
        {
            "path": "/home/ann/a.csv",
            "rows_in": 123,
            "unpacked": 7,
            "events": 100,
            "duplicates": 20,
            "rejects": 10,
            "left_out": 4,
        }
    ],
)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("page") / "data.html"
    write_data_page(
        REPORT, COUNTS, target, "demo", f"A shop {HOSTILE}", [Section("Constructed", "Not what was shown.")]
    )
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def drawn(report: pa.Table = REPORT) -> dict[str, Bars]:
    return {bars.title: bars for topic in data_topics(report, COUNTS) for bars in topic.bars}


def shown(report: pa.Table = REPORT, counts: pa.Table = COUNTS) -> dict[str, list[list[str]]]:
    """The texts of every table by its caption, the head first."""
    tables = [found for topic in data_topics(report, counts) for found in (*topic.tables, topic.folded) if found]
    return {found.caption: [[cell.text for cell in row] for row in (found.head, *found.rows)] for found in tables}


def test_the_page_asks_the_network_for_nothing_and_lets_only_its_own_scripts_run(html: str, page: Page) -> None:
    for tag in ("link", "img", "iframe", "object", "embed", "base", "form"):
        assert page.all(tag) == []
    assert len([text for kind, text in page.scripts if kind is None]) == 2
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'")
    assert "unsafe" not in str(policy).split("script-src")[1]


def test_names_from_the_data_are_escaped_and_folders_are_cut_from_paths(html: str, page: Page) -> None:
    assert HOSTILE not in html
    assert f"cannot read … as {HOSTILE}" in page.text
    assert "a.csv" in page.text
    assert "/home/ann" not in html


def test_the_page_begins_with_the_notes_and_its_links_lead_somewhere(page: Page) -> None:
    assert page.text.index("Not what was shown.") < page.text.index("The log in figures")
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {str(attributes["href"])[1:] for attributes in page.all("a")} <= ids


def test_every_chart_is_titled_and_described(page: Page) -> None:
    described = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    assert len(page.all("figcaption")) == len(described) == len(drawn()) == 7
    assert described[0] == "Events by type: events by period, Impression and Click"


def test_figures_read_as_people_write_them() -> None:
    assert shown()["The log in figures"] == [
        ["Figure", "Value"],
        ["First event (UTC)", "2024-01-01 00:00:00"],
        ["Events", "144"],
        ["Positive, of all impressions", "20.0 %"],
        ["The shown set is constructed", "no"],
    ]
    assert shown()["Events that fill an optional column, of all"] == [
        ["Type of event", "Session id", "Propensity"],
        ["Impression", "100.0 %", "75.0 %"],
        ["Click", "50.0 %", "0.0 %"],
    ]
    assert shown()["What became of the rows of each raw file"][1] == ["a.csv", "123", "7", "100", "20", "10", "4"]


def test_what_was_not_measured_is_a_dash() -> None:
    by_caption = shown()
    spread = next(rows for caption, rows in by_caption.items() if caption.startswith("How lengths are spread"))
    assert spread == [
        ["Measure", "Mean", "Median", "Max"],
        ["Impressions of a session", "2.50", "2", "9"],
        ["Sessions of a user", "1.50", "–", "–"],
    ]
    assert by_caption["What the most popular items take"][2] == ["Positive impressions", "–", "0.500"]


def test_positives_are_drawn_as_shares_of_the_impressions_of_their_period() -> None:
    bars = drawn()["Positives by kind"]
    assert bars.are_shares
    assert bars.series == {"Click": {"2024-01-01": 0.2, "2024-01-02": 0.2}}


def test_series_of_a_chart_have_the_same_periods_in_order() -> None:
    rows = [
        {"section": "events_by_period", "name": name, "bucket": day, "value": 1.0, "place": place}
        for place, (name, day) in enumerate([("a", "2024-01-01"), ("a", "2024-01-03"), ("b", "2024-01-02")])
    ]
    series = drawn(table("data_report", rows))["Events by type"].series
    days = ["2024-01-01", "2024-01-02", "2024-01-03"]
    assert {name: list(values.items()) for name, values in series.items()} == {
        "A": list(zip(days, (1, 0, 1), strict=True)),
        "B": list(zip(days, (0, 1, 0), strict=True)),
    }


def test_of_many_files_those_with_the_most_refused_rows_are_shown() -> None:
    counts = table("ingest_counts", [{"path": f"{n:03}.csv", "rows_in": n, "rejects": n % 100} for n in range(160)])
    (topic, *_) = data_topics(REPORT, counts)
    assert topic.folded is not None
    assert len(topic.folded.rows) == SHOWN_FILES
    assert [row[0].text for row in topic.folded.rows[:2]] == ["099.csv", "098.csv"]
    assert f"{160 - SHOWN_FILES} more" in topic.folded.note


def test_a_log_without_anything_gives_a_page_without_charts(tmp_path: Path) -> None:
    write_data_page(empty("data_report"), empty("ingest_counts"), tmp_path / "data.html", "none")
    page = Page((tmp_path / "data.html").read_text(encoding="utf-8"))
    assert [json.loads(text) for kind, text in page.scripts if kind == "application/json"] == []
    assert page.text.count("No rows.") == len(page.all("table"))
