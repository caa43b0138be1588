"""KuaiRand: impressions with what came of them, every broken row a reject, nothing that looks at the future."""

import gzip
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.source_settings import KuaiRandSource
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS
from pipeline.sources.kuairand import KuaiRand
from pipeline.warehouse import connect

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data") / "kuairand-pure"
HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
GOOD = "712,5239,20220425,0,1650812741436,1,1,0,0,0,0,1,61802,49866,0,0,0,0,1"
SHOWN = datetime(2022, 4, 24, 15, 5, 41, 436_000, tzinfo=UTC)
ADDED = ["line", "raw", "reason"]
LOG_NAME = "log_standard_4_08_to_4_21_pure.csv"


def kuairand(folder: Path, **settings: Any) -> KuaiRand:
    return KuaiRand(KuaiRandSource(kind="kuairand", path=folder, **settings), folder)


def write(folder: Path, content: str | bytes, name: str = LOG_NAME, **settings: Any) -> KuaiRand:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return kuairand(folder, **settings)


def row(**values: object) -> str:
    """The good row with other values."""
    return ",".join(
        str(values.get(name, value)) for name, value in zip(HEADER.split(","), GOOD.split(","), strict=True)
    )


def log(*rows: str) -> str:
    return "\n".join([HEADER, *rows, ""])


def read(source: KuaiRand, only: Sequence[int] | None = None) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """Facts as dicts and rejects as (line, reason); every row of the file is in exactly one of them."""
    file = source.discover()[0]
    with connect() as con:
        relation = source.read(con, file, None if only is None else np.array(only))
        assert relation.columns == ["user_id", "item_id", "event_ts", "event_type", "value", "session_id", *ADDED]
        rows = relation.to_arrow_table().to_pylist()
        count = source.count(con, file)
    facts = [row for row in rows if row["reason"] is None]
    rejects = [(row["line"], row["reason"]) for row in rows if row["reason"] is not None]
    used, refused = {fact["line"] for fact in facts}, [line for line, _ in rejects]
    assert len(used) + len(refused) == (count if only is None else len(only))
    assert not used & set(refused)
    return facts, rejects


def catalogue(source: KuaiRand, kind: str) -> dict[str, dict[str, Any]]:
    with connect() as con:
        relation = getattr(source, kind)(con, source.discover())
        types = dict(zip(relation.columns, (str(kind).lower() for kind in relation.types), strict=True))
        expected = ITEM_COLUMNS if kind == "items" else USER_COLUMNS
        assert types == {
            name: kind.replace("timestamptz", "timestamp with time zone") for name, kind in expected.items()
        }
        rows = relation.to_arrow_table().to_pylist()
    found = {row[f"{kind[:-1]}_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_row_is_an_impression_and_what_came_of_it_when_the_playing_ended(tmp_path: Path) -> None:
    facts, rejects = read(write(tmp_path, log(GOOD)))
    assert rejects == []
    assert [(fact["event_type"], fact["event_ts"] - SHOWN, fact["value"]) for fact in facts] == [
        ("impression", timedelta(0), None),
        ("watch", timedelta(milliseconds=61802), 61802 / 49866),
        ("favorite", timedelta(milliseconds=61802), None),
    ]
    assert {(fact["user_id"], fact["item_id"], fact["session_id"], fact["line"]) for fact in facts} == {
        ("712", "5239", "20220425", 2)
    }


@pytest.mark.parametrize(
    ("settings", "values", "types"),
    [
        ({}, {"is_like": 0}, ["impression", "watch"]),
        ({}, {"is_like": 0, "duration_ms": 0}, ["impression"]),
        ({"positive": "long_view"}, {}, ["impression", "click", "favorite"]),
        ({"positive": "long_view"}, {"long_view": 0}, ["impression", "favorite"]),
        ({"positive": "click"}, {"long_view": 0, "duration_ms": 0}, ["impression", "click", "favorite"]),
        ({"positive": "click"}, {"is_click": 0, "is_like": 0}, ["impression"]),
    ],
)
def test_the_positive_is_what_the_experiment_says(
    tmp_path: Path, settings: dict[str, str], values: dict[str, int], types: list[str]
) -> None:
    facts, _ = read(write(tmp_path, log(row(**values)), **settings))
    assert [fact["event_type"] for fact in facts] == types


def test_with_gap_sessions_the_log_names_none(tmp_path: Path) -> None:
    facts, _ = read(write(tmp_path, log(GOOD, row(date="25 April")), session="gap"))
    assert len(facts) == 6
    assert {fact["session_id"] for fact in facts} == {None}


def test_a_row_that_is_there_twice_is_told_twice(tmp_path: Path) -> None:
    facts, _ = read(write(tmp_path, log(GOOD, GOOD)))
    assert [fact["line"] for fact in facts] == [2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (row(time_ms="soon"), "unreadable time stamp"),
        (row(time_ms=""), "unreadable time stamp"),
        (row(time_ms=9 * 10**30), "unreadable time stamp"),
        (row(time_ms=1650812741), "time stamp is not in milliseconds"),
        (row(time_ms=1650812741436000), "time stamp is not in milliseconds"),
        (row(time_ms=-5), "time stamp is not in milliseconds"),
        (row(play_time_ms=-1), "play_time_ms is not a time of play"),
        (row(play_time_ms="nan"), "play_time_ms is not a time of play"),
        (row(play_time_ms=10**12), "play_time_ms is not a time of play"),
        (row(duration_ms=-1), "duration_ms is not a duration"),
        (row(duration_ms=""), "duration_ms is not a duration"),
        (row(is_click=2), "is_click is not 0 or 1"),
        (row(is_like=""), "is_like is not 0 or 1"),
        (row(long_view="yes"), "long_view is not 0 or 1"),
        (row(date="2022-04-25"), "date is not written as 20220408"),
        (GOOD + ",9", "has 20 columns instead of 19"),
        (GOOD.rpartition(",")[0], "has 18 columns instead of 19"),
        (HEADER, "unreadable time stamp"),
        ("", "blank line"),
        ('"712' + GOOD, "a quote is not closed, or text follows one"),
    ],
)
def test_a_broken_row_is_one_reject_with_its_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    facts, rejects = read(write(tmp_path, log(GOOD, line, GOOD)))
    assert rejects == [(3, reason)]
    assert [fact["line"] for fact in facts] == [2, 2, 2, 4, 4, 4]


def test_a_blank_id_is_left_to_ingest(tmp_path: Path) -> None:
    facts, rejects = read(write(tmp_path, log(row(user_id=" "))))
    assert (facts[0]["user_id"], rejects) == ("", [])


@pytest.mark.parametrize(
    "content",
    [
        log(GOOD).replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + log(GOOD).encode(),
        log(",".join(f'"{field}"' for field in GOOD.split(","))).encode(),
        log(GOOD).removesuffix("\n").encode(),
        gzip.compress(log(GOOD).encode()),
    ],
)
def test_line_ends_marks_quotes_and_packing_change_nothing(tmp_path: Path, content: bytes) -> None:
    name = LOG_NAME + (".gz" if content.startswith(b"\x1f\x8b") else "")
    facts, rejects = read(write(tmp_path, content, name))
    assert rejects == []
    assert [(fact["user_id"], fact["event_ts"]) for fact in facts[:1]] == [("712", SHOWN)]


def test_columns_are_known_by_their_names(tmp_path: Path) -> None:
    swapped = log(GOOD).replace("user_id,video_id", "video_id,user_id").replace("hourmin", "hour")
    assert read(write(tmp_path, swapped))[0][0]["user_id"] == "5239"


def test_a_torn_file_and_foreign_letters_lose_their_own_rows_only(tmp_path: Path) -> None:
    content = log(GOOD, row(video_id="vidéo"), GOOD).encode("latin-1") + GOOD[:20].encode()
    facts, rejects = read(write(tmp_path, content))
    assert rejects == [(3, "not valid UTF-8"), (5, "torn last line")]
    assert {fact["line"] for fact in facts} == {2, 4}


def test_a_gzip_file_that_was_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    rows = [row(user_id=n, time_ms=1650812741436 + 7919 * n) for n in range(20_000)]
    packed = gzip.compress(log(*rows).encode())
    facts, rejects = read(write(tmp_path, packed[: len(packed) // 2], LOG_NAME + ".gz"))
    assert 1_000 < len({fact["line"] for fact in facts}) < 19_000
    assert "the compressed file is cut off or damaged here" in rejects[-1][1]


def test_only_the_wanted_rows_are_read(tmp_path: Path) -> None:
    source = write(tmp_path, log(GOOD, row(is_click=7), row(user_id=9), GOOD))
    facts, rejects = read(source, only=[3, 4])
    assert {fact["user_id"] for fact in facts} == {"9"}
    assert rejects == [(3, "is_click is not 0 or 1")]


def test_the_files_of_27k_are_found_in_its_data_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = [
        "log_random_4_22_to_5_08_27k.csv",
        "log_standard_4_08_to_4_21_27k_part1.csv",
        "log_standard_4_08_to_4_21_27k_part2.csv.gz",
        "log_standard_4_08_to_4_21_27k_part3.csv.md5",
        "user_features_27k.csv",
        "video_features_basic_27k.csv",
        "video_features_statistic_27k_part1.csv",
    ]
    for name in names:
        content = log(GOOD).encode()
        (tmp_path / "data" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = [(file.path.name, file.kind) for file in kuairand(tmp_path).discover()]
    logs = [(names[place], "events") for place in (1, 2, 0)]
    assert found == [*logs, (names[5], "items"), (names[4], "users")]
    without_random = kuairand(tmp_path, random_log=False).discover()
    assert [file.path.name for file in without_random] == [names[place] for place in (1, 2, 5, 4)]


@pytest.mark.parametrize(
    ("names", "below", "message"),
    [
        ([], "absent", "There is no folder .*absent; set source.path or RAW"),
        ([], "", r"has no log_standard_\*.csv or log_random_\*.csv; it holds nothing. Give the folder of a version"),
        (["user_features_pure.csv"], "", "it holds user_features_pure.csv"),
        (["log_standard_a_pure.csv", "log_standard_b_1k.csv"], "", r"several versions \(1k and pure\) of KuaiRand"),
        (["log_standard_a_pure.csv", "user_features_1k.csv"], "", "keep one version in a folder"),
        (["log_standard_a.csv", "user_features_a.csv", "user_features_b.csv"], "", "user_features_b.csv; keep one of"),
    ],
)
def test_a_folder_that_cannot_be_read_ends_in_one_sentence(
    tmp_path: Path, names: list[str], below: str, message: str
) -> None:
    for name in names:
        (tmp_path / name).write_text(log(GOOD))
    with pytest.raises(DataError, match=message):
        kuairand(tmp_path / below).discover()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "pure.csv holds no rows; fetch it again"),
        (HEADER + "\n", "pure.csv holds no rows; fetch it again"),
        (log(GOOD).replace("time_ms", "timestamp_ms", 1), "has no column 'time_ms'; did you mean 'timestamp_ms'"),
        (GOOD + "\n" + GOOD, "has no column 'user_id'; known are"),
    ],
)
def test_a_file_that_is_no_log_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, content))


def test_a_source_without_a_path_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.path is not set; .* RAW=folder"):
        KuaiRand(KuaiRandSource(kind="kuairand"), tmp_path)


VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)


def test_videos_are_described_by_what_was_known_at_their_upload(tmp_path: Path) -> None:
    lines = [
        VIDEO_HEADER,
        '5,7349781,NORMAL,2022-04-10,Web,0.0,87433.0,720.0,1280.0,9155697141,9.0,"20,43"',
        "7,,AD,,UNKNOWN,0.0,,0.0,1440.0,0,,",
        "5,1,AD,2022-04-11,Web,0.0,1.0,1.0,1.0,1,9.0,1",
    ]
    (tmp_path / "video_features_basic_pure.csv").write_text("\n".join(lines))
    items = catalogue(write(tmp_path, log(GOOD)), "items")
    assert set(items) == {"5", "7"}
    first, second = items["5"], items["7"]
    assert (first["category"], first["shop"], first["brand"], first["price"]) == ("20", "7349781", None, None)
    assert first["listed_ts"] == datetime(2022, 4, 9, 16, tzinfo=UTC)  # midnight in China
    assert first["features"] == pytest.approx([0, math.log(88.433), math.log(1280 / 720), 0, 1, 0, 0, 0, 0, 0, 0])
    assert (second["category"], second["shop"], second["listed_ts"]) == (None, None, None)
    assert second["features"] == [1, None, None, 0, 0, 0, 0, 0, 0, 0, 0]


USER_VALUES = {
    "user_id": "9",
    "user_active_degree": "high_active",
    "is_lowactive_period": "0",
    "is_live_streamer": "-124",
    "is_video_author": "1",
    "follow_user_num": "514",
    "follow_user_num_range": "500+",
    "fans_user_num": "0",
    "fans_user_num_range": '"[100,1k)"',
    "friend_user_num": "34",
    "register_days": "799",
    **{f"onehot_feat{place}": "0" for place in range(18)},
    "onehot_feat1": "6",
    "onehot_feat6": "1",
    "onehot_feat9": "3.0",
    "onehot_feat12": "",
    "onehot_feat13": "1.0",
}


def test_users_are_flags_logs_of_counts_and_small_categories(tmp_path: Path) -> None:
    content = ",".join(USER_VALUES) + "\n" + ",".join(USER_VALUES.values()) + "\n"
    (tmp_path / "user_features_pure.csv").write_text(content)
    features = catalogue(write(tmp_path, log(GOOD)), "users")["9"]["features"]
    categories = [[n == 6 for n in range(7)], [n == 1 for n in range(3)], [n == 3 for n in range(7)]]
    expected = [
        *(place == 1 for place in range(8)),  # activity
        *(0, 0, 1),
        *(math.log1p(count) for count in (514, 0, 34, 799)),
        *(flag for category in categories for flag in category),
        *(1, 0, 0, 0, 0),
        *(1, 0, 0, 0, 0),
        0,
    ]
    assert features[:-6] == pytest.approx([float(value) for value in expected])
    assert features[-6:] == [None, 1, 0, 0, 0, 0]  # what is missing stays missing


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,NORMAL", r"basic_pure.csv, line 3 \('1,2,NORMAL'\): has 3 columns instead of 12; mend or remove"),
        (" ,2,N,2022-04-10,Web,0,1,1,1,1,9,20", r"line 3 .*: it has no id; mend or remove the line"),
    ],
)
def test_a_broken_video_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = "7,1,AD,2022-04-10,Web,0.0,1.0,1.0,1.0,0,9.0,20"
    (tmp_path / "video_features_basic_pure.csv").write_text("\n".join([VIDEO_HEADER, good, line, good, ""]))
    with pytest.raises(DataError, match=message):
        catalogue(write(tmp_path, log(GOOD)), "items")


def test_a_log_without_catalogues_has_no_items_and_no_users(tmp_path: Path) -> None:
    source = write(tmp_path, log(GOOD))
    assert catalogue(source, "items") == catalogue(source, "users") == {}


def test_what_the_publisher_knew_at_the_end_of_the_period_changes_no_item(tmp_path: Path) -> None:
    source = write(tmp_path, log(GOOD))
    found = []
    for status in ("0.0", "1.0"):
        line = f"7,1,AD,2022-04-10,Web,{status},1.0,1.0,1.0,0,9.0,20"
        (tmp_path / "video_features_basic_pure.csv").write_text("\n".join([VIDEO_HEADER, line, ""]))
        found.append(catalogue(source, "items"))
        (tmp_path / "video_features_statistic_pure.csv").write_text("video_id,counts,show_cnt\n7,66,75.212\n")
    assert found[0] == found[1]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: {REAL} is not there; set HINDSIGHT_TEST_DATA")
@pytest.mark.parametrize(
    ("positive", "expected"),
    [
        ("watched", {"impression": 94_784, "watch": 93_119, "favorite": 1_625}),
        ("long_view", {"impression": 94_784, "click": 29_123, "favorite": 1_625}),
        ("click", {"impression": 94_784, "click": 41_503, "favorite": 1_625}),
    ],
)
def test_the_publishers_six_days_are_read_without_a_reject(positive: str, expected: dict[str, int]) -> None:
    source = kuairand(REAL, positive=positive)
    file = source.discover()[0]
    with connect() as con:
        source.read(con, file).create("facts")
        assert dict(con.sql("select event_type, count(*) from facts group by 1").fetchall()) == expected
        assert con.sql("select count(reason), count(distinct line) from facts").fetchall() == [(0, 94_784)]
        assert source.count(con, file) == 94_784
        span = con.sql("select min(event_ts), max(event_ts) from facts where event_type = 'impression'").fetchall()
    assert [moment.replace(microsecond=0) for moment in span[0]] == [
        datetime(2022, 4, 24, 15, 5, 41, tzinfo=UTC),
        datetime(2022, 4, 30, 15, 52, 3, tzinfo=UTC),
    ]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: {REAL} is not there; set HINDSIGHT_TEST_DATA")
def test_every_user_and_video_of_the_publishers_log_is_described() -> None:
    source = kuairand(REAL)
    items, users = catalogue(source, "items"), catalogue(source, "users")
    assert (len(items), len(users)) == (7_583, 27_285)
    with connect() as con:
        source.read(con, source.discover()[0]).create("facts")
        seen = con.sql("select list(distinct item_id), list(distinct user_id) from facts").fetchall()[0]
    assert set(seen[0]) <= set(items)
    assert set(seen[1]) <= set(users)
    assert sum(item["category"] is None for item in items.values()) == 96
    assert {len(user["features"]) for user in users.values()} == {49}
