"""MovieLens: three formats, every broken line a reject with its reason, every broken folder one clear sentence."""

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.source_settings import MovieLensSource
from pipeline.sources import SOURCES, open_source
from pipeline.sources.base import EVENT_COLUMNS, ITEM_COLUMNS, USER_COLUMNS
from pipeline.sources.movielens import GENRES, OCCUPATIONS, MovieLens
from pipeline.warehouse import connect

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")
GOOD = b"1,31,2.5,1260759144"
Reject = tuple[int, str, str]
COLUMNS = {"items": ITEM_COLUMNS, "users": USER_COLUMNS}
SECONDS = datetime.fromtimestamp(1260759144, UTC)


def movielens(folder: Path) -> MovieLens:
    return MovieLens(MovieLensSource(kind="movielens", path=folder), folder)


def write(folder: Path, **files: bytes | str) -> MovieLens:
    """A log with these files; ``ratings_csv`` is ratings.csv."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("_", ".")).write_bytes(data)
    return movielens(folder)


def read(source: MovieLens, only: Sequence[int] | None = None) -> tuple[list[dict[str, Any]], list[Reject], int]:
    """Events as dicts, rejects as (line, raw, reason), and the independent count."""
    file = source.discover()[0]
    with connect() as con:
        rows = source.read(con, file, None if only is None else np.array(only)).to_arrow_table().to_pylist()
        count = source.count(con, file)
    rejects = [(row["line"], row["raw"], row["reason"]) for row in rows if row["reason"]]
    return [row for row in rows if not row["reason"]], rejects, count


def catalogue(source: MovieLens, kind: str) -> dict[str, dict[str, Any]]:
    with connect() as con:
        relation = getattr(source, kind)(con, source.discover())
        assert relation.columns == list(COLUMNS[kind])
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    found = {row[f"{kind[:-1]}_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_listing_the_sources_imports_none_and_opening_one_does(tmp_path: Path) -> None:
    modules = sorted(value.split(":")[0] for value in SOURCES.values())
    code = f"import sys, pipeline.sources; print([name for name in {modules} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert isinstance(open_source(MovieLensSource(kind="movielens", path=tmp_path), tmp_path), MovieLens)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("u.data", b"196\t242\t3\t881250949\n186\t302\t3.5\t891717742\n"),
        ("ratings.csv", b"userId,movieId,rating,timestamp\r\n196,242,3.0,881250949\r\n186,302,3.5,891717742\r\n"),
        ("ratings.dat", b"196::242::3::881250949\n186::302::3.5::891717742\n"),
        ("ratings.sample2.dat", b"196::242::3::881250949\n186::302::3.5::891717742"),
        ("ratings.csv", b'"userId","movieId","rating","timestamp"\n196,242,3,881250949\n186,302,3.5,891717742\n'),
        ("ratings.csv", b"196,242,3,881250949\n186,302,3.5,891717742"),
        ("ratings.csv", b"\xef\xbb\xbfuserId,movieId,rating,timestamp\n196,242,3,881250949\n186,302,3.5,891717742"),
        ("u.data", b"\xef\xbb\xbf196\t242\t3\t881250949\r\n186\t302\t3.5\t891717742\r\n"),
    ],
)
def test_every_format_gives_the_same_events(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    events, rejects, count = read(movielens(tmp_path))
    assert (rejects, count) == ([], 2)
    assert list(events[0]) == [*list(EVENT_COLUMNS)[:5], "line", "raw", "reason"]
    assert [(e["user_id"], e["item_id"], e["value"], e["event_type"]) for e in events] == [
        ("196", "242", 3.0, "rating"),
        ("186", "302", 3.5, "rating"),
    ]
    assert events[0]["event_ts"] == datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,31,7,1260759144", "rating is not between 0.5 and 5"),
        (b"1,31,0,1260759144", "rating is not between 0.5 and 5"),
        (b"1,31,nan,1260759144", "rating is not between 0.5 and 5"),
        (b"1,31,abc,1260759144", "rating is not a number"),
        (b"1,31,,1260759144", "rating is not a number"),
        (b"1,31,2.5", "has 3 columns instead of 4"),
        (b"1,31,2.5,1260759144,9", "has 5 columns instead of 4"),
        (b",31,2.5,1260759144", "blank user id"),
        (b"1,  ,2.5,1260759144", "blank movie id"),
        (b"bob,31,2.5,1260759144", "user id is not a whole number"),
        (b"1,4.5,2.5,1260759144", "movie id is not a whole number"),
        (b"1,31,2.5,1260759144000", "time stamp is in milliseconds instead of seconds"),
        (b"1,31,2.5,946684800000", "time stamp is in milliseconds instead of seconds"),
        (b"1,31,2.5,2009-12-14", "unreadable time stamp"),
        (b"1,31,2.5,-5", "unreadable time stamp"),
        (b"1,31,2.5,99999999999999999999999", "unreadable time stamp"),
        (b"1,31,2.5,12607\x0059144", "holds a NUL byte"),
        (b"1,31\xff,2.5,1260759144", "not valid UTF-8"),
        (b"1,31\x85,2.5,1260759144", "not valid UTF-8"),
        (b"", "blank line"),
        (b" \t\r", "blank line"),
        (b"userId,movieId,rating,timestamp", "user id is not a whole number"),
    ],
)
def test_a_broken_line_is_a_reject_with_its_number_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    header = b"userId,movieId,rating,timestamp\n"
    events, rejects, count = read(write(tmp_path, ratings_csv=header + GOOD + b"\n" + line + b"\n" + GOOD + b"\n"))
    assert [(event["line"], event["event_ts"]) for event in events] == [(2, SECONDS), (4, SECONDS)]
    assert [(number, why) for number, _, why in rejects] == [(3, reason)]
    assert count == len(events) + len(rejects)


@pytest.mark.parametrize(
    ("line", "raw"),
    [
        (b"1,31,7,1\r", "1,31,7,1"),
        (b"1,31\xff,2.5,1", r"1,31\xff,2.5,1"),
        (b"1,\x0031,2.5,1", r"1,\x0031,2.5,1"),
        ("1,é,2.5,1".encode(), "1,é,2.5,1"),
        (b"x" * 5000, "x" * 2000),
    ],
)
def test_a_reject_shows_its_text(tmp_path: Path, line: bytes, raw: str) -> None:
    _, rejects, _ = read(write(tmp_path, ratings_csv=GOOD + b"\n" + line + b"\n"))
    assert [text for _, text, _ in rejects] == [raw]


def test_a_torn_last_line_is_named_as_such(tmp_path: Path) -> None:
    events, rejects, count = read(write(tmp_path, ratings_csv=GOOD + b"\n1,31,2."))
    assert (len(events), rejects, count) == (1, [(2, "1,31,2.", "torn last line")], 2)


def test_lines_are_numbered_across_read_blocks_and_an_endless_line_is_one_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.text.BLOCK", 64)
    content = (GOOD + b"\n") * 100 + b"9" * 1000 + b"\n" + GOOD
    events, rejects, count = read(write(tmp_path, ratings_csv=content))
    assert [event["line"] for event in events] == [*range(1, 101), 102]
    assert [(line, reason) for line, _, reason in rejects] == [(101, "has 1 columns instead of 4")]
    assert count == 102


def test_some_lines_can_be_read_alone(tmp_path: Path) -> None:
    content = b"userId,movieId,rating,timestamp\n" + b"".join(b"%d,31,2.5,1260759144\n" % n for n in range(9)) + b"x"
    source = write(tmp_path, ratings_csv=content)
    events, rejects, count = read(source, [3, 10, 11])
    assert [(event["line"], event["user_id"]) for event in events] == [(3, "1"), (10, "8")]
    assert (rejects, count) == ([(11, "x", "torn last line")], 10)


def test_a_folder_may_hold_several_ratings_files_of_one_format(tmp_path: Path) -> None:
    for name in ("ratings.dat", "ratings.late.dat"):
        (tmp_path / name).write_bytes(b"1::2::3::978300760\n")
    assert [file.path.name for file in movielens(tmp_path).discover()] == ["ratings.dat", "ratings.late.dat"]


def make(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("content", "below", "message"),
    [
        ({}, "absent", "There is no folder .*absent; set source.path or RAW"),
        ({"u.data": GOOD}, "u.data", "u.data is a file; give the folder that holds it"),
        ({}, "", r"has no MovieLens ratings \(one of u.data, ratings.csv, ratings\*.dat\); it holds nothing"),
        ({"log.txt": b"x"}, "", "it holds log.txt"),
        ({"ratings.csv": b""}, "", "ratings.csv holds no ratings; fetch it again"),
        ({"ratings.csv": b"userId,movieId,rating,timestamp\r\n"}, "", "ratings.csv holds no ratings"),
        ({"ratings.csv": b"userId,movieId,timestamp,rating\n1,2,3,4"}, "", "has the columns 'userid,movieid,timestamp"),
        ({"ratings.csv": GOOD, "u.data": GOOD}, "", r"several MovieLens logs \(u.data and ratings.csv\); keep one"),
    ],
)
def test_a_folder_that_cannot_be_read_ends_in_one_sentence(
    tmp_path: Path, content: dict[str, bytes], below: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        movielens(make(tmp_path, content) / below).discover()


def test_a_source_without_a_path_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.path is not set; .* RAW=folder"):
        MovieLens(MovieLensSource(kind="movielens"), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"movies.csv": b"movieId,title,genres\n1,Toy Story (1995),Comedy\n2,Juman"},
            r"line 3: '2,Juman' is no MovieLens item",
        ),
        ({"movies.csv": b"x,Toy Story (1995),Comedy\n"}, r"movies.csv, line 1: .* mend or remove the line"),
    ],
)
def test_a_broken_movie_line_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    source = movielens(make(tmp_path, {"ratings.csv": GOOD, **files}))
    with pytest.raises(DataError, match=message):
        catalogue(source, "items")


def test_a_broken_user_line_is_named(tmp_path: Path) -> None:
    source = movielens(make(tmp_path, {"u.data": b"1\t2\t3\t4\n", "u.user": b"1|24|M|technician|85711\n2|53|F\n"}))
    with pytest.raises(DataError, match=r"u.user, line 2: '2\|53\|F' is no MovieLens user"):
        catalogue(source, "users")


def flags(*places: int) -> str:
    """The 19 flags of u.item: 0 unknown, 3 Animation, 4 Children's, 5 Comedy, 8 Drama."""
    return "|".join("1" if place in places else "0" for place in range(19))


@pytest.mark.parametrize(
    "files",
    [
        {
            "u.data": b"1\t1\t3\t4\n",
            "u.item": (
                f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags(3, 4, 5)}\n"
                f"2|Misérables, Les (1985) (V)|||http://y|{flags(8)}\n3|unknown||||{flags(0)}\n"
            ).encode("latin-1"),
        },
        {
            "ratings.csv": GOOD,
            "movies.csv": (
                "movieId,title,genres\r\n1,Toy Story (1995),Animation|Children|Comedy\r\n"
                '2,"Misérables, Les (1985) (V)",Drama\r\n3,unknown,(no genres listed)\r\n1,Again (1999),Drama\r\n'
            ).encode(),
        },
        {
            "ratings.dat": b"1::1::3::4\n",
            "movies.dat": (
                "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Misérables, Les (1985) (V)::Drama\n3::unknown::\n"
            ).encode("latin-1"),
        },
    ],
)
def test_items_are_the_same_in_every_format(tmp_path: Path, files: dict[str, bytes]) -> None:
    items = catalogue(movielens(make(tmp_path, files)), "items")
    assert [items[key]["title"] for key in "123"] == ["Toy Story (1995)", "Misérables, Les (1985) (V)", "unknown"]
    assert [items[key]["category"] for key in "123"] == ["Animation", "Drama", "unknown"]
    genres = [[g for g, on in zip(GENRES, items[key]["features"][:-1], strict=True) if on] for key in "123"]
    assert genres == [["Animation", "Children", "Comedy"], ["Drama"], []]
    # The third has no year and gets the mean of the others.
    assert [items[key]["features"][-1] for key in "123"] == pytest.approx([0.95, 0.85, 0.90])


def test_a_quoted_title_keeps_its_commas_and_quotes(tmp_path: Path) -> None:
    line = b'7789,"11\'09""01 - September 11, (2002)",Drama\r\n'
    items = catalogue(movielens(make(tmp_path, {"ratings.csv": GOOD, "movies.csv": line})), "items")
    assert items["7789"]["title"] == "11'09\"01 - September 11, (2002)"


@pytest.mark.parametrize(
    ("files", "occupation"),
    [
        ({"u.data": b"1\t1\t3\t4\n", "u.user": b"1|24|M|writer|85711\n2|56|F|artist|94043\n"}, (20, 1)),
        ({"ratings.dat": b"1::1::3::4\n", "users.dat": b"1::M::24::20::85711\n2::F::56::1::9\n"}, (20, 1)),
    ],
)
def test_users_have_age_gender_and_occupation(
    tmp_path: Path, files: dict[str, bytes], occupation: tuple[int, int]
) -> None:
    users = catalogue(movielens(make(tmp_path, files)), "users")
    assert users["1"]["features"][:3] == pytest.approx([0.24, 0, 1])
    assert users["2"]["features"][:3] == pytest.approx([0.56, 1, 0])
    for user, place in zip("12", occupation, strict=True):
        jobs = users[user]["features"][3:]
        assert [i for i, on in enumerate(jobs) if on] == [place]
        assert len(jobs) == len(OCCUPATIONS) == 21


def test_a_log_without_catalogue_files_has_no_items_and_no_users(tmp_path: Path) -> None:
    source = write(tmp_path, ratings_csv=GOOD)
    assert catalogue(source, "items") == catalogue(source, "users") == {}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: neither HINDSIGHT_TEST_DATA nor {REAL} is there")
@pytest.mark.parametrize(
    ("folder", "ratings", "items", "users"),
    [("ml-100k", 100_000, 1_682, 943), ("ml-latest-small", 100_836, 9_742, 0), ("ml-1m", 100_000, 3_883, 6_040)],
)
def test_the_publishers_files_are_read_without_a_reject(folder: str, ratings: int, items: int, users: int) -> None:
    source = movielens(REAL / folder)
    file = source.discover()[0]
    with connect() as con:
        rows = source.read(con, file).aggregate("count(*), count(event_ts), count(reason)").fetchall()
        assert rows == [(ratings, ratings, 0)]
        assert source.count(con, file) == ratings
    assert len(catalogue(source, "items")) == items
    assert len(catalogue(source, "users")) == users
