from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features import build_features, check_features
from pipeline.schemas import WINDOWS
from tests.pipeline.logs import DAY, HOUR, MINUTE, at, days, event, read_rows, under, write_events, write_rows

Rows = list[dict[str, Any]]
LENGTHS = dict(zip(WINDOWS, (HOUR, 6 * HOUR, DAY, 7 * DAY), strict=True))
WEEK_LATER = days(10)[8:]  # a range with its eight days of past


def impression(session: int, item: str, moment: Any, feedback: str = "skip", position: int = 0) -> dict[str, Any]:
    return {
        "session_id": session,
        "user_id": f"u{session}",
        "item_id": item,
        "position": position,
        "feedback": feedback,
        "page_ts": moment,
        "impression_ts": moment,
    }


def featured(folder: Path, shown: Rows, events: Rows, wanted: Any = WEEK_LATER) -> Rows:
    impressions = write_rows(folder / "impressions.parquet", "impressions", shown)
    log = write_events(folder / "events.parquet", events)
    out = under(folder, "features")
    counts = build_features([impressions], [log], wanted, out)
    rows = [read_rows(out(p)) for p in wanted]
    assert [len(of_partition) for of_partition in rows] == list(counts.values())
    return [row for of_partition in rows for row in of_partition]


def test_windows_are_closed_at_their_start_and_open_at_the_impression(tmp_path: Path) -> None:
    now = at(9 * 24)
    past = [timedelta(microseconds=1), HOUR, HOUR + timedelta(microseconds=1), 6 * HOUR, DAY, 7 * DAY, 7 * DAY + MINUTE]
    shown = [impression(n, "a", now - ago) for n, ago in enumerate(past)]
    shown += [impression(20, "a", now), impression(21, "a", now, "click"), impression(22, "b", now - MINUTE)]
    rows = [row for row in featured(tmp_path, shown, []) if row["impression_ts"] == now]
    counts = [[row[f"item_impressions_{window}"] for window in WINDOWS] for row in rows]
    assert counts == [[2, 4, 5, 6]] * 2
    assert [row["item_positives_1h"] for row in rows] == [0, 0]  # the other's click is of this very moment


def test_a_positive_counts_from_the_moment_it_was_known(tmp_path: Path) -> None:
    shown = [
        impression(1, "a", at(200), "purchase"),
        impression(2, "a", at(200.5)),  # before the purchase
        impression(3, "a", at(200.75)),  # its very moment
        impression(4, "a", at(200.8)),
    ]
    rows = featured(tmp_path, shown, [event("u1", "a", at(200.75), "purchase")])
    assert [row["item_positives_6h"] for row in rows] == [0, 0, 0, 1]
    assert [row["item_ctr_6h"] for row in rows] == [0, 0, 0, pytest.approx(1 / 3)]


def test_without_an_act_in_the_log_a_positive_counts_from_its_impression(tmp_path: Path) -> None:
    shown = [impression(1, "a", at(200), "click"), impression(2, "a", at(200.1))]
    rows = featured(tmp_path, shown, [event("u1", "a", at(250), "click")])  # a click of another day
    assert [row["item_positives_1h"] for row in rows] == [0, 1]


def test_a_row_belongs_to_the_partition_of_its_impression(tmp_path: Path) -> None:
    shown = [impression(1, "a", at(9 * 24 - 0.1)), impression(1, "a", at(9 * 24), position=1)]
    featured(tmp_path, shown, [])
    out = under(tmp_path, "features")
    assert [[row["position"] for row in read_rows(out(p))] for p in WEEK_LATER] == [[0], [1]]


TIMES = st.integers(0, 40).map(lambda step: at(196) + step * 15 * MINUTE)  # coarse, so that many moments are equal
SHOWN = st.lists(st.tuples(TIMES, st.sampled_from("ab"), st.sampled_from([None, 0, 1, 30])), min_size=1, max_size=25)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(SHOWN)
def test_features_equal_a_plain_count(drawn: list[tuple[Any, str, int | None]]) -> None:
    shown, events, positives = [], [], []
    for number, (moment, item, delay) in enumerate(drawn):
        shown.append(impression(number, item, moment, "skip" if delay is None else "click"))
        if delay is not None:
            positives.append((item, moment + delay * MINUTE))
            events.append(event(f"u{number}", item, moment + delay * MINUTE, "click"))
    with TemporaryDirectory() as folder:
        rows = featured(Path(folder), shown, events)
    assert len(rows) == len(shown)
    for row in rows:
        item, now = row["item_id"], row["impression_ts"]
        for window, length in LENGTHS.items():
            n_shown = sum(s["item_id"] == item and now - length <= s["impression_ts"] < now for s in shown)
            n_positive = sum(i == item and now - length <= ts < now for i, ts in positives)
            assert row[f"item_impressions_{window}"] == n_shown
            assert row[f"item_positives_{window}"] == n_positive
            assert row[f"item_ctr_{window}"] == (n_positive / n_shown if n_shown else 0)


def test_the_check_finds_features_that_know_the_future(tmp_path: Path) -> None:
    shown = [impression(n, "a", at(200) + n * MINUTE, "click") for n in range(5)]
    rows = featured(tmp_path, shown, [])
    inputs = [tmp_path / "impressions.parquet"], [tmp_path / "events.parquet"]
    honest = write_rows(tmp_path / "honest.parquet", "features", rows)
    assert check_features([honest], *inputs) == []
    rows[2]["item_positives_1h"] += 1  # its own click
    peeking = write_rows(tmp_path / "peeking.parquet", "features", rows)
    assert check_features([peeking], *inputs) == [
        "item_positives_1h of impression 0 in session 2 is 3, but 2 lie strictly before it"
    ]


def test_features_of_one_partition_are_those_of_the_whole_range(tmp_path: Path) -> None:
    shown = [
        impression(n, f"i{n % 3}", at(193) + n * 7 * MINUTE, "click" if n % 4 == 0 else "skip") for n in range(300)
    ]
    featured(tmp_path / "all", shown, [])
    featured(tmp_path / "one", shown, [], WEEK_LATER[1:])
    one, together = (under(tmp_path / name, "features")(WEEK_LATER[1]) for name in ("one", "all"))
    assert one.read_bytes() == together.read_bytes()
