"""Text files: every line is given once, in order, under its number, and what is wrong with it is said."""

import bz2
import csv
import gzip
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError
from pipeline.sources import fields, text
from pipeline.sources.fields import BOM
from pipeline.sources.text import Layout, count_lines, count_rows, first_line, has_rows, header, read_lines

AB = Layout(columns=("a", "b"))
QUOTED = Layout(columns=("a", "b"), quote='"')
CUT = "the compressed file is cut off or damaged here"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@cache
def con() -> duckdb.DuckDBPyConnection:
    """One connection for all: opening one takes longer than most of these tests."""
    return duckdb.connect(config={"threads": 1})


def small_blocks(patch: pytest.MonkeyPatch, block: int, longest: int = 1 << 20) -> None:
    patch.setattr(text, "BLOCK", block)
    patch.setattr(text, "PIECE", block)
    patch.setattr(text, "LONGEST", longest)


def lines(path: Path, content: bytes, encoding: str = "utf-8", only: list[int] | None = None) -> list[Row]:
    path.write_bytes(content)
    read_lines(con(), path, encoding, None if only is None else np.array(only, int))
    return con().sql("select * from lines").to_arrow_table().to_pylist()  # type: ignore[no-any-return]


def rows(path: Path, content: bytes, layout: Layout, only: list[int] | None = None) -> list[Row]:
    path.write_bytes(content)
    found = text.read_rows(con(), path, layout, None if only is None else np.array(only, int))
    return found.to_arrow_table().to_pylist()  # type: ignore[no-any-return]


def usable(found: list[Row]) -> list[Row]:
    """Rows without their columns where these are unusable."""
    return [{name: row[name] for name in (text.ADDED if row["fault"] else row)} for row in found]


def split_lines(content: bytes) -> list[bytes]:
    """The independent reference: what stands between line feeds, each with its own."""
    *whole, rest = content.removeprefix(BOM).split(b"\n")
    return [line + b"\n" for line in whole] + [rest] * bool(rest)


# Lines


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    content=st.lists(
        st.sampled_from(
            [b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xc3", b"\xa9", "é日".encode(), BOM, b"ab", b",", b'"']
        )
    ).map(b"".join),
    block=st.integers(1, 12).map(lambda n: n * 3),  # a byte order mark is three bytes long
)
def test_any_bytes_come_back_line_by_line_whatever_the_blocks(folder: Path, content: bytes, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, block)
        found = lines(folder / "any.csv", content)
        assert count_lines(folder / "any.csv") == len(found)
        assert has_rows(folder / "any.csv") == bool(found)
        assert has_rows(folder / "any.csv", 1) == (len(found) > 1)
    expected = split_lines(content)
    assert [row["line"] for row in found] == list(range(1, len(expected) + 1))
    for row, raw in zip(found, expected, strict=True):
        if b"\0" in raw:
            assert row["broken"] == "holds a NUL byte"
        elif raw.decode("utf-8", errors="replace").encode() != raw:
            assert row["broken"] == "not valid UTF-8"
        else:
            assert (row["text"].encode(), row["broken"]) == (raw.rstrip(b"\r\n"), None)
        assert row["torn"] == (not raw.endswith(b"\n"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=12),
    wanted=st.sets(st.integers(1, 14)),
    block=st.integers(1, 50),
    torn=st.booleans(),
)
def test_some_lines_are_the_same_as_among_all(
    folder: Path, sizes: list[int], wanted: set[int], block: int, torn: bool
) -> None:
    content = b"".join(b"%d" % place * size + b"\n" for place, size in enumerate(sizes))[: -1 if torn else None]
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, block, longest=40)
        every = lines(folder / "some.csv", content)
        assert lines(folder / "some.csv", content, only=sorted(wanted)) == [r for r in every if r["line"] in wanted]
    assert len(every) == len(split_lines(content)) == count_lines(folder / "some.csv")


def test_nothing_is_read_past_the_last_wanted_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 8)
    given_blocks = []
    blocks = text._blocks
    monkeypatch.setattr(text, "_blocks", lambda path: (given_blocks.append(b) or b for b in blocks(path)))
    assert [row["text"] for row in lines(tmp_path / "long.csv", b"a,b\n" * 1000, only=[2, 3])] == ["a,b"] * 2
    assert len(given_blocks) == 2


@pytest.mark.parametrize("block", [7, 16, 64, 1 << 22])
def test_an_endless_line_is_refused_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    small_blocks(monkeypatch, block, longest=20)
    content = b"x" * 19 + b"\n" + b"y" * 20 + b"\n" + b"z" * 500 + b"\nlast"
    found = lines(tmp_path / "endless.csv", content)
    assert [row["broken"] for row in found] == [None, *["longer than 20 bytes"] * 2, None]
    assert [len(row["text"]) for row in found] == [19, 20, 21, 4]
    assert found[3] == {"line": 4, "text": "last", "broken": None, "torn": True}
    assert count_lines(tmp_path / "endless.csv") == 4
    torn = lines(tmp_path / "endless.csv", b"a\n" + b"z" * 500)
    assert [row["broken"] for row in torn] == [None, "longer than 20 bytes"]


@pytest.mark.parametrize(
    ("encoding", "raw", "shown", "broken"),
    [
        ("utf-8", "é".encode(), "é", None),
        ("UTF8", "é".encode(), "é", None),
        ("utf-8", b"\xe9", "\\xe9", "not valid UTF-8"),
        ("utf-8", b"\xed\xa0\x80", "\\xed\\xa0\\x80", "not valid UTF-8"),  # half of a surrogate pair
        ("latin-1", b"\xe9\x85", "é\x85", None),
        ("cp1252", b"\x80", "€", None),
        ("cp1252", b"\x81", "\\x81", "not valid CP1252"),
        ("latin-1", b"a\0b", "a\\x00b", "holds a NUL byte"),
    ],
)
def test_bytes_that_are_no_text_are_named_and_shown(
    tmp_path: Path, encoding: str, raw: bytes, shown: str, broken: str | None
) -> None:
    found = lines(tmp_path / "bytes.csv", b"good\n" + raw + b"\ngood", encoding)
    assert [row["text"] for row in found] == ["good", shown, "good"]
    assert [row["broken"] for row in found] == [None, broken, None]


@pytest.mark.parametrize("content", [b"", BOM])
def test_a_file_without_a_byte_of_text_has_no_lines(tmp_path: Path, content: bytes) -> None:
    assert lines(tmp_path / "empty.csv", content) == []
    assert count_lines(tmp_path / "empty.csv") == count_rows(tmp_path / "empty.csv", Layout()) == 0


# Compressed files


def packed(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".GZ": lambda content: gzip.compress(content, mtime=0),
    ".bz2": bz2.compress,
    ".zst": lambda content: packed(content, "zstd"),
    ".zstd": lambda content: packed(content, "zstd"),
    ".lz4": lambda content: packed(content, "lz4"),
}
NUMBERS = b"".join(b"%d,%d\n" % (n, n * n % 7919) for n in range(400))


@pytest.mark.parametrize("ending", PACKERS)
def test_a_compressed_file_reads_as_the_plain_one_also_in_several_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    pack = PACKERS[ending]
    plain = lines(tmp_path / "plain.csv", BOM + NUMBERS)
    path = tmp_path / f"packed.csv{ending}"
    assert lines(path, pack(BOM + NUMBERS)) == plain
    assert lines(path, pack(BOM + NUMBERS[:1001]) + pack(NUMBERS[1001:])) == plain
    small_blocks(monkeypatch, 100)
    assert lines(path, pack(BOM + NUMBERS)) == plain
    assert count_lines(path) == 400
    assert lines(path, pack(BOM + NUMBERS), only=[3, 399]) == [plain[2], plain[398]]


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".lz4"])
def test_a_file_cut_anywhere_gives_its_sound_lines_and_says_where_it_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    whole = PACKERS[ending](NUMBERS[:1000])
    path = folder / f"cut.csv{ending}"
    reference = split_lines(NUMBERS[:1000])
    kept = []
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        # Without DuckDB, which would take a minute for this many files.
        found = [row for batch, _ in text._blocks_of_lines(path, "utf-8", None) for row in batch.to_pylist()]
        assert [row["line"] for row in found] == list(range(1, count_lines(path) + 1))
        assert found[-1]["broken"].startswith(CUT)
        sound = [row["text"].encode() + b"\n" for row in found if row["broken"] is None]
        assert sound == reference[: len(sound)]
        assert [row["broken"] for row in found[len(sound) : -1]] in ([], ["cut off with its compressed file"])
        kept.append(len(sound))
    assert kept == sorted(kept)
    if ending == ".gz":  # it is unpacked as it comes, in the middle of a block too
        assert kept[len(kept) // 2] > 40


def test_a_damaged_member_loses_no_line_before_it(tmp_path: Path) -> None:
    member = gzip.compress(NUMBERS, mtime=0)
    found = lines(tmp_path / "two.csv.gz", member + member[:40] + bytes(100))
    assert [row["text"].encode() + b"\n" for row in found[:400]] == split_lines(NUMBERS)
    assert found[-1]["broken"].startswith(CUT)
    assert found[-1]["line"] == len(found) == count_lines(tmp_path / "two.csv.gz")


def test_a_plain_file_with_the_ending_of_a_compressed_one_is_one_refused_record(tmp_path: Path) -> None:
    [only] = lines(tmp_path / "plain.csv.gz", NUMBERS)
    assert only["line"] == 1
    assert only["broken"].startswith(CUT)
    with pytest.raises(DataError, match=r"plain.csv.gz does not start with a line of column names"):
        header(tmp_path / "plain.csv.gz", Layout())


# Rows

FIELD = st.text(st.sampled_from("a\",'| \té;日\\"), max_size=5)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    table=st.lists(st.tuples(FIELD, FIELD), max_size=6), everything=st.booleans(), separator=st.sampled_from(",|;\t")
)
def test_quoted_rows_read_as_python_reads_them(
    folder: Path, table: list[tuple[str, str]], everything: bool, separator: str
) -> None:
    out = io.StringIO()
    quoting = csv.QUOTE_ALL if everything else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=separator, quoting=quoting, lineterminator="\r\n").writerows(table)
    layout = Layout(columns=("a", "b"), quote='"', separator=separator)
    found = rows(folder / "quoted.csv", out.getvalue().encode(), layout)
    assert [(row["a"], row["b"]) for row in found] == [tuple(pair) for pair in table]
    assert {row["fault"] for row in found} <= {None}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(table=st.lists(st.text(st.sampled_from('a",'), min_size=1, max_size=10), min_size=1, max_size=50))
def test_quotes_in_any_order_are_split_as_by_python_or_refused(folder: Path, table: list[str]) -> None:
    found = rows(folder / "quotes.csv", "".join(line + "\n" for line in table).encode(), QUOTED)
    for row, line in zip(found, table, strict=True):
        try:
            expected = next(csv.reader([line], strict=True))
        except csv.Error:
            assert row["fault"] == "a quote is not closed, or text follows one"
            continue
        if len(expected) == 2:
            assert (row["a"], row["b"], row["fault"]) == (*expected, None)
        else:
            assert row["fault"] == f"has {len(expected)} columns instead of 2"


@pytest.mark.parametrize(
    ("layout", "content", "expected"),
    [
        (AB, b"1,2\n", ("1", "2", "1,2", None)),
        (AB, b"1,2", ("1", "2", "1,2", None)),
        (AB, b"1,2\r\n", ("1", "2", "1,2", None)),
        (AB, b" 1 ,\t2 \n", (" 1 ", "\t2 ", " 1 ,\t2 ", None)),
        (AB, b",\n", ("", "", ",", None)),
        (AB, b'"1",2\n', ('"1"', "2", '"1",2', None)),
        (Layout(columns=("a", "b"), separator="::"), b"1:0::2\n", ("1:0", "2", "1:0::2", None)),
        (Layout(columns=("a", "b"), separator="\x01"), b"1\x012\n", ("1", "2", "1\x012", None)),
        (Layout(columns=("a", "b"), separator="]", quote="^"), b"^1]^^^]2\n", ("1]^", "2", "^1]^^^]2", None)),
        (Layout(columns=("a", "b"), separator="x", quote="y"), b"y1xyx2\n", ("1x", "2", "y1xyx2", None)),
        (Layout(columns=("a", "b"), encoding="latin-1"), b"\xe9,\xfc\n", ("é", "ü", "é,ü", None)),
        (Layout(columns=("from", 'a "b"')), b"1,2\n", ("1", "2", "1,2", None)),
    ],
)
def test_a_good_row_is_split_into_its_columns(
    tmp_path: Path, layout: Layout, content: bytes, expected: tuple[str, ...]
) -> None:
    [row] = rows(tmp_path / "good.csv", content, layout)
    assert list(row) == [*layout.columns, "line", "raw", "fault"]
    assert (row[layout.columns[0]], row[layout.columns[1]], row["raw"], row["fault"]) == expected


@pytest.mark.parametrize(
    ("layout", "line", "fault"),
    [
        (AB, b"1\n", "has 1 columns instead of 2"),
        (AB, b"1,2,\n", "has 3 columns instead of 2"),
        (AB, b"\n", "blank line"),
        (AB, b" \t\r\n", "blank line"),
        (Layout(columns=("a",)), b" \r\n", "blank line"),
        (AB, b"1\r2\r3,4,5\r\n", "has 3 columns instead of 2"),  # lone carriage returns break no line
        (AB, b"1,\0\n", "holds a NUL byte"),
        (AB, b"1,\xe9\n", "not valid UTF-8"),
        (AB, b"1,2,3", "torn last line"),
        (AB, b"1", "torn last line"),
        (QUOTED, b'1,"2\n', "a quote is not closed, or text follows one"),
        (QUOTED, b'1,"2', "a quote is not closed, or text follows one"),
        (QUOTED, b'1,"2"3\n', "a quote is not closed, or text follows one"),
        (QUOTED, b'1,"2","3"\n', "has 3 columns instead of 2"),
        (QUOTED, b"\n", "blank line"),
    ],
)
def test_a_bad_row_says_what_is_wrong_with_it(tmp_path: Path, layout: Layout, line: bytes, fault: str) -> None:
    good = b",".join(b"7" for _ in layout.columns) + b"\n"
    found = rows(tmp_path / "bad.csv", good + line, layout)
    assert [(row["line"], row["fault"]) for row in found] == [(1, None), (2, fault)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    content=st.lists(
        st.sampled_from([b"1,2,3\n"] * 3 + [b"\n", b"\r\n", b"\r", b"\0", b"\xff", "é".encode(), BOM, b"a", b",", b'"'])
    ).map(b"".join),
    layout=st.builds(
        Layout,
        columns=st.integers(1, 3).map(lambda width: ("a", "b", "c")[:width]),
        quote=st.sampled_from(["", '"']),
        separator=st.sampled_from(",a"),
    ),
    block=st.integers(1, 60),
    many=st.integers(0, 3),
)
def test_arrow_and_sql_split_alike(folder: Path, content: bytes, layout: Layout, block: int, many: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, block, longest=40)
        patch.setattr(fields, "MANY", many)
        by_arrow = usable(rows(folder / "alike.csv", content, layout))
        patch.setattr(fields.Splitter, "_by_arrow", lambda *_: None)
        assert by_arrow == usable(rows(folder / "alike.csv", content, layout))


@pytest.mark.parametrize(
    ("content", "block", "expected"),
    [
        (b"1,2\n" + BOM + b"3,4\n", 4, [("1", None), ("\ufeff3", None)]),
        # Cut off, the long line runs into the next; a lone carriage return parts another: again as many as there are.
        (
            b"x" * 30 + b"\n1,2\n5,6\r7\n",
            99,
            [("x" * 21, "longer than 20 bytes"), ("1", None), ("5", None)],
        ),
    ],
)
def test_what_arrow_would_read_otherwise_is_left_to_sql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block: int, expected: list[tuple[str, str | None]]
) -> None:
    small_blocks(monkeypatch, block, longest=20)
    assert [(row["a"], row["fault"]) for row in rows(tmp_path / "other.csv", content, AB)] == expected


def test_plain_lines_are_split_by_arrow_and_the_odd_ones_between_them_by_sql() -> None:
    content = b"1,2\n3,4\n\n5\n6,7\n8,9,10\n"
    lines = pa.record_batch([pa.array(content.decode().splitlines())], ["text"])
    batches = list(fields.Splitter(",", '"', 2).split(lines, content))
    assert pa.Table.from_batches(batches)["split"].to_pylist() == [
        {"field1": "1", "field2": "2"},
        {"field1": "3", "field2": "4"},
        {"field1": "", "field2": ""},
        None,
        {"field1": "6", "field2": "7"},
        None,
    ]
    assert [batch["text"].to_pylist() for batch in batches] == [["1,2", "3,4", ""], ["5"], ["6,7"], ["8,9,10"]]


def test_a_raw_line_is_shown_without_its_break_up_to_2000_characters(tmp_path: Path) -> None:
    [row] = rows(tmp_path / "wide.csv", b"x" * 5000 + b"\r\n", AB)
    assert row["raw"] == "x" * 2000


def test_a_header_is_line_one_and_no_row(tmp_path: Path) -> None:
    path = tmp_path / "headed.csv"
    found = rows(path, BOM + b'"a", b \r\n1,2\r\n\r\n3,4', Layout(quote='"'))
    assert [(row["line"], row["fault"]) for row in found] == [(2, None), (3, "blank line"), (4, None)]
    assert [(row["a"], row["b"]) for row in (found[0], found[2])] == [("1", "2"), ("3", "4")]
    assert count_rows(path, Layout()) == 3
    assert [row["line"] for row in rows(path, path.read_bytes(), Layout(quote='"'), only=[1, 4])] == [4]
    assert first_line(path) == '"a", b '
    assert not has_rows(_write(path, b"a,b\r\n"), 1)
    assert has_rows(_write(path, b"a,b\r\n1"), 1)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "layout", "message"),
    [
        (b"", Layout(), "does not start with a line of column names; fetch it again"),
        (b" \r\n1,2\n", Layout(), "does not start with a line of column names"),
        (b"user,itm\n1,2\n", Layout(needed=("user", "item")), "has no column 'item'; did you mean 'itm'?"),
        (b"1,2\n", Layout(needed=("user",)), "has no column 'user'; known are: 1, 2"),
        (b"user;item\n", Layout(needed=("user",)), "has no column 'user'; did you mean 'user;item'"),
        (b"a,b,A\n", Layout(), "names the column 'a' twice; rename one of them"),
        (b"a,Line\n", Layout(), "has a column 'Line', which is the name of a column that is added; rename it"),
        (b"1,2\n", Layout(columns=("raw", "b")), "has a column 'raw', which is the name of a column that is added"),
        ("a,b\n1,2\n".encode("utf-16"), Layout(), "is not plain text, or written in UTF-16; save it as UTF-8"),
    ],
)
def test_a_header_that_cannot_be_used_ends_in_one_sentence(
    tmp_path: Path, content: bytes, layout: Layout, message: str
) -> None:
    with pytest.raises(DataError) as error:
        rows(tmp_path / "header.csv", content, layout)
    assert str(tmp_path / "header.csv") in str(error.value)
    assert message in str(error.value)


def test_a_column_without_a_name_is_called_by_its_place(tmp_path: Path) -> None:
    assert header(_write(tmp_path / "index.csv", b",a,\n"), Layout()) == ("column0", "a", "column2")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"separator": ""}, "separator '': give one character"),
        ({"separator": "::", "quote": '"'}, "separator '::': give one character"),
        ({"quote": "''"}, "quote \"''\": give one character that is not the separator"),
        ({"quote": ","}, "quote ',': give one character that is not the separator"),
        ({"encoding": "klingon"}, "encoding 'klingon' cannot be read; name another"),
        ({"encoding": "utf-16"}, "encoding 'utf-16' cannot be read"),
        ({"encoding": "base64"}, "encoding 'base64' cannot be read"),
    ],
)
def test_a_layout_that_cannot_be_read_is_refused(settings_: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Layout(**settings_)  # type: ignore[arg-type]
    assert message in str(error.value)
