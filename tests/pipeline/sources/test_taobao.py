"""Taobao UserBehavior: the head of the real file, and every way in which a line of it can be broken."""

import gzip
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.experiment import load_experiment
from pipeline.source_settings import TaobaoSource
from pipeline.sources import open_source
from pipeline.sources.base import EVENT_COLUMNS, ITEM_COLUMNS, USER_COLUMNS
from pipeline.sources.taobao import Taobao
from pipeline.warehouse import connect

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data") / "taobao"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: neither HINDSIGHT_TEST_DATA nor {REAL}")
GOOD = b"1,2268318,2520377,pv,1511544070"
MOMENT = datetime(2017, 11, 24, 17, 21, 10, tzinfo=UTC)
Row = dict[str, Any]


def taobao(folder: Path, **settings: Any) -> Taobao:
    return Taobao(TaobaoSource(kind="taobao", path=folder, **settings), folder)


def read(source: Taobao, only: Sequence[int] | None = None) -> tuple[list[Row], int]:
    """The rows of the first file, and the independent count."""
    file = source.discover()[0]
    with connect() as con:
        rows = source.read(con, file, None if only is None else np.array(only)).to_arrow_table().to_pylist()
        return rows, source.count(con, file)


def written(folder: Path, content: bytes, name: str = "UserBehavior.csv") -> Taobao:
    (folder / name).write_bytes(content)
    return taobao(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("UserBehavior.csv", GOOD + b"\n1,2,3,buy,1511544070\n"),
        ("UserBehavior.csv", b"\xef\xbb\xbf" + GOOD + b"\r\n1,2,3,buy,1511544070\r\n"),
        ("UserBehavior.part2.csv", GOOD + b"\n1,2,3,buy,1511544070"),
        ("UserBehavior.csv.gz", gzip.compress(GOOD + b"\n1,2,3,buy,1511544070\n")),
    ],
)
def test_every_copy_of_the_file_gives_the_same_facts(tmp_path: Path, name: str, content: bytes) -> None:
    rows, count = read(written(tmp_path, content, name))
    assert count == 2
    assert set(rows[0]) - set(EVENT_COLUMNS) == {"line", "raw", "reason"}
    assert [{k: v for k, v in row.items() if k not in ("raw", "reason")} for row in rows] == [
        {"user_id": "1", "item_id": i, "event_ts": MOMENT, "event_type": t, "category": c, "line": line}
        for i, c, t, line in (("2268318", "2520377", "impression", 1), ("2", "3", "purchase", 2))
    ]


@pytest.mark.parametrize(
    ("code", "event_type"), [("pv", "impression"), ("fav", "favorite"), ("cart", "cart"), ("buy", "purchase")]
)
def test_each_behaviour_has_its_event_type(tmp_path: Path, code: str, event_type: str) -> None:
    [row], _ = read(written(tmp_path, f"1,2,3,{code},1511544070\n".encode()))
    assert (row["event_type"], row["reason"]) == (event_type, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,2,3,PV,1511544070", "unknown behaviour"),
        (b"1,2,3,,1511544070", "unknown behaviour"),
        (b"user_id,item_id,category_id,behavior_type,timestamp", "unknown behaviour"),
        (b"1,2,3,pv,", "unreadable time stamp"),
        (b"1,2,3,pv,2017-11-25", "unreadable time stamp"),
        (b"1,2,3,pv,99999999999999999999", "unreadable time stamp"),
        (b"1,2,3,pv,1511544070000", "time stamp is not in seconds"),
        (b"1,2,3,pv,-1511544070000", "time stamp is not in seconds"),
        (b"1,2,3,pv", "has 4 columns instead of 5"),
        (b"1,2,3,pv,1511544070,9", "has 6 columns instead of 5"),
        (b"", "blank line"),
        (b"1,2,3,pv\0,1511544070", "holds a NUL byte"),
        (b"1,2,3\xe9,pv,1511544070", "not valid UTF-8"),
        (b'"1",2,3,"pv",1511544070', "unknown behaviour"),  # the format has no quotes
    ],
)
def test_a_broken_line_is_refused_with_its_number_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    rows, count = read(written(tmp_path, GOOD + b"\n" + line + b"\r\n" + GOOD + b"\n"))
    assert [(row["line"], row["reason"]) for row in rows] == [(1, None), (2, reason), (3, None)]
    assert rows[1]["raw"].replace("\\x00", "\0").replace("\\xe9", "é") == line.decode("latin-1")
    assert count == 3


def test_blank_ids_are_left_for_ingest_to_refuse(tmp_path: Path) -> None:
    [row], _ = read(written(tmp_path, b",2,3,pv,1511544070\n"))
    assert (row["user_id"], row["reason"]) == ("", None)


@pytest.mark.parametrize("seconds", ["-2134949234", "0", "2122867200"])
def test_odd_but_readable_times_are_left_for_ingest_to_refuse(tmp_path: Path, seconds: str) -> None:
    [row], _ = read(written(tmp_path, f"1,2,3,pv,{seconds}\n".encode()))
    assert (row["event_ts"], row["reason"]) == (datetime.fromtimestamp(int(seconds), UTC), None)


def test_days_are_those_of_china_both_included(tmp_path: Path) -> None:
    stamps = [1511539199, 1511539200, 1512316799, 1512316800]  # around 25 November 00:00 and 4 December 00:00 there
    (tmp_path / "UserBehavior.csv").write_bytes(b"".join(b"1,2,3,pv,%d\n" % stamp for stamp in stamps))
    outside = "outside the experiment's time range"
    for settings, expected in (
        ({}, [None] * 4),
        ({"first_day": date(2017, 11, 25)}, [outside, None, None, None]),
        ({"last_day": date(2017, 12, 3)}, [None, None, None, outside]),
        ({"first_day": date(2017, 11, 25), "last_day": date(2017, 12, 3)}, [outside, None, None, outside]),
    ):
        rows, _ = read(taobao(tmp_path, **settings))
        assert [row["reason"] for row in rows] == expected


def test_a_torn_tail_is_refused_and_a_torn_gzip_says_where_it_ends(tmp_path: Path) -> None:
    rows, count = read(written(tmp_path, GOOD + b"\n100370,1968385,1875258,pv"))
    assert [row["reason"] for row in rows] == [None, "torn last line"]
    assert count == 2
    (tmp_path / "UserBehavior.csv").unlink()
    packed = gzip.compress(b"".join(b"%d,2,3,pv,%d\n" % (n, 1511544070 + n * 37 % 991) for n in range(500)))
    rows, count = read(written(tmp_path, packed[: len(packed) // 2], "UserBehavior.csv.gz"))
    usable = [row for row in rows if row["reason"] is None]
    assert 100 < len(usable) < 400
    assert [row["user_id"] for row in usable] == [str(n) for n in range(len(usable))]
    assert rows[-1]["reason"] == "the compressed file is cut off or damaged here: Truncated compressed stream"
    assert count == len(rows)


def test_some_lines_can_be_read_alone(tmp_path: Path) -> None:
    rows, count = read(written(tmp_path, b"".join(b"%d,2,3,pv,1511544070\n" % n for n in range(9))), only=[2, 9])
    assert [(row["line"], row["user_id"]) for row in rows] == [(2, "1"), (9, "8")]
    assert count == 9


def test_parts_are_read_in_the_order_of_their_names_and_other_files_left_alone(tmp_path: Path) -> None:
    for name in ("UserBehavior.b.csv", "UserBehavior.a.csv.gz", "UserBehavior.csv.bak", "readme.csv"):
        (tmp_path / name).write_bytes(gzip.compress(GOOD) if name.endswith("gz") else GOOD)
    assert [file.path.name for file in taobao(tmp_path).discover()] == ["UserBehavior.a.csv.gz", "UserBehavior.b.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("readme.txt", b"x", r"has no UserBehavior\*.csv; fetch it from Tianchi"),
        ("UserBehavior.csv", b"", "UserBehavior.csv holds no rows; fetch it again"),
        ("UserBehavior.csv", b"\xef\xbb\xbf", "UserBehavior.csv holds no rows; fetch it again"),
        ("UserBehavior.csv.zip", b"PK", "UserBehavior.csv.zip is an archive; unpack it into the same folder"),
        ("UserBehavior.csv.tar.gz", b"", "UserBehavior.csv.tar.gz is an archive; unpack it"),
    ],
)
def test_a_folder_that_cannot_be_read_ends_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        taobao(tmp_path).discover()


def test_a_source_without_a_folder_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.path is not set; .* RAW=folder"):
        Taobao(TaobaoSource(kind="taobao"), tmp_path)
    with pytest.raises(DataError, match=r"There is no folder .*absent; set source.path or RAW"):
        taobao(tmp_path / "absent")


def test_the_log_describes_neither_items_nor_users(tmp_path: Path) -> None:
    source = written(tmp_path, GOOD)
    with connect() as con:
        items, users = source.items(con, source.discover()), source.users(con, source.discover())
        assert (items.columns, items.fetchall()) == (list(ITEM_COLUMNS), [])
        assert (users.columns, users.fetchall()) == (list(USER_COLUMNS), [])


@needs_data
def test_the_head_of_the_real_file_has_36_rows_that_the_papers_do_not_take() -> None:
    experiment = load_experiment("taobao", raw=str(REAL))
    source = open_source(experiment.source, REAL)
    assert isinstance(source, Taobao)
    rows, count = read(source)
    assert count == len(rows) == 84_476
    assert Counter(row["reason"] for row in rows) == {
        None: 84_440,
        "outside the experiment's time range": 35,
        "torn last line": 1,
    }
    assert [row["line"] for row in rows if row["reason"] == "torn last line"] == [84_476]
    usable = [row for row in rows if row["reason"] is None]
    assert Counter(row["event_type"] for row in usable) == {
        "impression": 75_837,
        "cart": 4_497,
        "favorite": 2_356,
        "purchase": 1_750,
    }
    start, end = (datetime.combine(d, datetime.min.time(), UTC) for d in (date(2017, 11, 24), date(2017, 12, 4)))
    assert (experiment.partitions.start, experiment.partitions.end) == (start.date(), end.date())
    assert all(start <= row["event_ts"] < end for row in usable)


@needs_data
def test_without_days_of_its_own_only_the_torn_line_is_refused() -> None:
    rows, _ = read(taobao(REAL))
    assert Counter(row["reason"] for row in rows) == {None: 84_475, "torn last line": 1}
