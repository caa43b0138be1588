"""Ingest: raw files to canonical events and rejects, so that no record is lost or counted twice.

A raw events file is parsed once, into ``staged/<content hash>-<key>/``: its events by partition, each once and sorted,
its rejects and its counts. The key is a fingerprint of the code and of the time range. A partition that one file alone
touches is published by linking that file's part; the parts of several files are merged. What a record became is counted
where it is decided, and checked against an independent count of the raw records and the published files' own rows.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.conservation import LEFT_OUT, staged_counts
from pipeline.errors import DataError, StorageError
from pipeline.experiment import Partitions, utc
from pipeline.facts import write_facts
from pipeline.partitions import Partition
from pipeline.schemas import SCHEMAS
from pipeline.sources.base import EVENT_COLUMNS, Lines, RawFile, Source
from pipeline.storage import fingerprint, link, write_atomically
from pipeline.warehouse import ROW_GROUP, connect, copy_ordered, copy_select, sql_text, write_parquet

LONGEST_ID = 1_000  # bytes
LONGEST_RAW = 2_000  # characters of a refused record that are kept
_REJECT_FILES = pa.schema({"path": pa.string(), "rejects": pa.string()})


def discovered(files: Sequence[RawFile], staging: Path) -> str:
    """A fingerprint of the files' names and contents; where they lie and when they were written does not count."""
    digests = content_hashes(files, staging)
    return fingerprint(
        [(name, file.kind, digest) for name, file, digest in zip(_names(files), files, digests, strict=True)]
    )


def content_hashes(files: Sequence[RawFile], staging: Path) -> list[str]:
    """The SHA-256 of each file with what its reading needs; a file whose size and time are known is not read again."""
    cache = staging.with_name("hashes.json")
    known: dict[str, str] = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    paths = dict.fromkeys(path for file in files for path in (file.path, *file.needs))
    keys = {path: f"{path.absolute()}:{':'.join(map(str, _size_and_time(path)))}" for path in paths}
    found = {key: known.get(key) or _content_hash(path) for path, key in keys.items()}
    if found != known:
        write_atomically(cache, json.dumps(found, indent=1, sort_keys=True))
    hashes = {path: found[key] for path, key in keys.items()}
    return [_digest(file, hashes) for file in files]


def _digest(file: RawFile, hashes: Mapping[Path, str]) -> str:
    """A file's hash, together with whatever else decides how it is read."""
    if not file.context and not file.needs:
        return hashes[file.path]
    parts = [hashes[file.path], file.context, *(hashes[path] for path in file.needs)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def stage(source: Source, files: Sequence[RawFile], staging: Path, partitions: Partitions, code: str) -> pa.Table:
    """Parse every raw events file that is not staged yet; returns the ``manifest``.

    ``code`` fingerprints the source: its code and its settings. Raises DataError when a file has only records that
    cannot be read, or when no record at all is usable.
    """
    rows: list[dict[str, Any]] = []
    reasons: dict[str, int] = {}
    usable = 0
    for file, path, digest in zip(files, _names(files), content_hashes(files, staging), strict=True):
        row = {"path": path, "kind": file.kind, "hash": digest, "size": file.path.stat().st_size, "partitions": []}
        if file.kind == "events":
            folder = staged_folder(staging, digest, partitions, code)
            if not folder.exists():
                _stage_file(source, file, folder, partitions)
            counts = staged_counts(folder)
            _refuse_unreadable(file.path, counts)
            row |= {"rows": counts["rows_in"], "partitions": sorted(counts["events"])}
            usable += sum(counts["events"].values())
            reasons = {r: reasons.get(r, 0) + counts["reasons"].get(r, 0) for r in reasons | counts["reasons"]}
        rows.append(row)
    if not usable:
        found = _commonest(reasons) or "its files have no records"
        raise DataError(f"The log holds no usable event: {found}. Check source.path (RAW) and the partitions' range.")
    return pa.Table.from_pylist(rows, schema=SCHEMAS["manifest"])


def staged_folder(staging: Path, digest: str, partitions: Partitions, code: str) -> Path:
    """Where a file of this content is staged. The time range is in the key, for it decides what is a reject."""
    key = hashlib.sha256(f"{code} {partitions.model_dump_json()}".encode()).hexdigest()[:16]
    return staging / f"{digest}-{key}"


def staged_folders(
    manifest: Sequence[Mapping[str, Any]], staging: Path, partitions: Partitions, code: str
) -> dict[str, Path]:
    """The staged folder of each raw events file of the manifest, in its order. Copies of a file share a folder."""
    files = [row for row in manifest if row["kind"] == "events"]
    return {row["path"]: staged_folder(staging, row["hash"], partitions, code) for row in files}


def checked(
    con: duckdb.DuckDBPyConnection, source: Source, file: RawFile, partitions: Partitions, only: Lines | None = None
) -> duckdb.DuckDBPyRelation:
    """The facts of a raw file: event_id, the EVENT_COLUMNS that it has, line, raw, and the final ``reason`` (or null).

    It can be scanned once.
    """
    parsed = source.read(con, file, only)
    there = [column for column in EVENT_COLUMNS if column in parsed.columns]
    absent = [f"null::{kind} as {column}" for column, kind in EVENT_COLUMNS.items() if column not in there]
    parsed.project(", ".join([*there, *absent, "line", "raw", "reason"])).create_view("parsed_events", replace=True)
    params = {
        "start": utc(partitions.start),
        "end": utc(partitions.end),
        "outside": outside(partitions),
        "longest_id": LONGEST_ID,
    }
    facts = con.sql(sql_text("staging/checked_events"), params=params)
    return facts.project(", ".join(["event_id", *there, "line", "raw", "reason"]))


def outside(partitions: Partitions) -> str:
    """The reason of a record outside the experiment's time range."""
    return f"{LEFT_OUT[0]} {partitions.start} to {partitions.end}"


def build_events(staged: Sequence[Path], partition: Partition, out: Path) -> dict[str, int]:
    """Publish one partition's facts, each once; returns how many of them each staged folder gave, by its name.

    The same counts lie beside the table in ``counts.json``. A fact of several files belongs to the first that has it.
    """
    folders = list(dict.fromkeys(staged))
    paths = [path for folder in folders if (path := folder / "events" / f"{partition.key}.parquet").exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    if len(paths) == 1:
        link(paths[0], out)
        kept = [int(pq.read_metadata(out).num_rows)]
    else:
        kept = _merge(paths, out)
    counts = {path.parent.parent.name: n for path, n in zip(paths, kept, strict=True)}
    (out.parent / "counts.json").write_text(json.dumps(counts, indent=1, sort_keys=True), encoding="utf-8")
    return counts


def build_rejects(staged: Mapping[str, Path], out: Path) -> int:
    """Publish the rejects of all raw files, named as in the manifest; returns their number."""
    files = [{"path": path, "rejects": str(folder / "rejects.parquet")} for path, folder in staged.items()]
    if not files:
        return write_parquet(out, "rejects", [])
    paths = sorted({file["rejects"] for file in files})
    with connect() as con:
        con.register("files", pa.Table.from_pylist(files, schema=_REJECT_FILES))
        parts = con.sql("select * from read_parquet($paths, filename = true)", params={"paths": paths})
        parts.create_view("staged_rejects")
        return copy_select(con, sql_text("staging/rejects"), out, "rejects")


def _stage_file(source: Source, file: RawFile, folder: Path, partitions: Partitions) -> None:
    """Parse one file into a folder aside and rename it: a staged folder is whole or absent."""
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        counts = _parse(source, file, aside, partitions)
        (aside / "counts.json").write_text(json.dumps(counts, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(aside, folder)
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file.path} cannot be read ({reason}); check that it has the format of {source.name}."
        ) from None
    except OSError as error:
        # Another process may have staged the same bytes in the meantime: its folder is as good.
        if not folder.exists():
            raise StorageError(
                f"Cannot stage {file.path} in {folder.parent}: {error.strerror}. Mend it and run again."
            ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _parse(source: Source, file: RawFile, aside: Path, partitions: Partitions) -> dict[str, Any]:
    """Write events/<partition>.parquet and rejects.parquet; returns counts.json."""
    with connect() as con:
        facts, unpacked = checked(con, source, file, partitions), 0
        if source.unpacks:
            facts.create("all_facts")
            facts = con.table("all_facts")
            [(unpacked,)] = con.sql("select count(*) - count(distinct line) from all_facts").fetchall()
        written = write_facts(_with_periods(facts, partitions), aside, source.name)
    with connect() as con:
        rows_in = source.count(con, file)
    return {"rows_in": rows_in, "unpacked": unpacked} | asdict(written)


def _with_periods(facts: duckdb.DuckDBPyRelation, partitions: Partitions) -> pa.RecordBatchReader:
    """Facts as ``write_facts`` asks for them."""
    columns = [column for column in facts.columns if column != "raw"]
    period = f"if(reason is null, {_period_sql(partitions.grain)}, null) as period"
    raw = f"if(reason is null, null, left(raw, {LONGEST_RAW})) as raw"
    return facts.project(", ".join([period, *columns, raw])).to_arrow_reader(ROW_GROUP)


def _each_once(facts: str) -> str:
    """A select of facts in order of user, time and id, without those that follow their like: equal facts, equal ids."""
    again = "event_id = lag(event_id) over () and event_ts = lag(event_ts) over () as again"
    return f"select * exclude (again) from (select *, {again} from ({facts})) where again is not true"


def _merge(paths: Sequence[Path], out: Path) -> list[int]:
    """Publish the sorted parts of several files as one, each fact once; returns how many each part gave."""
    if not paths:
        pq.write_table(SCHEMAS["events"].empty_table(), out)
        return []
    parts = """
        select parts.* exclude (filename), list_position($paths, filename) as place
        from read_parquet($paths, filename = true) as parts
        order by user_id, event_ts, event_id, place"""
    with connect() as con:
        con.execute(f"create temp table facts as {_each_once(parts)}", {"paths": [str(path) for path in paths]})
        copy_ordered(con, f"select {', '.join(SCHEMAS['events'].names)} from facts", out, "events")
        kept = dict(con.sql("select place, count(*) from facts group by place").fetchall())
    return [kept.get(place, 0) for place in range(1, len(paths) + 1)]


def _period_sql(grain: str) -> str:
    """The first day of the period of ``event_ts``."""
    day = "make_timestamp(epoch_us(event_ts))::date"  # not by division, which rounds towards 1970
    return day if grain == "day" else f"date_trunc('{grain}', {day})::date"


def _commonest(reasons: Mapping[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    return ", ".join(f"{reason} ({count:,})" for reason, count in ordered)


def _refuse_unreadable(path: Path, counts: Mapping[str, Any]) -> None:
    """A file whose every record is broken is the wrong file. One that is only outside the time range may be a spare."""
    chosen = any(reason.startswith(LEFT_OUT) for reason in counts["reasons"])
    if counts["reasons"] and not counts["events"] and not chosen:
        raise DataError(
            f"{path} has no usable record among {counts['rows_in']:,}: {_commonest(counts['reasons'])}. "
            "Check that it is the right file, or take it out of the folder."
        )


def _names(files: Sequence[RawFile]) -> list[str]:
    """The files' paths below the folder that they share: the same names wherever that folder lies."""
    parent = os.path.commonpath([file.path.absolute().parent for file in files]) if files else ""
    return [file.path.absolute().relative_to(parent).as_posix() for file in files]


def _size_and_time(path: Path) -> tuple[int, int]:
    with _readable(path):
        stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with _readable(path), path.open("rb", buffering=0) as stream:
        while block := stream.read(1 << 22):  # four times as fast as file_digest with its small buffer
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Check the file and its permissions.") from None
