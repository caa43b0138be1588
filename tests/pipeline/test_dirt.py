"""The dirt of real logs, all at once: nothing is lost, and every refused record is found again by file and line."""

import gzip
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.conservation import check_conservation, check_reject_ceiling, ingest_counts, published_counts
from pipeline.experiment import Partitions
from pipeline.ingest import build_events, build_rejects, stage, staged_folders
from pipeline.partitions import partitions_of
from pipeline.schemas import SCHEMAS
from pipeline.source_settings import MappingSource
from pipeline.sources.mapping import MappedLog

DAYS = Partitions(start=date(2024, 1, 1), end=date(2024, 1, 4))
SETTINGS = {
    "kind": "mapping",
    "events": [
        {
            "files": "*.csv*",
            "columns": ["time", "user", "item", "type", "price"],
            "user": "user",
            "item": "item",
            "time": "time",
            "type": {"column": "type", "map": {"view": "impression", "buy": "purchase"}, "ignore": ["login"]},
            "value": "price",
        }
    ],
}
GOOD = [
    b"2024-01-02T10:00:00Z,u1,i1,view,\n",
    b"2024-01-01T09:00:00Z,u1,i2,view,\n",  # out of order
    b"2024-01-03T23:59:59.999999Z,u2,i1,buy,9.90\n",
    b'2024-01-02T10:00:01Z,"u,3",i1,view,\r\n',  # a quoted separator, CRLF
    "2024-01-02T10:00:02Z,ü,i1,view,\n".encode(),
]
BAD = {
    b"2024-01-09T10:00:00Z,u1,i1,view,\n": "outside the experiment's time range",
    b"2024-01-02T10:00:00Z,,i1,view,\n": "blank user id",
    b"2024-01-02T10:00:00Z,u1,  ,view,\n": "blank item id",
    b"2024-01-02T10:00:00Z,u1,i1\n": "has 3 columns instead of 5",
    b"2024-01-02T10:00:00Z,u1,i1,view,,,\n": "has 7 columns instead of 5",
    b"2024-01-02T10:00:00Z,u1,i1,hover,\n": "",
    b"2024-01-02T10:00:00Z,u1,i1,login,\n": "ignored type",
    b"2024-01-02T10:00:00Z,u1,i1,buy,-1\n": "value is negative",
    b"2024-01-02T10:00:00Z,u1,i1,buy,many\n": "",
    b"yesterday,u1,i1,view,\n": "",
    b"2024-01-02T10:00:00Z," + b"x" * 10_000 + b",i1,view,\n": "user id is longer than 1000 bytes",
    b"2024-01-02T10:00:00Z,caf\xe9,i1,view,\n": "not valid UTF-8",
    b"2024-01-02T10:00:00Z,u\x001,i1,view,\n": "holds a NUL byte",
    b'2024-01-02T10:00:00Z,"u1,i1,view,\n': "a quote is not closed",
    b"\n": "blank line",
    b"2024-01-02T10:0": "torn last line",
}


def ingest(folder: Path) -> tuple[list[tuple[str, int, str, str]], list[dict[str, int]], list[int]]:
    """Rejects, counts and the events of each day of all files of a folder; conservation holds."""
    source = MappedLog(MappingSource.model_validate(SETTINGS | {"path": folder}), folder)
    work = folder.parent / "work"
    manifest = stage(source, source.discover(), work / "staged", DAYS, "c").to_pylist()
    staged = staged_folders(manifest, work / "staged", DAYS, "c")
    events = {p.key: work / "events" / p.key / "events.parquet" for p in partitions_of(DAYS)}
    for partition in partitions_of(DAYS):
        build_events(list(staged.values()), partition, events[partition.key])
    counts = ingest_counts(staged, published_counts(events))
    assert check_conservation(counts, events) == []
    build_rejects(staged, work / "rejects.parquet")
    rejects = [tuple(row.values()) for row in pq.read_table(work / "rejects.parquet").to_pylist()]
    return rejects, counts.to_pylist(), [pq.read_metadata(path).num_rows for path in events.values()]


def test_every_kind_of_dirt_is_refused_with_its_reason_and_found_again_by_its_line(tmp_path: Path) -> None:
    lines = [*GOOD, *list(BAD)[:8], GOOD[0], *list(BAD)[8:]]  # a fact twice among the dirt, the torn line last
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "day.csv").write_bytes(b"\xef\xbb\xbf" + b"".join(lines))
    rejects, [counts], days = ingest(raw)
    assert [lines[line - 1] for _, line, _, _ in rejects] == list(BAD)
    for (_, line, text, reason), expected in zip(rejects, BAD.values(), strict=True):
        assert reason.startswith(expected), (line, reason)
        assert text[:30] in lines[line - 1].decode(errors="backslashreplace").replace("\0", "\\x00")
        assert len(text) <= 2_000
    known = {name: counts[name] for name in ("rows_in", "unpacked", "events", "duplicates", "rejects", "left_out")}
    assert known == {
        "rows_in": len(lines), "unpacked": 0, "events": 5, "duplicates": 1, "rejects": len(BAD), "left_out": 2,
    }  # fmt: skip
    assert days == [1, 3, 1]


def test_a_file_delivered_twice_and_a_late_row_of_an_old_day_count_once(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.csv").write_bytes(b"".join(GOOD[:3]))
    (raw / "b.csv").write_bytes(b"".join(GOOD[:3]))
    (raw / "late.csv").write_bytes(GOOD[3] + GOOD[1])
    rejects, counts, days = ingest(raw)
    assert rejects == []
    assert [(row["events"], row["duplicates"]) for row in counts] == [(3, 0), (0, 3), (1, 1)]
    assert days == [1, 2, 1]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_gzip_file_cut_off_in_a_member_gives_what_came_before(tmp_path: Path, share: float) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    plain = b"".join(b"2024-01-02T10:00:00Z,u%d,i%d,view,\n" % (n, n * 7919 % 10_007) for n in range(20_000))
    packed = gzip.compress(plain[:300_000]) + gzip.compress(plain[300_000:])
    (raw / "day.csv.gz").write_bytes(packed[: int(len(packed) * share)])
    rejects, [counts], days = ingest(raw)
    assert rejects[-1][3].startswith("the compressed file is cut off or damaged here")
    assert counts["events"] == days[1] > 20_000 * share * 0.8
    assert counts["rows_in"] == days[1] + len(rejects)
    assert 1 <= len(rejects) <= 2  # the damage, and the line that it cut


def test_a_filthy_file_stops_at_the_ceiling(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "day.csv").write_bytes(b"".join([*GOOD * 4, *list(BAD)[1:4]]))
    _, counts, _ = ingest(raw)
    table = pa.Table.from_pylist(counts, schema=SCHEMAS["ingest_counts"])
    assert check_reject_ceiling(table, 0.2) == []
    [problem] = check_reject_ceiling(table, 0.05)
    assert "day.csv: 3 of 23 records were refused (13.04%), more than ingest.max_rejects = 5.00%" in problem
