"""RL4RS: a slate becomes nine impressions and its purchases, or is refused as one row."""

import gzip
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.experiment import load_experiment
from pipeline.source_settings import Rl4rsSource
from pipeline.sources import open_source
from pipeline.sources.base import EVENT_COLUMNS, ITEM_COLUMNS, USER_COLUMNS
from pipeline.sources.rl4rs import RL4RS
from pipeline.warehouse import connect

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data") / "rl4rs"
HEADER = (
    "timestamp@session_id@sequence_id@exposed_items@user_feedback@user_seqfeature@user_protrait@item_feature"
    "@behavior_policy_id"
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


def portrait(*dense: float) -> str:
    return ",".join([*["64054"] * 10, *(str(x) for x in (*dense, *[0] * (32 - len(dense))))])


def slate(**changes: str) -> str:
    fields = {
        "timestamp": "500",
        "session_id": "7",
        "sequence_id": "2",
        "exposed_items": "11,12,13,14,15,16,17,18,19",
        "user_feedback": "0,1,0,0,0,0,0,0,1",
        "user_seqfeature": "0",
        "user_protrait": portrait(1.5, -2),
        "item_feature": ";".join([",".join(["0.5"] * 40)] * 9),
        "behavior_policy_id": "1",
    }
    return "@".join((fields | changes).values())


def item(number: int, **changes: str) -> str:
    fields = {
        "item_id": str(number),
        "item_vec": ",".join([f"{number}.5"] * 40),
        "price": f"{number}.25",
        "location": "2",
        "special_item": "2",
    }
    return " ".join((fields | changes).values())


ITEM_HEADER = "item_id item_vec price location special_item"
ITEMS = "\n".join([ITEM_HEADER, *(item(number) for number in range(11, 19))])  # 19 is not described


def write(folder: Path, *slates: str, name: str = "rl4rs_dataset_a_rl.csv", items: str = ITEMS) -> RL4RS:
    (folder / name).write_text("\n".join([HEADER, *slates]) + "\n", encoding="utf-8")
    (folder / "item_info.csv").write_text(items, encoding="utf-8")
    return rl4rs(folder)


def rl4rs(folder: Path) -> RL4RS:
    return RL4RS(Rl4rsSource(kind="rl4rs", path=folder), folder)


def read(source: RL4RS, only: Sequence[int] | None = None, place: int = 0) -> tuple[list[Row], int]:
    """The rows of a log by line, type and position, and the independent count."""
    file = source.discover()[place]
    with connect() as con:
        found = source.read(con, file, None if only is None else np.array(only))
        rows = found.order("line, event_type::varchar, position").to_arrow_table().to_pylist()
        assert {*rows[0]} - {*EVENT_COLUMNS} == {"line", "raw", "reason"}
        return rows, source.count(con, file)


def test_a_slate_is_nine_impressions_and_a_purchase_at_its_price_where_one_was_bought(tmp_path: Path) -> None:
    rows, count = read(write(tmp_path, slate()))
    assert (count, len(rows)) == (1, 11)
    shown, bought = rows[:9], rows[9:]
    assert [(row["event_type"], row["item_id"], row["position"]) for row in shown] == [
        ("impression", str(11 + position), position) for position in range(9)
    ]
    assert [(row["event_type"], row["item_id"], row["position"], row["value"]) for row in bought] == [
        ("purchase", "12", 1, 12.25),
        ("purchase", "19", 8, None),
    ]
    assert {row["value"] for row in shown} == {None}
    shared = {"user_id": "a-rl-7", "session_id": "a-rl-7", "request_id": "a-rl-7-2", "line": 2, "reason": None}
    assert all(shared.items() <= row.items() for row in rows)
    assert {row["event_ts"] for row in rows} == {EPOCH + timedelta(seconds=500)}


def test_sessions_of_different_logs_are_different_users(tmp_path: Path) -> None:
    write(tmp_path, slate(), name="rl4rs_dataset_b_sl.part1.csv")
    source = write(tmp_path, slate(), name="rl4rs_dataset_a_sl.csv")
    assert {row["user_id"] for place in (0, 1) for row in read(source, place=place)[0]} == {"a-sl-7", "b-sl-7"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exposed_items": "11,12,13"}, "exposed_items is not a list of 9"),
        ({"exposed_items": ",".join(["11"] * 36)}, "exposed_items is not a list of 9"),
        ({"exposed_items": "11,12,13,,15,16,17,18,19"}, "exposed_items holds a blank id"),
        ({"user_feedback": "0,1"}, "user_feedback is not a list of 9"),
        ({"user_feedback": "0,1,0,0,2,0,0,0,1"}, "user_feedback is not of 0 and 1"),
        ({"user_feedback": "0,1,0,0,,0,0,0,1"}, "user_feedback is not of 0 and 1"),
        ({"timestamp": "soon"}, "unreadable time stamp"),
        ({"timestamp": "-1"}, "time stamp is not in seconds"),
        ({"timestamp": "1511544070000"}, "time stamp is not in seconds"),
        ({"session_id": " "}, "blank session id"),
        ({"sequence_id": "first"}, "sequence_id is not a number from 1"),
        ({"sequence_id": "0"}, "sequence_id is not a number from 1"),
        ({"item_feature": "1@2"}, "has 10 columns instead of 9"),
        ({"user_seqfeature": "\0"}, "holds a NUL byte"),
    ],
)
def test_a_broken_slate_is_refused_as_one_row(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    rows, count = read(write(tmp_path, slate(), slate(**changes), slate()))
    assert count == 3
    assert Counter((row["line"], row["reason"]) for row in rows) == {(2, None): 11, (3, reason): 1, (4, None): 11}
    [refused] = [row for row in rows if row["reason"]]
    assert refused["item_id"] is refused["event_ts"] is refused["position"] is None


def test_bytes_that_are_no_text_a_blank_line_and_a_torn_tail_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path, slate())
    path = tmp_path / "rl4rs_dataset_a_rl.csv"
    good = slate().encode()
    content = b"\xef\xbb\xbf" + HEADER.encode() + b"\r\n" + good + b"\r\n" + good.replace(b"64054", b"\xe9")
    path.write_bytes(content + b"\r\n\r\n" + good[:200].replace(b"@1@", b"@"))
    rows, count = read(source)
    assert Counter((row["line"], row["reason"]) for row in rows) == {
        (2, None): 11,
        (3, "not valid UTF-8"): 1,
        (4, "blank line"): 1,
        (5, "torn last line"): 1,
    }
    assert count == 4


def test_a_log_cut_in_a_gzip_member_keeps_its_whole_slates(tmp_path: Path) -> None:
    source = write(tmp_path, slate())
    (tmp_path / "rl4rs_dataset_a_rl.csv").unlink()
    lines = [HEADER, *(slate(session_id=str(n), timestamp=str(n * n)) for n in range(200))]
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "rl4rs_dataset_a_rl.csv.gz").write_bytes(packed[: len(packed) // 2])
    rows, count = read(source)
    usable = {row["user_id"] for row in rows if row["reason"] is None}
    assert 20 < len(usable) < 190
    assert usable == {f"a-rl-{n}" for n in range(len(usable))}
    assert rows[-1]["reason"] == "the compressed file is cut off or damaged here: Truncated compressed stream"
    assert count == len({row["line"] for row in rows})


def test_some_slates_can_be_read_alone(tmp_path: Path) -> None:
    source = write(tmp_path, *(slate(session_id=str(n)) for n in range(5)), slate(user_feedback=""))
    rows, count = read(source, only=[3, 7])
    assert Counter((row["line"], row["user_id"], row["reason"]) for row in rows) == {
        (3, "a-rl-1", None): 11,
        (7, "a-rl-7", "user_feedback is not a list of 9"): 1,
    }
    assert count == 6


def catalogue(source: RL4RS, kind: str) -> list[Row]:
    with connect() as con:
        found = getattr(source, kind)(con, source.discover())
        assert found.columns == list({"items": ITEM_COLUMNS, "users": USER_COLUMNS}[kind])
        return found.to_arrow_table().to_pylist()  # type: ignore[no-any-return]


def test_items_have_their_vector_layer_kind_and_price(tmp_path: Path) -> None:
    lines = [ITEM_HEADER, item(1, location="1", special_item="0"), item(2, location="3", special_item="1"), item(3)]
    items = catalogue(write(tmp_path, slate(), items="\r\n".join([*lines, item(1, price="9")])), "items")
    assert [(row["item_id"], row["price"], row["category"]) for row in items] == [
        ("1", 1.25, "1"),
        ("2", 2.25, "3"),
        ("3", 3.25, "2"),
    ]
    assert items[0]["features"] == [1.5] * 40 + [1, 0, 0, 0, 0]
    assert items[1]["features"] == [2.5] * 40 + [0, 0, 1, 1, 0]
    assert items[2]["features"] == [3.5] * 40 + [0, 1, 0, 0, 1]


def test_a_user_is_described_by_the_portrait_of_the_first_slate(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        slate(timestamp="900", sequence_id="3", user_protrait=portrait(100)),
        slate(timestamp="500", sequence_id="2", user_protrait=portrait(50)),
        slate(timestamp="500", sequence_id="1", user_protrait=portrait(1.5, -2)),
        slate(session_id="8", user_protrait="1,2,3"),
        slate(session_id="9", user_protrait=portrait(1).replace("1,0", "one,0", 1)),
    )
    [user] = catalogue(source, "users")
    assert user["user_id"] == "a-rl-7"
    assert user["features"] == pytest.approx([log(2.5), -log(3), *[0] * 30])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (f"{ITEM_HEADER}\n1 0.5,0.5 7 1 0\n", r"item_info.csv, line 2 .*: item_vec is not a list of 40 numbers; mend"),
        (f"{ITEM_HEADER}\n{item(1, price='x')}\n", r"item_info.csv, line 2 .*: its price is not a number; mend"),
        (f"{ITEM_HEADER}\n{item(1)}\n{item(2)} 9\n", r"item_info.csv, line 3 .*: has 6 columns instead of 5; mend"),
        (f"{ITEM_HEADER}\n{item(1, item_id='')}\n", r"item_info.csv, line 2 .*: it has no id; mend or remove the line"),
        ("id item_vec price location special_item\n1 2 3 4 5", r"item_info.csv has no column 'item_id'; did you mean"),
    ],
)
def test_a_broken_item_line_is_named(tmp_path: Path, items: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        catalogue(write(tmp_path, slate(), items=items), "items")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": "x"}, r"has no rl4rs_dataset_\[ab\]_\[sl\|rl\].csv; unpack rl4rs-dataset.tar.gz there"),
        ({"rl4rs_dataset_a_sl_train.csv": HEADER + "\nx"}, r"has no rl4rs_dataset_\[ab\]_\[sl\|rl\].csv"),
        ({"rl4rs_dataset_a_sl.csv": HEADER + "\nx"}, r"has no item_info.csv; it lies in rl4rs-dataset.tar.gz"),
        ({"rl4rs_dataset_a_sl.csv": HEADER + "\n"}, r"rl4rs_dataset_a_sl.csv holds no rows; fetch it again"),
        (
            {"rl4rs_dataset_a_sl.csv": HEADER.replace("user_feedback", "feedback") + "\nx"},
            r"rl4rs_dataset_a_sl.csv has no column 'user_feedback'; did you mean 'feedback'",
        ),
        ({"rl4rs_dataset_a_sl.csv": HEADER.replace("@", ",") + "\nx"}, r"has no column 'timestamp'"),
    ],
)
def test_a_folder_that_cannot_be_read_ends_in_one_sentence(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        rl4rs(tmp_path).discover()


def test_a_source_without_a_folder_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.path is not set; .* RAW=folder"):
        RL4RS(Rl4rsSource(kind="rl4rs"), tmp_path)
    with pytest.raises(DataError, match=r"There is no folder .*absent; set source.path or RAW"):
        rl4rs(tmp_path / "absent")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: neither HINDSIGHT_TEST_DATA nor {REAL} is there")
def test_the_publishers_files_are_read_without_a_refusal() -> None:
    experiment = load_experiment("rl4rs", raw=str(REAL))
    source = open_source(experiment.source, REAL)
    assert isinstance(source, RL4RS)
    start, end = experiment.partitions.start, experiment.partitions.end
    found = {}
    for place in range(3):
        rows, count = read(source, place=place)
        assert {row["reason"] for row in rows} == {None}
        assert all(start <= row["event_ts"].date() < end for row in rows)
        types = Counter(row["event_type"] for row in rows)
        value = sum(row["value"] for row in rows if row["event_type"] == "purchase")
        found[source.discover()[place].path.name[14:18]] = (
            count, types["impression"], types["purchase"], len({row["user_id"] for row in rows}), round(value, 1),
        )  # fmt: skip
    assert found == {"a_rl": (2, 18, 14, 2, 261.2), "a_sl": (1, 9, 9, 1, 163.0), "b_rl": (2, 18, 18, 1, 282.9)}
    items, users = catalogue(source, "items"), catalogue(source, "users")
    assert (len(items), {len(row["features"]) for row in items}) == (283, {45})
    assert Counter(row["category"] for row in items) == {"1": 39, "2": 108, "3": 136}
    assert round(sum(row["price"] for row in items), 1) == 19_051.2
    assert [row["user_id"] for row in users] == ["a-rl-1", "a-rl-2", "a-sl-1", "b-rl-1"]
    assert {len(row["features"]) for row in users} == {32}
