"""YooChoose: clicks and buys joined by their session, contexts told apart, every broken line a refusal."""

import gzip
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.experiment import load_experiment
from pipeline.source_settings import YooChooseSource
from pipeline.sources import open_source
from pipeline.sources.base import EVENT_COLUMNS, ITEM_COLUMNS, USER_COLUMNS
from pipeline.sources.yoochoose import YooChoose
from pipeline.warehouse import connect

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data") / "yoochoose"
CLICK = b"11,2014-04-03T10:44:35.672Z,214821275,0"
BUY = b"11,2014-04-03T11:04:11.417Z,214821371,1046,1"
CLICKED = datetime(2014, 4, 3, 10, 44, 35, 672000, tzinfo=UTC)
BOUGHT = datetime(2014, 4, 3, 11, 4, 11, 417000, tzinfo=UTC)
Row = dict[str, Any]


def yoochoose(folder: Path, buying_sessions: bool = False) -> YooChoose:
    return YooChoose(YooChooseSource(kind="yoochoose", path=folder, buying_sessions=buying_sessions), folder)


def write(folder: Path, clicks: bytes = CLICK, buys: bytes = BUY) -> Path:
    (folder / "yoochoose-clicks.dat").write_bytes(clicks)
    (folder / "yoochoose-buys.dat").write_bytes(buys)
    return folder


def read(source: YooChoose, place: int, only: Sequence[int] | None = None) -> tuple[list[Row], int]:
    """The rows of a file (0: clicks, 1: buys), and the independent count."""
    file = source.discover()[place]
    with connect() as con:
        rows = source.read(con, file, None if only is None else np.array(only)).to_arrow_table().to_pylist()
        assert {*rows[0]} - {*EVENT_COLUMNS} == {"line", "raw", "reason"}
        return rows, source.count(con, file)


def test_a_click_is_an_impression_and_a_buy_a_purchase_of_the_session_as_its_user(tmp_path: Path) -> None:
    source = yoochoose(write(tmp_path))
    [click], clicks = read(source, 0)
    [buy], buys = read(source, 1)
    assert (clicks, buys) == (1, 1)
    assert click == {
        "user_id": "11",
        "item_id": "214821275",
        "event_ts": CLICKED,
        "event_type": "impression",
        "session_id": "11",
        "category": None,
        "brand": None,
        "line": 1,
        "raw": CLICK.decode(),
        "reason": None,
    }
    assert buy == {
        "user_id": "11",
        "item_id": "214821371",
        "event_ts": BOUGHT,
        "event_type": "purchase",
        "value": 1046.0,
        "session_id": "11",
        "line": 1,
        "raw": BUY.decode(),
        "reason": None,
    }
    assert not source.has_impressions
    assert not source.unpacks


@pytest.mark.parametrize(
    "lines",
    [
        CLICK + b"\r\n" + CLICK + b"\r\n",
        b"\xef\xbb\xbf" + CLICK + b"\n" + CLICK,
        b"\n".join([b'"11","2014-04-03T10:44:35.672Z","214821275","0"'] * 2) + b"\n",
        b"11,2014-04-03 10:44:35.672,214821275,0\n11,2014-04-03T12:44:35.672+02:00,214821275,0\n",
    ],
)
def test_every_copy_of_the_file_gives_the_same_facts(tmp_path: Path, lines: bytes) -> None:
    rows, count = read(yoochoose(write(tmp_path, clicks=lines)), 0)
    assert [(row["line"], row["user_id"], row["item_id"], row["event_ts"], row["reason"]) for row in rows] == [
        (line, "11", "214821275", CLICKED, None) for line in (1, 2)
    ]
    assert count == 2


@pytest.mark.parametrize(
    ("context", "category", "brand"),
    [
        ("0", None, None),
        ("", None, None),
        ("S", "S", None),
        ("1", "1", None),
        ("12", "12", None),
        ("13", None, "13"),
        ("2089046361", None, "2089046361"),
    ],
)
def test_the_context_of_a_click_is_a_category_a_brand_or_unknown(
    tmp_path: Path, context: str, category: str | None, brand: str | None
) -> None:
    [row], _ = read(yoochoose(write(tmp_path, clicks=b"1,2014-04-03T10:44:35Z,2," + context.encode())), 0)
    assert (row["category"], row["brand"], row["reason"]) == (category, brand, None)


@pytest.mark.parametrize(("price", "value"), [("0", None), ("0.0", None), ("1046", 1046.0), ("9.5", 9.5), ("-3", -3.0)])
def test_a_price_of_zero_is_unknown(tmp_path: Path, price: str, value: float | None) -> None:
    [row], _ = read(yoochoose(write(tmp_path, buys=f"1,2014-04-03T10:44:35Z,2,{price},0".encode())), 1)
    assert (row["value"], row["reason"]) == (value, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,2014-04-03T10:44:35Z,2", "has 3 columns instead of 4"),
        (b"1,2014-04-03T10:44:35Z,2,0,9", "has 5 columns instead of 4"),
        (b"1,2014-04-31T10:44:35Z,2,0", "unreadable time stamp"),
        (b"1,1396521875,2,0", "unreadable time stamp"),
        (b"1,infinity,2,0", "unreadable time stamp"),
        (b"1,,2,0", "unreadable time stamp"),
        (b"session,time,item,category", "unreadable time stamp"),
        (b"1,2014-04-03T10:44:35Z,2,sport", "unknown category"),
        (b"1,2014-04-03T10:44:35Z,2,-1", "unknown category"),
        (b'1,"2014-04-03T10:44:35Z,2,0', "a quote is not closed, or text follows one"),
        (b"", "blank line"),
        (b"1,2014-04-03T10:44:35Z,\xe9,0", "not valid UTF-8"),
        (b"1,2014-04-03T10:44:35Z,\0,0", "holds a NUL byte"),
    ],
)
def test_a_broken_click_is_refused_with_its_number_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    rows, count = read(yoochoose(write(tmp_path, clicks=CLICK + b"\n" + line + b"\r\n" + CLICK + b"\n")), 0)
    assert [(row["line"], row["reason"]) for row in rows] == [(1, None), (2, reason), (3, None)]
    assert count == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,2014-04-03T10:44:35Z,2,10", "has 4 columns instead of 5"),
        (b"1,yesterday,2,10,1", "unreadable time stamp"),
        (b"1,2014-04-03T10:44:35Z,2,ten,1", "price is not a number"),
        (b"1,2014-04-03T10:44:35Z,2,,1", "price is not a number"),
    ],
)
def test_a_broken_buy_is_refused_with_its_number_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    rows, count = read(yoochoose(write(tmp_path, buys=BUY + b"\n" + line + b"\n" + BUY + b"\n")), 1)
    assert [(row["line"], row["reason"]) for row in rows] == [(1, None), (2, reason), (3, None)]
    assert count == 3


def test_torn_tails_and_torn_gzip_members_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, clicks=CLICK + b"\n11,2014-04")
    packed = gzip.compress(b"".join(b"%d,2014-04-03T11:04:11.%03dZ,2,%d,1\n" % (n, n, n * n) for n in range(500)))
    (folder / "yoochoose-buys.dat").unlink()
    (folder / "yoochoose-buys.dat.gz").write_bytes(packed[: len(packed) // 2])
    clicks, _ = read(yoochoose(folder), 0)
    assert [row["reason"] for row in clicks] == [None, "torn last line"]
    buys, count = read(yoochoose(folder), 1)
    usable = [row for row in buys if row["reason"] is None]
    assert 100 < len(usable) < 400
    assert [row["user_id"] for row in usable] == [str(n) for n in range(len(usable))]
    assert buys[-1]["reason"] == "the compressed file is cut off or damaged here: Truncated compressed stream"
    assert count == len(buys)


def clicks_of(*sessions: str) -> bytes:
    return b"".join(b"%s,2014-04-03T10:44:35.672Z,2,0\n" % session.encode() for session in sessions)


def test_buying_sessions_leave_out_the_clicks_of_the_others(tmp_path: Path) -> None:
    bad_buys = b"3,never,2,5,1\n,2014-04-03T11:04:11.417Z,2,5,1\n"  # session 3 has no usable buy
    folder = write(tmp_path, clicks_of("11", "2", "3", "12", "") + b"11,x,2,0\n", BUY + b"\n" + bad_buys)
    late = b"12,2014-04-03T11:04:11.417Z,2,5,1\n" * 2
    (folder / "yoochoose-buys.late.dat.gz").write_bytes(gzip.compress(late))
    left_out = "session without a purchase"
    expected = [None, left_out, left_out, None, left_out, "unreadable time stamp"]
    rows, count = read(yoochoose(folder, buying_sessions=True), 0)
    assert [row["reason"] for row in rows] == expected
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert count == 6
    some, _ = read(yoochoose(folder, buying_sessions=True), 0, only=[2, 4, 6])
    assert some == [rows[1], rows[3], rows[5]]
    buys, _ = read(yoochoose(folder, buying_sessions=True), 1)
    assert [row["reason"] for row in buys] == [None, "unreadable time stamp", None]
    every, _ = read(yoochoose(folder), 0)
    assert [row["reason"] for row in every] == [None] * 5 + ["unreadable time stamp"]


def test_files_come_clicks_first_and_the_challenge_s_test_file_is_left_alone(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "yoochoose-clicks.2.dat").write_bytes(CLICK)
    (folder / "yoochoose-test.dat").write_bytes(CLICK)
    (folder / "yoochoose-buys.dat.7z").write_bytes(b"7z")
    found = [(file.path.name, file.kind) for file in yoochoose(folder).discover()]
    assert found == [
        ("yoochoose-clicks.2.dat", "events"),
        ("yoochoose-clicks.dat", "events"),
        ("yoochoose-buys.dat", "events"),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no yoochoose-clicks\*.dat; unpack yoochoose-data.7z there"),
        ({"yoochoose-clicks.dat": CLICK}, r"has no yoochoose-buys\*.dat; unpack yoochoose-data.7z there"),
        ({"yoochoose-clicks.dat.7z": b"7z"}, r"yoochoose-clicks.dat.7z is an archive; unpack it"),
        (
            {"yoochoose-clicks.dat": b"", "yoochoose-buys.dat": BUY},
            r"yoochoose-clicks.dat holds no rows; fetch it again",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_ends_in_one_sentence(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        yoochoose(tmp_path).discover()


def test_a_source_without_a_folder_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.path is not set; .* RAW=folder"):
        YooChoose(YooChooseSource(kind="yoochoose"), tmp_path)
    with pytest.raises(DataError, match=r"There is no folder .*absent; set source.path or RAW"):
        yoochoose(tmp_path / "absent")


def test_the_log_describes_neither_items_nor_users(tmp_path: Path) -> None:
    source = yoochoose(write(tmp_path))
    with connect() as con:
        items, users = source.items(con, source.discover()), source.users(con, source.discover())
        assert (items.columns, items.fetchall()) == (list(ITEM_COLUMNS), [])
        assert (users.columns, users.fetchall()) == (list(USER_COLUMNS), [])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: neither HINDSIGHT_TEST_DATA nor {REAL} is there")
def test_the_publishers_files_are_read_without_a_refusal() -> None:
    experiment = load_experiment("yoochoose", raw=str(REAL))
    source = open_source(experiment.source, REAL)
    assert isinstance(source, YooChoose)
    clicks, count = read(source, 0)
    buys, bought = read(source, 1)
    assert (len(clicks), count, len(buys), bought) == (500, 500, 9, 9)
    assert {row["reason"] for row in clicks + buys} == {None}
    assert len({row["user_id"] for row in clicks}) == 125
    assert Counter(row["user_id"] for row in buys) == {"140806": 4, "420374": 2, "420368": 2, "281626": 1}
    assert sum(row["value"] for row in buys) == 12462 + 10471 + 1883 + 6073 + 2617 + 523 + 1046 + 1151 + 1046
    start, end = experiment.partitions.start, experiment.partitions.end
    assert all(start <= row["event_ts"].date() < end for row in clicks + buys)
    left_out, _ = read(yoochoose(REAL, buying_sessions=True), 0)  # the two samples share no session
    assert {row["reason"] for row in left_out} == {"session without a purchase"}
