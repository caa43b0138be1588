from datetime import datetime
from pathlib import Path

import pytest

from pipeline.errors import DataError, TooSmallError
from pipeline.experiment import Splits
from pipeline.splits import build_splits, check_splits, session_splits
from pipeline.warehouse import connect
from tests.pipeline.logs import START, at, read_rows, write_rows

LENGTH = 0.5  # hours that a session lasts


def write_sessions(
    path: Path, starts: list[float], length: float = LENGTH, user: str | None = None, clicks: int = 1
) -> Path:
    rows = [
        {
            "session_id": n,
            "user_id": user or f"u{n}",
            "start_ts": at(hour),
            "end_ts": at(hour + length),
            "impressions": 2,
            "clicks": clicks,
        }
        for n, hour in enumerate(starts)
    ]
    return write_rows(path, "sessions", rows)


def split(folder: Path, starts: list[float], settings: Splits, length: float = LENGTH) -> dict[str, dict[str, int]]:
    sessions = write_sessions(folder / "sessions.parquet", starts, length)
    return build_splits([sessions], settings, folder / "splits.parquet", min_usable=0)


def test_shares_count_sessions_in_the_order_of_their_start(tmp_path: Path) -> None:
    counts = split(tmp_path, [float(hour) for hour in range(20)], Splits(validation=0.7, test=0.85))
    assert counts == {
        "train": {"sessions": 14, "dropped": 0},
        "validation": {"sessions": 3, "dropped": 0},
        "test": {"sessions": 3, "dropped": 0},
    }
    bounds = {row["split"]: (row["start_ts"], row["end_ts"]) for row in read_rows(tmp_path / "splits.parquet")}
    assert bounds["train"] == (START, at(14))
    assert bounds["validation"] == (at(14), at(17))
    assert bounds["test"][0] == at(17)


def test_a_share_becomes_the_nearest_instant_and_never_parts_equal_starts(tmp_path: Path) -> None:
    starts = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0]  # no cut at exactly half of them: 1 or 7 come before
    counts = split(tmp_path, starts, Splits(validation=0.5, test=0.75))
    assert [of_split["sessions"] for of_split in counts.values()] == [7, 1, 2]


def test_dates_are_utc_instants(tmp_path: Path) -> None:
    settings = Splits(validation=datetime(2024, 1, 2), test=datetime(2024, 1, 3))
    counts = split(tmp_path, [0, 12, 23.4, 24, 47, 48], settings)
    assert [of_split["sessions"] for of_split in counts.values()] == [3, 2, 1]


def test_sessions_that_reach_the_end_of_their_split_are_dropped_and_counted(tmp_path: Path) -> None:
    settings = Splits(validation=datetime(2024, 1, 2), test=datetime(2024, 1, 3))
    counts = split(tmp_path, [0, 23.5, 23.6, 30, 47.9, 50], settings)  # 23.5 ends at the very cut-off
    assert counts == {
        "train": {"sessions": 1, "dropped": 2},
        "validation": {"sessions": 1, "dropped": 1},
        "test": {"sessions": 1, "dropped": 0},
    }
    with connect({"sessions": [tmp_path / "sessions.parquet"], "splits": [tmp_path / "splits.parquet"]}) as con:
        session_splits(con)
        kept = con.sql("select session_id, split from session_splits order by session_id").fetchall()
    assert kept == [(0, "train"), (3, "validation"), (5, "test")]


def test_shares_always_leave_a_start_for_each_split(tmp_path: Path) -> None:
    for settings in (Splits(validation=0.98, test=0.99), Splits(validation=0.01, test=0.02)):
        counts = split(tmp_path, [0, 1, 2, 3], settings)
        assert sorted(of_split["sessions"] for of_split in counts.values()) == [1, 1, 2]


def test_a_single_user_can_be_split(tmp_path: Path) -> None:
    sessions = write_sessions(tmp_path / "sessions.parquet", [0, 1, 2], user="only")
    counts = build_splits([sessions], Splits(), tmp_path / "splits.parquet", min_usable=1)
    assert [of_split["sessions"] for of_split in counts.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("starts", "length", "settings", "message"),
    [
        ([], 0.5, Splits(), r"too small to split: 0 sessions with 0 distinct start times.*use a longer log"),
        ([1, 1, 1, 2], 0.5, Splits(), r"too small to split: 4 sessions with 2 distinct start times"),
        (
            [0, 1, 2],
            0.5,
            Splits(validation=datetime(2025, 1, 1), test=datetime(2025, 2, 1)),
            r"of 3 sessions, 0 start in the validation split \(2025-01-01 .*move splits\.validation",
        ),
        ([0, 1, 2], 5, Splits(), r"of 3 sessions, 1 start in the train split .* none ends in it"),
    ],
)
def test_logs_that_cannot_be_split_are_refused(
    tmp_path: Path, starts: list[float], length: float, settings: Splits, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split(tmp_path, starts, settings, length)


@pytest.mark.parametrize(("clicks", "usable"), [(0, 0), (2, 0), (1, 1)])
def test_a_split_in_which_no_ranking_can_be_judged_is_refused(tmp_path: Path, clicks: int, usable: int) -> None:
    sessions = write_sessions(tmp_path / "sessions.parquet", [0, 1, 2], clicks=clicks)
    message = rf"too small to split: {usable} of the 1 sessions of the validation split have both"
    with pytest.raises(TooSmallError, match=message):
        build_splits([sessions], Splits(), tmp_path / "splits.parquet")


def test_the_order_of_the_splits_is_checked_on_impressions_as_well(tmp_path: Path) -> None:
    split(tmp_path, [0, 1, 2], Splits(validation=0.4, test=0.7))
    sessions, splits = [tmp_path / "sessions.parquet"], [tmp_path / "splits.parquet"]
    shown = [{"session_id": n, "page_ts": at(n), "impression_ts": at(n)} for n in range(3)]
    good = write_rows(tmp_path / "good.parquet", "impressions", shown)
    assert check_splits(sessions, [good], splits) == []
    shown[0]["impression_ts"] = at(1)  # inside of validation
    bad = write_rows(tmp_path / "bad.parquet", "impressions", shown)
    (reason,) = check_splits(sessions, [bad], splits)
    assert reason.startswith("session 0 of the train split lasts until 2024-01-01 01:00:00")
