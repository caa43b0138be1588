import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import StorageError
from pipeline.report.html import write_report
from pipeline.report.page import Section
from pipeline.results import build_results
from tests.published import HOSTILE, RAW_USER, demo_tables, publish, table

DESCRIPTION = f"A shop {HOSTILE}"
SECTION = Section("Does it need RL?", f"Greedy & {HOSTILE}", pa.table({"share": [0.99], "of": [HOSTILE]}))


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, the text of scripts, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self._inside != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    build_results(publish(folder / "data", demo_tables()), folder / "results.duckdb")
    return folder / "results.duckdb"


@pytest.fixture(scope="module")
def html(results: Path) -> str:
    target = results.parent / "reports" / "report.html"
    write_report(results, target, "demo", DESCRIPTION, [SECTION])
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def figures(page: Page) -> list[dict[str, Any]]:
    return [json.loads(text) for kind, text in page.scripts if kind == "application/json"]


def test_the_report_is_one_file_that_asks_the_network_for_nothing(html: str, page: Page) -> None:
    for tag in ("link", "img", "iframe", "object", "embed", "base", "form"):
        assert page.all(tag) == []
    assert all("src" not in attributes for attributes in page.all("script"))
    assert all(str(attributes["href"]).startswith("#") for attributes in page.all("a"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'")


def test_only_plotly_and_the_reports_own_script_may_run(html: str, page: Page) -> None:
    running = [text for kind, text in page.scripts if kind is None]
    assert len(running) == 2
    assert html.count("plotly.js v") == 1
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", html)) == 2
    script_policy = re.search(r"script-src ([^;\"]*)", html)
    assert script_policy
    assert "unsafe" not in script_policy[1]


def test_names_from_the_data_are_escaped_everywhere(html: str, page: Page) -> None:
    assert HOSTILE not in html
    assert page.text.count(HOSTILE) >= 5
    labels = [label for figure in figures(page) for label in figure["layout"]["yaxis"].get("ticktext", [])]
    labels += [trace["name"] for figure in figures(page) for trace in figure["data"] if "name" in trace]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in labels
    assert HOSTILE not in labels


def test_user_ids_never_appear(html: str) -> None:
    assert RAW_USER not in html
    assert "user_key" not in html


def test_the_same_tables_give_the_same_bytes(html: str, tmp_path: Path) -> None:
    build_results(publish(tmp_path / "data", demo_tables()), tmp_path / "results.duckdb")
    write_report(tmp_path / "results.duckdb", tmp_path / "report.html", "demo", DESCRIPTION, [SECTION])
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "report.html", "results.duckdb"]


def test_every_table_has_a_caption_and_scoped_headings(page: Page) -> None:
    assert len(page.all("table")) == len(page.all("caption")) > 8
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row"}


def test_every_chart_is_described_in_words(page: Page) -> None:
    described = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    of_data, of_legs, of_goals, of_ope, of_user_models, of_training = 7, 3, 2, 2, 1, 2
    assert (
        len(described) == len(figures(page)) == (of_data + of_legs + of_goals + of_ope + of_user_models + of_training)
    )
    assert all(attributes["aria-label"] for attributes in described)


def test_the_legs_are_shown_with_their_agreement_and_the_missing_one_with_its_reason(page: Page) -> None:
    assert "Not supported, because page propensities leave an effective sample size under 50." in page.text
    assert "True value: 7 agents, n = 40 episodes a seed." in page.text


def test_what_may_be_said_stands_with_the_numbers_that_it_rests_on(page: Page) -> None:
    told = page.text[page.text.index("What may be said\n") : page.text.index("What may not be said, and why")]
    verdicts = demo_tables()["verdicts"].to_pylist()
    assert len(verdicts) > 3
    for row in verdicts:
        assert row["headline"] in told
        assert row["reason"] in told
    assert "looking ahead" in told
    assert "Holm-adjusted over its family" in told
    assert "Kendall τ" in page.text


def test_what_may_not_be_said_is_told_in_one_place(page: Page) -> None:
    told = page.text[page.text.index("What may not be said, and why") : page.text.index("Values by agent")]
    for reason in (
        "leave an effective sample size under 50",
        "rnn (train side) fails",
        "effective sample size … under …",
    ):
        assert reason in told


def test_the_true_value_is_drawn_with_its_intervals_and_the_reference(page: Page) -> None:
    figure = figures(page)[0]
    (trace,) = figure["data"]
    published = {
        row["agent"]: row
        for row in demo_tables()["leaderboard"].to_pylist()
        if (row["setting"], row["metric"]) == ("truth", "return")
    }  # fmt: skip
    where = trace["text"].index("goalrec_off")
    assert figure["layout"]["yaxis"]["tickvals"][where] == trace["y"][where]
    assert figure["layout"]["yaxis"]["ticktext"][where] == "goalrec_off"
    row = published["goalrec_off"]
    assert trace["x"][where] == row["value"]
    assert trace["error_x"]["array"][where] == pytest.approx(row["ci_high"] - row["value"])
    assert trace["error_x"]["arrayminus"][where] == pytest.approx(row["value"] - row["ci_low"])
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [published["popularity"]["value"]]


def test_both_modes_are_drawn_apart_on_the_line_of_their_agent(page: Page) -> None:
    figure = figures(page)[2]
    paged, oneshot = (dict(zip(trace["text"], trace["y"], strict=True)) for trace in figure["data"])
    assert [trace["name"] for trace in figure["data"]] == ["NDCG@20, paged", "NDCG@20, one-shot"]
    for agent, line in zip(figure["layout"]["yaxis"]["ticktext"], figure["layout"]["yaxis"]["tickvals"], strict=True):
        assert (paged[agent] + oneshot[agent]) / 2 == pytest.approx(line)
        assert paged[agent] - oneshot[agent] == pytest.approx(0.3)


def test_the_data_are_accounted_for(page: Page) -> None:
    for text in ("cannot read … as", "Dropped: they cross the end", "1,400", "123", "2024-01-23 00:00", "12.5 %"):
        assert text in page.text


def test_provenance_names_data_code_settings_commit_and_versions(page: Page) -> None:
    for text in ("d4ta" * 4, "c0de" * 4, "c0nf" * 4, "0123abcd", "python 3.11, torch 2.13"):
        assert text in page.text


def test_a_section_of_a_caller_stands_in_the_report(page: Page) -> None:
    assert "Does it need RL?" in page.text
    assert "0.990" in page.text


def test_paths_of_raw_files_lose_their_folders(tmp_path: Path) -> None:
    path = "/home/somebody/logs/a.csv"
    counted = {"path": path, "rows_in": 1, "events": 1, "duplicates": 0, "rejects": 0}
    build_results(publish(tmp_path, {"ingest_counts": table("ingest_counts", [counted])}), tmp_path / "results.duckdb")
    write_report(tmp_path / "results.duckdb", tmp_path / "report.html", "mine")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a.csv" in html
    assert "somebody" not in html


def test_empty_results_give_a_report_that_claims_nothing(tmp_path: Path) -> None:
    build_results({}, tmp_path / "results.duckdb")
    write_report(tmp_path / "results.duckdb", tmp_path / "report.html", "empty")
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "No verdict: controls not run" in text
    assert "Nothing was measured yet" in text
    assert text.count("Not supported, because it was not run and no reason was published") == 3
    for absent in (
        "How far the legs agree was not computed",
        "No verdicts were published",
        "No comparisons were published",
        "Nothing was decoded",
        "No goals were swept",
        "No off-policy estimates were published",
        "No user model was measured",
        "No training was logged",
        "No agent was tuned",
        "there is nothing to slice",
    ):
        assert absent in text


def test_without_results_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run make demo"):
        write_report(tmp_path / "results.duckdb", tmp_path / "report.html", "demo")
