from pathlib import Path
from typing import Any

import pytest

from pipeline.checks import run_check
from pipeline.experiment import Rewards, Sessions
from pipeline.sessions import build_sessions
from pipeline.warehouse import connect
from tests.pipeline.logs import at, busy_log, days, read_rows, under, write_events, write_rows

PAGE = {"rows": 2, "cols": 2}


def check(folder: Path, name: str, params: dict[str, Any] | None = None, **tables: list[dict[str, Any]]) -> list[str]:
    inputs = {table: [write_rows(folder / f"{table}.parquet", table, rows)] for table, rows in tables.items()}
    with connect(inputs) as con:
        if "items" in tables:
            con.execute("create table session_splits as select 1::bigint as session_id, 'train' as split")
        return run_check(con, name, params)


def test_built_sessions_pass_their_checks(tmp_path: Path) -> None:
    outs = under(tmp_path, "impressions"), under(tmp_path, "sessions")
    log = write_events(tmp_path / "events.parquet", busy_log(8))
    build_sessions([log], days(6), Sessions(**PAGE), Rewards(), None, *outs)
    impressions, sessions = ([row for p in days(6) for row in read_rows(out(p))] for out in outs)
    assert len(impressions) > 500
    assert check(tmp_path, "session_totals", impressions=impressions, sessions=sessions) == []
    assert check(tmp_path, "page_slots", PAGE, impressions=impressions) == []


def shown(session: int = 1, **more: Any) -> dict[str, Any]:
    row = {"session_id": session, "item_id": "a", "page": 0, "row": 0, "col": 0, "feedback": "click"}
    return {**row, "impression_ts": at(1), **more}


@pytest.mark.parametrize(
    ("impressions", "reason"),
    [
        (
            [shown(), shown()],
            "session 1 counts 1 impressions, 1 pages, 1 clicks, 0 purchases; its impressions are 2, 1, 2, 0",
        ),
        (
            [shown(impression_ts=at(3))],
            "session 1 ends at 2024-01-01 02:00:00+00, but shows an item at 2024-01-01 03:00:00+00",
        ),
        ([shown(), shown(2)], "1 impressions name the unknown session 2"),
        ([], "session 1 shows nothing"),
    ],
)
def test_sessions_that_differ_from_their_impressions_are_found(
    tmp_path: Path, impressions: list[dict[str, Any]], reason: str
) -> None:
    sessions = [{"session_id": 1, "end_ts": at(2), "impressions": 1, "pages": 1, "clicks": 1, "purchases": 0}]
    assert check(tmp_path, "session_totals", impressions=impressions, sessions=sessions) == [reason]


@pytest.mark.parametrize(
    ("impressions", "reason"),
    [
        ([shown(), shown()], "row 0, column 0 of page 0 in session 1 shows 2 items"),
        ([shown(col=2)], "row 0, column 2 of page 0 in session 1 lies outside of the page"),
        ([shown(row=2)], "row 2, column 0 of page 0 in session 1 lies outside of the page"),
    ],
)
def test_slots_that_no_page_has_are_found(tmp_path: Path, impressions: list[dict[str, Any]], reason: str) -> None:
    assert check(tmp_path, "page_slots", PAGE, impressions=impressions) == [reason]


def test_items_from_outside_of_the_training_window_are_found(tmp_path: Path) -> None:
    counts = {"train_impressions": 0, "train_positives": 0}
    items = [
        counts | {"item_id": "a", "item": 0},
        counts | {"item_id": "canary", "item": 1},
        counts | {"item_id": "later", "item": 0},
    ]
    assert check(tmp_path, "training_vocabulary", impressions=[shown(), shown(2, item_id="later")], items=items) == [
        "item a is shown in the training window, but has none",
        "item canary has an index, but the training window does not show it",
    ]
