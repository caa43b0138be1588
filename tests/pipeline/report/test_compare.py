from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.report.compare import write_comparison
from pipeline.report.runs import Run
from pipeline.results import build_results
from tests.pipeline.report.builders import moved, without
from tests.pipeline.report.test_html import Page, figures
from tests.published import HOSTILE, demo_tables, publish


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    earlier = demo_tables()
    earlier["leaderboard"] = without(earlier["leaderboard"], "logging")
    for name, tables in (("before", earlier), ("after", moved(HOSTILE, 0.5))):
        build_results(publish(folder / f"{name}.files", tables), folder / name / "results.duckdb")
    return folder


def compared(folder: Path, first: str, second: str) -> Page:
    runs = [Run(name, folder / name / "results.duckdb") for name in (first, second)]
    write_comparison(runs[0], runs[1], folder / "compare.html", resamples=1_000)
    return Page((folder / "compare.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return compared(folder, "before", "after")


def test_the_page_says_first_what_moved_and_by_how_much(page: Page) -> None:
    assert "2 of 22 figures changed significantly" in page.text
    assert f"{HOSTILE}, True value: +0.500 [0.500, 0.500]" in page.text


def test_the_page_says_what_the_figures_come_from_and_who_is_new(page: Page) -> None:
    assert "beef" * 4 in page.text
    assert "c0de" * 4 in page.text
    assert "Only in after: logging." in page.text
    assert "The same in both runs." in page.text
    assert "no longer kept for both runs" in page.text


def test_only_legs_with_a_change_are_drawn(page: Page) -> None:
    (figure,) = figures(page)
    assert [trace["name"] for trace in figure["data"]] == ["True value", "Return in attention"]
    assert figure["data"][0]["x"] == pytest.approx([0.5])


def test_a_page_of_two_equal_runs_says_so(folder: Path) -> None:
    page = compared(folder, "before", "before")
    assert "All 22 figures are the same" in page.text
    assert figures(page) == []


def test_the_command_writes_the_page_beside_the_later_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *(str(folder / name / "results.duckdb") for name in ("before", "after"))]) == 0
    written = folder / "after" / "compare.html"
    assert capsys.readouterr().out.strip() == str(written)
    assert "before → after" in written.read_text(encoding="utf-8")


def test_the_command_refuses_what_it_cannot_find(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "nowhere/results.duckdb"]) == 2
    assert "There are no results at nowhere/results.duckdb" in capsys.readouterr().err
