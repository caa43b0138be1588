"""What people see: the pages in headless Chromium, with the network cut off."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.report.compare import write_comparison
from pipeline.report.data import write_data_page
from pipeline.report.html import write_report
from pipeline.report.page import Section
from pipeline.report.runs import Run
from pipeline.results import build_results
from tests.browser import Browser, Page
from tests.pipeline.report.builders import moved
from tests.published import HOSTILE, demo_tables, publish

WORSE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
VALUES = [9.0, 100.0, None, 25.0, -3.0, 7.5, None, 1000.0, 0.5, 11.0, 12.0, 13.0, 14.0, 15.0]
NAMES = [f"item {n}" for n in range(len(VALUES) - 1)] + [WORSE]
LONG = Section("A long table", "By hand.", pa.table({"item": NAMES, "value": VALUES}))
TABLE = "[...document.querySelectorAll('table')].find((t) => t.caption.textContent === 'A long table')"
OPEN_ALL = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
LOWEST_CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let worst = [21, ""];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    if (!text || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, `${element.tagName}.${element.className}: ${text.slice(0, 40)}`];
  }
  return worst;
})()"""


def hostile(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """With an agent whose name is an attack on the page."""

    def worse(column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.replace_substring(column, HOSTILE, WORSE) if pa.types.is_string(column.type) else column

    return {
        name: pa.table([worse(column) for column in table.columns], schema=table.schema)
        for name, table in tables.items()
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    tables = hostile(demo_tables())
    results, later = folder / "results.duckdb", folder / "later.duckdb"
    build_results(publish(folder / "data", tables), results)
    build_results(publish(folder / "later", hostile(moved(HOSTILE, 0.5))), later)
    paths = {name: folder / f"{name}.html" for name in ("report", "compare", "data")}
    write_report(results, paths["report"], "demo", WORSE, [LONG])
    write_comparison(Run("before", results), Run(WORSE, later), paths["compare"], resamples=100)
    write_data_page(tables["data_report"], tables["ingest_counts"], paths["data"], "demo", WORSE)
    return paths


@pytest.fixture(scope="module", params=["report", "compare", "data"])
def page(request: pytest.FixtureRequest, pages: dict[str, Path], browser: Browser) -> Page:
    return browser.open(pages[request.param])


@pytest.fixture(scope="module")
def report(pages: dict[str, Path], browser: Browser) -> Page:
    return browser.open(pages["report"])


def column(page: Page, place: int) -> Any:
    """The texts of a column of the long table, as shown."""
    rows = f"[...{TABLE}.tBodies[0].rows].filter((row) => !row.hidden)"
    return page.run(f"{rows}.map((row) => row.cells[{place}].textContent.trim())")


def test_a_page_opens_offline_without_errors_and_asks_for_nothing(page: Page) -> None:
    page.run(OPEN_ALL)
    page.settle()
    assert page.problems == []


def test_a_hostile_name_stays_text(page: Page) -> None:
    assert WORSE in page.run("document.body.innerText")
    assert page.run("document.querySelectorAll('img').length") == 0
    executable = "document.querySelectorAll('script:not([type])').length"
    assert page.run(executable) == 2


def test_a_hostile_name_stays_text_in_a_chart(report: Page) -> None:
    labels = report.run("[...document.querySelectorAll('.chart svg text')].map((t) => t.textContent)")
    assert WORSE in labels


def test_every_visible_chart_is_drawn_and_every_chart_is_told_in_words(page: Page) -> None:
    charts = page.run("""[...document.querySelectorAll('.chart')].map((f) => [
        Boolean(f.querySelector('svg')), Boolean(f.closest('details')), f.querySelector('[role=img]').ariaLabel])""")
    assert charts
    assert all(drawn or folded for drawn, folded, _ in charts)
    assert all(words for _, _, words in charts)


def test_a_chart_in_a_closed_part_is_drawn_when_it_is_opened(report: Page) -> None:
    folded = "document.querySelector('details .chart')"
    assert not report.run(f"Boolean({folded}.querySelector('svg'))")
    report.run(f"{folded}.closest('details').open = true")
    assert report.becomes(f"{folded}.querySelector('svg')?.getBoundingClientRect().width > 300")


def test_every_table_has_a_caption_and_headings_are_in_order(page: Page) -> None:
    assert page.run("[...document.querySelectorAll('table')].every((t) => t.caption.textContent.trim())")
    levels = page.run("[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_press_on_a_heading_sorts_numbers_by_size_with_missing_ones_last(report: Page) -> None:
    heading = f"{TABLE}.tHead.rows[0].cells[1]"
    known = sorted((value for value in VALUES if value is not None), reverse=True)
    for order, wanted in (("descending", known), ("ascending", known[::-1])):
        report.run(f"{heading}.querySelector('button').click()")
        assert report.run(f"{heading}.ariaSort") == order
        shown = column(report, 1)
        assert [float(text.replace(",", "").replace("−", "-")) for text in shown[:-2]] == wanted
        assert shown[-2:] == ["–", "–"]


def test_headings_sort_by_keyboard_too_and_words_by_the_alphabet(report: Page) -> None:
    report.run(f"{TABLE}.tHead.rows[0].cells[0].querySelector('button').focus()")
    report.press("Enter", 13, "\r")
    assert column(report, 0) == sorted(NAMES, key=lambda name: (name != WORSE, name))


def test_a_long_table_is_filtered_by_what_is_typed(report: Page) -> None:
    box = f"{TABLE}.closest('.scroll').previousElementSibling.querySelector('input')"
    assert report.run(f"{box}.ariaLabel") == "Filter rows: A long table"
    report.run(f"{box}.focus()")
    report.type("ITEM 1")
    assert set(column(report, 0)) == {"item 1", "item 10", "item 11", "item 12"}
    assert report.run(f"{box}.nextElementSibling.textContent") == "4 of 14 rows"
    report.run(f"{box}.select()")
    report.press("Backspace", 8)
    assert len(column(report, 0)) == len(NAMES)
    assert report.run(f"{box}.nextElementSibling.textContent") == ""


def test_short_tables_have_no_filter(report: Page) -> None:
    tables = """[...document.querySelectorAll('table')].map((t) => [
        t.tBodies[0].rows.length, t.closest('.scroll').previousElementSibling?.className === 'filter'])"""
    lengths = report.run(tables)
    assert {filtered for rows, filtered in lengths if rows <= 12} == {False}
    assert {filtered for rows, filtered in lengths if rows > 12} == {True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme: str, page: Page) -> None:
    page.emulate("screen", prefers_color_scheme=scheme)
    page.settle()
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")
    ratio, where = page.run(LOWEST_CONTRAST)
    assert ratio >= 4.5, where


def test_a_dark_screen_prints_black_on_white(report: Page) -> None:
    report.emulate("print", prefers_color_scheme="dark")
    style = "getComputedStyle(document.body)"
    assert report.run(f"[{style}.color, {style}.backgroundColor]") == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert report.becomes(f"{LOWEST_CONTRAST}[0] >= 4.5")


def test_charts_fit_the_paper_while_it_is_printed_and_the_screen_again_afterwards(report: Page) -> None:
    widest = "Math.max(...[...document.querySelectorAll('.chart svg')].map((svg) => svg.getBoundingClientRect().width))"
    report.emulate("screen")
    assert report.becomes(f"{widest} > 1000")
    report.emulate("print")
    assert report.becomes(f"{widest} <= 680")
    report.emulate("screen")
    assert report.becomes(f"{widest} > 1000")


def test_nothing_overflows_a_phone(page: Page) -> None:
    page.resize(390, 844)
    page.run(OPEN_ALL)
    assert page.run("innerWidth") == 390
    assert page.becomes("document.documentElement.scrollWidth <= 390")
