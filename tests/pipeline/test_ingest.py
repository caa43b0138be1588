"""Ingest: every raw record ends up once, as an event, as a duplicate or as a reject with its reason."""

import os
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline import facts
from pipeline.conservation import check_conservation, check_reject_ceiling, ingest_counts, published_counts
from pipeline.errors import DataError, StorageError
from pipeline.experiment import Partitions, load_experiment
from pipeline.ingest import build_events, build_rejects, content_hashes, discovered, stage, staged_folders
from pipeline.partitions import partitions_of
from pipeline.schemas import SCHEMAS
from pipeline.source_settings import MovieLensSource
from pipeline.sources import open_source
from pipeline.sources.base import EVENT_COLUMNS, Lines, RawFile
from pipeline.sources.movielens import MovieLens

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
DAYS = Partitions(grain="day", start=date(2000, 1, 1), end=date(2000, 1, 4))
FIRST_DAY, SECOND_DAY = 946_684_800, 946_771_200  # 1 and 2 January 2000 in UTC
TYPES = dict(zip(SCHEMAS["events"].names, SCHEMAS["events"].types, strict=True))
OUTSIDE = "outside the experiment's time range 2000-01-01 to 2000-01-04"


def ratings(*rows: tuple[Any, ...]) -> str:
    return "".join("::".join(map(str, row)) + "\n" for row in rows)


class Log:
    """A MovieLens folder under test, with its staging and its published tables."""

    def __init__(self, root: Path, partitions: Partitions = DAYS, **files: str | bytes) -> None:
        self.root, self.raw, self.partitions = root, root / "raw", partitions
        self.raw.mkdir(exist_ok=True)
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (self.raw / f"ratings.{name}.dat").write_bytes(data)
        self.source = MovieLens(MovieLensSource(kind="movielens", path=self.raw), root)

    def stage(self, code: str = "c0de") -> pa.Table:
        manifest = stage(self.source, self.source.discover(), self.root / "staged", self.partitions, code)
        self.staged = staged_folders(manifest.to_pylist(), self.root / "staged", self.partitions, code)
        return manifest

    def publish(self) -> dict[str, Path]:
        """The published events by partition key."""
        out = {p.key: self.root / "events" / p.key / "events.parquet" for p in partitions_of(self.partitions)}
        for partition in partitions_of(self.partitions):
            out[partition.key].unlink(missing_ok=True)
            build_events(list(self.staged.values()), partition, out[partition.key])
        return out

    def counts(self, published: dict[str, Path]) -> pa.Table:
        return ingest_counts(self.staged, published_counts(published))

    def rejects(self) -> list[tuple[Any, ...]]:
        build_rejects(self.staged, self.root / "rejects.parquet")
        return [tuple(row.values()) for row in pq.read_table(self.root / "rejects.parquet").to_pylist()]


def dirty(root: Path) -> Log:
    """Two files: in ``a`` a fact twice and two rejects; in ``b`` a fact of ``a`` again, and one after the range."""
    fact = (1, 10, 4, FIRST_DAY)
    return Log(
        root,
        a=ratings(fact, (2, 11, 7, FIRST_DAY), (2, 12, 3, SECOND_DAY), fact, ("", 12, 3, SECOND_DAY)),
        b=ratings((3, 12, 5, SECOND_DAY + 5), fact, (3, 13, 5, SECOND_DAY + 10 * 86_400)),
    )


def test_the_manifest_names_each_file_with_the_partitions_that_its_events_touch(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    (log.raw / "movies.dat").write_text("1::Toy Story (1995)::Comedy\n")
    manifest = log.stage()
    assert manifest.schema == SCHEMAS["manifest"]
    assert [(row["path"], row["kind"], row["rows"], row["partitions"]) for row in manifest.to_pylist()] == [
        ("ratings.a.dat", "events", 5, ["2000-01-01", "2000-01-02"]),
        ("ratings.b.dat", "events", 3, ["2000-01-01", "2000-01-02"]),
        ("movies.dat", "items", None, []),
    ]
    assert manifest["size"].to_pylist() == [file.path.stat().st_size for file in log.source.discover()]


def test_each_fact_is_published_once_in_its_partition_sorted_and_typed(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    log.stage()
    published = log.publish()
    tables = [pq.read_table(path) for path in published.values()]
    assert all(dict(zip(t.schema.names, t.schema.types, strict=True)) == TYPES for t in tables)
    assert [[(e["user_id"], e["item_id"], e["value"]) for e in table.to_pylist()] for table in tables] == [
        [("1", "10", 4.0)],
        [("2", "12", 3.0), ("3", "12", 5.0)],
        [],
    ]
    given = [[day.get(folder.name) for folder in log.staged.values()] for day in published_counts(published).values()]
    assert given == [[1, 0], [1, 1], [None, None]]  # of each file that touches the day
    first = tables[0].to_pylist()[0]
    assert first["event_ts"] == datetime(2000, 1, 1, tzinfo=UTC)
    assert (first["event_date"], first["event_type"], first["source"]) == (date(2000, 1, 1), "rating", "movielens")


def test_a_duplicate_belongs_to_the_file_that_repeats_it(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    log.stage()
    published = log.publish()
    counts = log.counts(published)
    assert counts.schema == SCHEMAS["ingest_counts"]
    assert [tuple(row.values()) for row in counts.to_pylist()] == [
        ("ratings.a.dat", 5, 0, 2, 1, 2, 0),
        ("ratings.b.dat", 3, 0, 1, 1, 1, 1),
    ]
    assert check_conservation(counts, published) == []


def test_a_reject_has_its_file_line_text_and_reason(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    log.stage()
    assert log.rejects() == [
        ("ratings.a.dat", 2, f"2::11::7::{FIRST_DAY}", "rating is not between 0.5 and 5"),
        ("ratings.a.dat", 5, f"::12::3::{SECOND_DAY}", "blank user id"),
        ("ratings.b.dat", 3, f"3::13::5::{SECOND_DAY + 864_000}", OUTSIDE),
    ]


def test_the_range_includes_its_start_and_excludes_its_end(tmp_path: Path) -> None:
    end = FIRST_DAY + 3 * 86_400
    log = Log(tmp_path, a=ratings(*((1, 10, 4, at) for at in (FIRST_DAY - 1, FIRST_DAY, end - 1, end))))
    log.stage()
    assert [line for _, line, _, _ in log.rejects()] == [1, 4]
    assert [pq.read_metadata(path).num_rows for path in log.publish().values()] == [1, 0, 1]


def test_a_copy_of_a_file_is_all_duplicates(tmp_path: Path) -> None:
    content = ratings((1, 10, 4, FIRST_DAY), (2, 12, 3, SECOND_DAY), (2, 12, 9, SECOND_DAY))
    log = Log(tmp_path, a=content, b=content)
    log.stage()
    assert len(list((tmp_path / "staged").iterdir())) == 1
    published = log.publish()
    counts = log.counts(published)
    assert [tuple(row.values())[1:] for row in counts.to_pylist()] == [(3, 0, 2, 0, 1, 0), (3, 0, 0, 2, 1, 0)]
    assert check_conservation(counts, published) == []
    assert [file for file, *_ in log.rejects()] == ["ratings.a.dat", "ratings.b.dat"]


def test_a_published_partition_that_lost_a_fact_is_noticed_and_one_not_yet_published_is_not(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    log.stage()
    published = log.publish()
    only_first = {"2000-01-01": published["2000-01-01"]}
    assert check_conservation(log.counts(only_first), only_first) == []
    lost = published["2000-01-02"]
    rest = pq.read_table(lost).slice(1)
    lost.unlink()  # a published file may be a link to the staged one
    pq.write_table(rest, lost)
    assert check_conservation(log.counts(published), published) == [
        "Partition 2000-01-02 holds 1 events, but 2 were counted. Ingest it again."
    ]


def test_a_file_that_a_published_partition_never_saw_is_noticed(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    log.stage()
    staged = log.staged
    log.staged = {"ratings.a.dat": staged["ratings.a.dat"]}
    published = log.publish()
    log.staged = staged
    assert check_conservation(log.counts(published), published) == [
        "ratings.b.dat: 3 records came in, but 0 events, 0 duplicates and 1 rejects make 1: 2 are missing. "
        "Ingest the file again."
    ]


def test_a_record_that_parsing_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = dirty(tmp_path)
    monkeypatch.setattr(MovieLens, "count", lambda self, con, file: 6 if "a.dat" in file.path.name else 3)
    log.stage()
    published = log.publish()
    assert check_conservation(log.counts(published), published) == [
        "ratings.a.dat: 6 records came in, but 2 events, 1 duplicates and 2 rejects make 5: 1 are missing. "
        "Ingest the file again."
    ]


def test_a_fact_that_writing_lost_is_missing_and_not_a_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = dirty(tmp_path)
    publish = facts._published

    def lose_a_user(rows: pa.Table, source: str) -> pa.Table:
        return publish(rows.filter(pc.not_equal(rows["user_id"], "2")), source)

    monkeypatch.setattr(facts, "_published", lose_a_user)
    log.stage()
    published = log.publish()
    assert check_conservation(log.counts(published), published) == [
        "ratings.a.dat: 5 records came in, but 1 events, 1 duplicates and 2 rejects make 4: 1 are missing. "
        "Ingest the file again.",
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("f", 5, 0, 3, 1, 1, 0), None),
        (("f", 0, 0, 0, 0, 0, 0), None),
        (("f", 5, 2, 5, 1, 1, 0), None),  # records that hold several facts
        (("f", 5, 0, 3, 1, 0, 0), "1 are missing"),
        (("f", 5, 0, 5, 1, 1, 0), "2 too many"),
    ],
)
def test_conservation_names_what_is_off(row: tuple[Any, ...], problem: str | None) -> None:
    sentences = check_conservation(counts_of(row), {})
    assert [problem in sentence for sentence in sentences if problem] == ([True] if problem else [])
    assert bool(sentences) == bool(problem)


def counts_of(row: tuple[Any, ...]) -> pa.Table:
    schema = SCHEMAS["ingest_counts"]
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True))], schema=schema)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("f", 100, 0, 90, 0, 10, 0), None),
        (("f", 100, 0, 50, 0, 50, 40), None),  # what the experiment leaves out is no dirt
        (("f", 0, 0, 0, 0, 0, 0), None),
        (("f", 100, 0, 89, 0, 11, 0), "f: 11 of 100 records were refused (11.00%), more than ingest.max_rejects = 10"),
    ],
)
def test_more_dirt_than_the_ceiling_is_a_problem(row: tuple[Any, ...], problem: str | None) -> None:
    sentences = check_reject_ceiling(counts_of(row), 0.1)
    assert [sentence.startswith(problem) for sentence in sentences if problem] == ([True] if problem else [])
    assert bool(sentences) == bool(problem)


def test_conservation_of_nothing_is_a_problem() -> None:
    assert check_conservation(SCHEMAS["ingest_counts"].empty_table(), {}) == [
        "No raw events file was counted; ingest the log first."
    ]


def test_a_file_is_parsed_once_however_it_is_named_or_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = dirty(tmp_path)
    before = log.stage()
    monkeypatch.setattr(MovieLens, "read", lambda *_: pytest.fail("parsed again"))
    os.utime(log.raw / "ratings.a.dat", (1, 1))
    assert log.stage().equals(before)
    (log.raw / "ratings.b.dat").rename(log.raw / "ratings.c.dat")
    assert log.stage()["path"].to_pylist() == ["ratings.a.dat", "ratings.c.dat"]


@pytest.mark.parametrize("change", ["content", "code", "range"])
def test_a_file_is_parsed_again_when_its_content_the_code_or_the_range_changes(tmp_path: Path, change: str) -> None:
    log = dirty(tmp_path)
    log.stage()
    before = set(log.staged.values())
    if change == "content":
        with (log.raw / "ratings.a.dat").open("a") as file:
            file.write(ratings((9, 9, 1, FIRST_DAY)))
    elif change == "range":
        log.partitions = Partitions(start=DAYS.start, end=date(2000, 2, 1))
    log.stage("new" if change == "code" else "c0de")
    assert len(set(log.staged.values()) - before) == (1 if change == "content" else 2)
    assert [reason == OUTSIDE for *_, reason in log.rejects()].count(True) == (0 if change == "range" else 1)


def test_nothing_half_staged_is_left_when_parsing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = dirty(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(MovieLens, "count", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            log.stage()
    assert list((tmp_path / "staged").iterdir()) == []
    assert len(log.stage()) == 2


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [(user % 7, item, 1 + item % 5, FIRST_DAY + 997 * user) for user in range(200) for item in range(10)]
    tables = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        log = Log(tmp_path / run, a=ratings(*rows), b=ratings(*reversed(rows), (1, 1, 9, 1)))
        log.stage()
        published = log.publish()
        log.rejects()
        outputs = [*published.values(), log.root / "rejects.parquet"]
        tables.append([path.read_bytes() for path in outputs])
    assert tables[0] == tables[1]


def test_discovered_changes_with_content_and_name_but_not_with_time_or_place(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    staging = tmp_path / "cache"
    seen = [discovered(log.source.discover(), staging)]
    path = log.raw / "ratings.a.dat"
    os.utime(path, (1, 1))
    assert discovered(log.source.discover(), staging) == seen[0]
    moved = tmp_path / "moved"
    shutil.copytree(log.raw, moved)
    there = [RawFile(moved / file.path.name, file.kind) for file in log.source.discover()]
    assert discovered(there, staging) == seen[0]
    path.write_text("1::2::3::4\n")
    seen.append(discovered(log.source.discover(), staging))
    path.rename(log.raw / "ratings.z.dat")
    seen.append(discovered(log.source.discover(), staging))
    assert len(set(seen)) == 3


def test_a_file_is_another_when_its_place_or_a_file_that_it_needs_says_something_else(tmp_path: Path) -> None:
    log, prices = tmp_path / "log.csv", tmp_path / "prices.csv"
    log.write_text("a\n")
    prices.write_text("1\n")
    plain = RawFile(log, "events")
    files = [plain, replace(plain, context="2024-01-01"), replace(plain, context="2024-01-02")]
    files.append(replace(plain, needs=(prices,)))
    seen = content_hashes(files, tmp_path / "cache")
    prices.write_text("2\n3\n")
    seen += content_hashes(files[3:], tmp_path / "cache")
    assert len(set(seen)) == 5


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = dirty(tmp_path)
    first = discovered(log.source.discover(), tmp_path / "cache")
    monkeypatch.setattr("pipeline.ingest._content_hash", lambda path: pytest.fail(f"{path} was read again"))
    assert discovered(log.source.discover(), tmp_path / "cache") == first


BAD = ratings((1, 2, 7, FIRST_DAY), (1, 2, 8, FIRST_DAY), ("", 2, 3, 4), (1, 2, 3), (1, "x", 3, 4), (1, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            BAD,
            r"ratings.a.dat has no usable record among 6: rating is not between 0.5 and 5 \(2\), blank user id \(1\), "
            r"has 2 columns instead of 4 \(1\)\. Check that it is the right file",
        ),
        ("\n\n", r"no usable record among 2: blank line \(2\)"),
        ("1::2::3::4\n".encode("utf-16"), r"no usable record among 2: holds a NUL byte \(2\)"),
        (ratings((1, 2, 3, FIRST_DAY * 1000)), r"time stamp is in milliseconds instead of seconds \(1\)"),
        (ratings((1, 2, 3, 4)), rf"no usable event: {OUTSIDE} \(1\)\. Check source.path \(RAW\)"),
        ("1::2::3", r"torn last line \(1\)"),
    ],
)
def test_a_log_with_nothing_usable_ends_in_one_sentence_each_time(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    log = Log(tmp_path, a=content)
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            log.stage()


def test_a_file_outside_the_range_is_a_spare_beside_a_usable_one(tmp_path: Path) -> None:
    log = Log(tmp_path, a=ratings((1, 2, 3, FIRST_DAY)), b=ratings((1, 2, 3, 4)))
    assert log.stage()["partitions"].to_pylist() == [["2000-01-01"], []]


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    missing = [RawFile(tmp_path / "gone.dat", "events")]
    for act in (lambda: discovered(missing, tmp_path), lambda: stage(FakeSource(""), missing, tmp_path, DAYS, "c")):
        with pytest.raises(DataError, match=r"Cannot read .*gone.dat: No such file or directory. Check the file"):
            act()


def test_a_damaged_staged_folder_says_what_to_do(tmp_path: Path) -> None:
    log = dirty(tmp_path)
    log.stage()
    (log.staged["ratings.a.dat"] / "counts.json").unlink()
    with pytest.raises(StorageError, match="is missing or damaged; delete it and ingest again"):
        log.stage()
    shutil.rmtree(log.staged["ratings.a.dat"])
    assert len(log.stage()) == 2


class FakeSource:
    """A source that trusts its log: whatever ``values`` says becomes events."""

    name = "fake"
    has_impressions = True
    unpacks = False

    def __init__(self, values: str) -> None:
        self.values = values

    def discover(self) -> list[RawFile]:
        return []

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        wanted = "true" if only is None else f"line in ({', '.join(map(str, only))})"
        columns = ", ".join((*FAKE_COLUMNS, "line", "raw"))
        return con.sql(f"select *, null::varchar as reason from (values {self.values}) as t({columns}) where {wanted}")

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return len(con.sql(f"select * from (values {self.values})").fetchall())

    def items(self, con: DuckDBPyConnection, files: Any) -> DuckDBPyRelation:
        raise NotImplementedError

    users = items


FAKE_COLUMNS = tuple(EVENT_COLUMNS)[:9]
NOON = "timestamptz '2000-01-01 12:00:00Z'"
USABLE = f"('u', 'i', {NOON}, 'impression', null::double, 's', 'r', 0, 0.5, 1, 'first')"


def staged_fake(tmp_path: Path, values: str) -> list[Path]:
    raw = tmp_path / "log.bin"
    raw.write_text(values)
    manifest = stage(FakeSource(values), [RawFile(raw, "events")], tmp_path / "staged", DAYS, "c")
    return list(staged_folders(manifest.to_pylist(), tmp_path / "staged", DAYS, "c").values())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"(' ', 'i', {NOON}, 'click', null, null, null, null, null, 2, 'x')", "blank user id"),
        (f"(null, 'i', {NOON}, 'click', null, null, null, null, null, 2, 'x')", "blank user id"),
        (f"('u', '', {NOON}, 'click', null, null, null, null, null, 2, 'x')", "blank item id"),
        ("('u', 'i', null, 'click', null, null, null, null, null, 2, 'x')", "no time stamp"),
        (f"('u', 'i', {NOON}, 'hover', null, null, null, null, null, 2, 'x')", "unknown event type"),
        (f"('u', 'i', {NOON}, null, null, null, null, null, null, 2, 'x')", "unknown event type"),
        (f"('u', 'i', {NOON}, 'watch', 'nan'::double, null, null, null, null, 2, 'x')", "value is not a finite number"),
        (f"('u', 'i', {NOON}, 'purchase', -0.01, null, null, null, null, 2, 'x')", "value is negative"),
        (f"(repeat('u', 1001), 'i', {NOON}, 'click', null, null, null, null, null, 2, 'x')", "user id is longer"),
        (f"('u', repeat('ü', 501), {NOON}, 'click', null, null, null, null, null, 2, 'x')", "item id is longer"),
        (f"('u', 'i', {NOON}, 'click', null, null, null, null, 0.0, 2, 'x')", "propensity is not in (0, 1]"),
        (f"('u', 'i', {NOON}, 'click', null, null, null, null, 1.5, 2, 'x')", "propensity is not in (0, 1]"),
        (f"('u', 'i', {NOON} + interval 9 day, 'click', null, null, null, null, null, 2, 'x')", OUTSIDE),
    ],
)
def test_an_unusable_event_is_refused_whatever_its_source_thought(tmp_path: Path, row: str, reason: str) -> None:
    [folder] = staged_fake(tmp_path, f"{USABLE}, {row}")
    [reject] = pq.read_table(folder / "rejects.parquet").to_pylist()
    assert (reject["line"], reject["raw"]) == (2, "x")
    assert reject["reason"].startswith(reason)
    assert pq.read_metadata(folder / "events" / "2000-01-01.parquet").num_rows == 1


@pytest.mark.parametrize(
    "other",
    [
        f"('v', 'i', {NOON}, 'impression', null, 's', 'r', 0, 0.5, 2, '')",
        f"('u', 'j', {NOON}, 'impression', null, 's', 'r', 0, 0.5, 2, '')",
        f"('u', 'i', {NOON} + interval 1 microsecond, 'impression', null, 's', 'r', 0, 0.5, 2, '')",
        f"('u', 'i', {NOON}, 'click', null, 's', 'r', 0, 0.5, 2, '')",
        f"('u', 'i', {NOON}, 'impression', 0, 's', 'r', 0, 0.5, 2, '')",
        f"('u', 'i', {NOON}, 'impression', null, null, 'r', 0, 0.5, 2, '')",
        f"('u', 'i', {NOON}, 'impression', null, 's', '', 0, 0.5, 2, '')",
        f"('u', 'i', {NOON}, 'impression', null, 's', 'r', 1, 0.5, 2, '')",
        f"('u', 'i', {NOON}, 'impression', null, 's', 'r', 0, null, 2, '')",
    ],
)
def test_facts_that_differ_in_any_column_are_two_and_the_same_fact_is_one(tmp_path: Path, other: str) -> None:
    again = USABLE.replace("1, 'first'", "3, 'again'")
    staged = staged_fake(tmp_path, f"{USABLE}, {other}, {again}")
    counts = build_events(staged, partitions_of(DAYS)[0], tmp_path / "e.parquet")
    assert list(counts.values()) == [2]
    assert len(set(pq.read_table(tmp_path / "e.parquet")["event_id"].to_pylist())) == 2


@pytest.mark.parametrize(
    ("grain", "first", "keys"),
    [
        ("day", date(1969, 12, 30), ["1969-12-30", "1969-12-31", "1970-01-01"]),
        ("month", date(1969, 11, 1), ["1969-12-01", "1969-12-01", "1970-01-01"]),
    ],
)
def test_an_event_before_1970_belongs_to_its_own_day(tmp_path: Path, grain: Any, first: date, keys: list[str]) -> None:
    moments = ["1969-12-30 23:59:59.999999Z", "1969-12-31 00:00:00Z", "1970-01-01 00:00:00Z"]
    values = [f"('u', 'i', timestamptz '{ts}', 'click', null, null, null, null, null, 1, '')" for ts in moments]
    raw, partitions = tmp_path / "log.bin", Partitions(grain=grain, start=first, end=date(1970, 2, 1))
    raw.write_text("before 1970")
    source = FakeSource(", ".join(values))
    manifest = stage(source, [RawFile(raw, "events")], tmp_path / "staged", partitions, "c").to_pylist()
    [folder] = staged_folders(manifest, tmp_path / "staged", partitions, "c").values()
    found = [(path.stem, row) for path in (folder / "events").iterdir() for row in pq.read_table(path).to_pylist()]
    by_time = sorted(found, key=lambda pair: pair[1]["event_ts"])
    assert [key for key, _ in by_time] == keys
    assert [row["event_date"] for _, row in by_time] == [date(1969, 12, 30), date(1969, 12, 31), date(1970, 1, 1)]


def test_a_partition_that_no_file_touches_is_an_empty_table(tmp_path: Path) -> None:
    assert build_events([], partitions_of(DAYS)[0], tmp_path / "e.parquet") == {}
    assert pq.read_table(tmp_path / "e.parquet").schema == SCHEMAS["events"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: neither HINDSIGHT_TEST_DATA nor {REAL} is there")
@pytest.mark.parametrize(
    ("name", "folder", "rows"),
    [
        ("movielens-100k", "ml-100k", 100_000),
        ("movielens-latest-small", "ml-latest-small", 100_836),
        ("movielens-1m", "ml-1m", 100_000),
    ],
)
def test_the_shipped_experiments_cover_the_publishers_logs(tmp_path: Path, name: str, folder: str, rows: int) -> None:
    experiment = load_experiment(name, raw=str(REAL / folder))
    assert len(partitions_of(experiment.partitions)) <= 60
    source = open_source(experiment.source, tmp_path)
    manifest = stage(source, source.discover(), tmp_path, experiment.partitions, "c")
    staged = staged_folders(manifest.to_pylist(), tmp_path, experiment.partitions, "c")
    [row] = ingest_counts(staged, {}).to_pylist()
    assert (row["rows_in"], row["events"], row["duplicates"], row["rejects"]) == (rows, rows, 0, 0)
    keys = {partition.key for partition in partitions_of(experiment.partitions)}
    assert set(manifest["partitions"].to_pylist()[0]) <= keys
