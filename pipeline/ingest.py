"""Ingest: raw files to canonical events and rejects, so that no record is lost or counted twice.

A raw events file is parsed once, into ``staging/<content hash>-<key>/``: its usable events, its rejects and its counts.
The published tables are selects over these folders. The key is a fingerprint of the code and of the time range.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, StorageError
from pipeline.experiment import Partitions, utc
from pipeline.partitions import Partition, key_sql
from pipeline.schemas import SCHEMAS, TIME
from pipeline.sources.base import RawFile, Source
from pipeline.storage import fingerprint, write_atomically
from pipeline.warehouse import connect, copy_select, sql_text, view

_FILES = pa.schema(
    {"file": pa.int64(), "path": pa.string(), "events": pa.string(), "rejects": pa.string(), "rows_in": pa.int64()}
)
EVENT_TYPES = ("impression", "click", "cart", "favorite", "purchase", "rating", "watch")


def discovered(files: Sequence[RawFile], staging: Path) -> str:
    """A fingerprint of the files' names and contents; where they lie and when they were written does not count."""
    digests = content_hashes(files, staging)
    return fingerprint(
        [(name, file.kind, digest) for name, file, digest in zip(_names(files), files, digests, strict=True)]
    )


def content_hashes(files: Sequence[RawFile], staging: Path) -> list[str]:
    """The SHA-256 of each file; a file whose size and time have not changed is not read again (``hashes.json``)."""
    cache = staging.with_name("hashes.json")
    known: dict[str, str] = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    keys = [f"{file.path.absolute()}:{':'.join(map(str, _size_and_time(file.path)))}" for file in files]
    found = {key: known.get(key) or _content_hash(file.path) for key, file in zip(keys, files, strict=True)}
    if found != known:
        write_atomically(cache, json.dumps(found, indent=1, sort_keys=True))
    return [found[key] for key in keys]


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
            counts = _counts(folder)
            _refuse_unreadable(file.path, counts, partitions)
            row |= {"rows": counts["rows_in"], "partitions": counts["partitions"]}
            usable += counts["events"]
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


def staged_folders(manifest: pa.Table, staging: Path, partitions: Partitions, code: str) -> dict[str, Path]:
    """The staged folder of each raw events file of the manifest, in its order. Copies of a file share a folder."""
    files = [row for row in manifest.to_pylist() if row["kind"] == "events"]
    return {row["path"]: staged_folder(staging, row["hash"], partitions, code) for row in files}


def build_events(staged: Sequence[Path], partition: Partition, out: Path) -> dict[str, int]:
    """Publish one partition's facts, each once; returns rows_in, events and duplicates, each counted by itself."""
    params = {"start": partition.start, "end": partition.end}
    with connect() as con:
        _view_staged(con, {str(place): folder for place, folder in enumerate(staged)})
        events = copy_select(con, sql_text("staging/events"), out, "events", params)
        [(rows_in, facts)] = con.sql(
            "select count(*), count(distinct event_id) from staged where event_ts >= $start and event_ts < $end",
            params=params,
        ).fetchall()
    return {"rows_in": rows_in, "events": events, "duplicates": rows_in - facts}


def build_rejects(staged: Mapping[str, Path], out: Path) -> int:
    """Publish the rejects of all raw files, named as in the manifest; returns their number."""
    with connect() as con:
        _view_staged(con, staged)
        return copy_select(con, sql_text("staging/rejects"), out, "rejects")


def build_counts(staged: Mapping[str, Path], published: Mapping[Partition, Path], out: Path) -> int:
    """Publish what became of each raw file's records, ``ingest_counts``; returns the number of files.

    ``published`` are the partitions' files as they are now: a fact that should be in one of them and is not is not
    counted as an event, so that ``check_conservation`` names its file.
    """
    periods = [{"start_ts": period.start, "end_ts": period.end} for period in published]
    with connect() as con:
        _view_staged(con, staged)
        view(con, "events", list(published.values()))
        con.register("periods", pa.Table.from_pylist(periods, schema=pa.schema({"start_ts": TIME, "end_ts": TIME})))
        return copy_select(con, sql_text("staging/ingest_counts"), out, "ingest_counts")


def check_conservation(counts: pa.Table) -> list[str]:
    """One sentence for each raw file of ``ingest_counts`` whose records are not all accounted for."""
    if not len(counts):
        return ["No raw events file was counted; ingest the log first."]
    problems = []
    for row in counts.to_pylist():
        found = row["events"] + row["duplicates"] + row["rejects"]
        if found != row["rows_in"]:
            off = row["rows_in"] - found
            problems.append(
                f"{row['path']}: {row['rows_in']:,} records came in, but {row['events']:,} events, "
                f"{row['duplicates']:,} duplicates and {row['rejects']:,} rejects make {found:,}: "
                f"{abs(off):,} {'are missing' if off > 0 else 'too many'}. Ingest the file again."
            )
    return problems


def _stage_file(source: Source, file: RawFile, folder: Path, partitions: Partitions) -> None:
    """Parse one file into a folder aside and rename it: a staged folder is whole or absent."""
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        with connect() as con:
            counts = _parse(con, source, file, aside, partitions)
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


def _parse(
    con: duckdb.DuckDBPyConnection, source: Source, file: RawFile, aside: Path, partitions: Partitions
) -> dict[str, Any]:
    """Write events.parquet and rejects.parquet; returns counts.json."""
    parsed = source.read(con, file)
    parsed.events.create_view("parsed_events")
    parsed.rejects.create_view("parsed_rejects")
    checked = sql_text("staging/checked_events")
    params = {
        "source": source.name,
        "start": utc(partitions.start),
        "end": utc(partitions.end),
        "outside": _outside(partitions),
        "event_types": list(EVENT_TYPES),
    }
    events, rejects = aside / "events.parquet", aside / "rejects.parquet"
    con.execute(
        f"copy (select * exclude (raw, reason) from ({checked}) where reason is null) to $path (format parquet)",
        params | {"path": str(events)},
    )
    con.execute(
        f"""copy (
            select line, raw, reason from parsed_rejects
            union all select line, raw, reason from ({checked}) where reason is not null
            order by line
        ) to $path (format parquet)""",
        params | {"path": str(rejects)},
    )
    keys = con.sql(
        f"select distinct {key_sql('event_ts', partitions.grain)} from read_parquet($path) order by 1",
        params={"path": str(events)},
    )
    reasons = con.sql("select reason, count(*) from read_parquet($path) group by reason", params={"path": str(rejects)})
    return {
        "rows_in": source.count(con, file),
        "events": _rows(events),
        "rejects": _rows(rejects),
        "partitions": [key for (key,) in keys.fetchall()],
        "reasons": dict(reasons.fetchall()),
    }


def _view_staged(con: duckdb.DuckDBPyConnection, staged: Mapping[str, Path]) -> None:
    """The view ``staged`` with the facts of each raw file, and the table ``files``. A copy's facts appear again."""
    rows = [
        {
            "file": place,
            "path": path,
            "events": str(folder / "events.parquet"),
            "rejects": str(folder / "rejects.parquet"),
            "rows_in": _counts(folder)["rows_in"],
        }
        for place, (path, folder) in enumerate(staged.items())
    ]
    con.register("files", pa.Table.from_pylist(rows, schema=_FILES))
    for name, kind in (("staged", "events"), ("staged_rejects", "rejects")):
        if rows:
            con.sql(
                f"""select parsed.* exclude (filename), files.file
                from read_parquet($paths, filename = true) as parsed join files on parsed.filename = files.{kind}""",
                params={"paths": sorted({row[kind] for row in rows})},
            ).create_view(name)
        else:
            con.register(name, SCHEMAS[kind].append(pa.field("file", pa.int64())).empty_table())


def _counts(folder: Path) -> dict[str, Any]:
    try:
        counts: dict[str, Any] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StorageError(f"The staged file {folder} is missing or damaged; delete it and ingest again.") from None
    return counts


def _commonest(reasons: Mapping[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    return ", ".join(f"{reason} ({count:,})" for reason, count in ordered)


def _outside(partitions: Partitions) -> str:
    return f"outside the experiment's time range {partitions.start} to {partitions.end}"


def _refuse_unreadable(path: Path, counts: Mapping[str, Any], partitions: Partitions) -> None:
    """A file whose every record is broken is the wrong file. One that is only outside the time range may be a spare."""
    if counts["reasons"] and not counts["events"] and _outside(partitions) not in counts["reasons"]:
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
    with _readable(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Check the file and its permissions.") from None


def _rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)
