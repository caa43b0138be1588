"""Files of anybody's log as rows: text, JSON lines or Parquet, with their folders' values, numbers and faults."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from pipeline.errors import ConfigError, DataError, nearest
from pipeline.source_settings import Files
from pipeline.sources.base import Lines
from pipeline.sources.mapping_columns import JSON, TEXT, Column, Columns, pointer
from pipeline.sources.text import ARCHIVES, CODECS, Layout, count_lines, has_rows, header, read_lines, read_rows
from pipeline.warehouse import literal, quote

ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "json", ".ndjson": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
SAMPLE = 100  # lines of JSON that tell its keys
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def open_rows(
    con: DuckDBPyConnection,
    path: Path,
    root: Path,
    files: Files,
    wanted: Iterable[str],
    needed: Iterable[str] = (),
    only: Lines | None = None,
) -> Columns:
    """Create the view ``raw_rows``: a file's records with line, raw and fault; returns the columns it has.

    ``wanted`` are the columns that will be read, ``needed`` those that every record has: JSON lines tell no more of
    their columns than each record says. The view can be scanned once. Raises DataError for a header that cannot be
    used, and for JSON without a needed column.
    """
    kind = file_format(path, files)
    from_folders = {
        name: Column("null::varchar" if value is None else literal(value), TEXT)
        for name, value in folder_values(path, root).items()
    }
    if kind == "parquet":
        named = _open_parquet(con, path, only)
    elif kind == "json":
        required = set(needed) - set(from_folders)
        named = _open_json(con, path, files.encoding, set(wanted) | required, required, only)
    else:
        named = _open_text(con, path, layout(files, kind), only)
    return Columns(path, named | from_folders)


def folder_values(path: Path, root: Path) -> dict[str, str | None]:
    """What the folders of Hive say of a file by the column's name: ``date=2024-01-01/part-0.parquet``."""
    pairs = [re.fullmatch("([^=]+)=(.*)", part) for part in path.relative_to(root).parts[:-1]]
    return {pair[1]: None if pair[2] == NO_PARTITION else unquote(pair[2]) for pair in pairs if pair}


def count_records(path: Path, files: Files) -> int:
    """The records of a file, counted without parsing them."""
    kind = file_format(path, files)
    if kind == "parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} is no Parquet file, or damaged ({error}); fetch it again or remove it.") from None
    return max(count_lines(path) - _header_lines(kind, files), 0)


def has_records(path: Path, files: Files) -> bool:
    """Whether a file has a record at all; a day without events leaves an empty file in many shops."""
    kind = file_format(path, files)
    if kind == "parquet":
        return count_records(path, files) > 0
    return has_rows(path, _header_lines(kind, files))


def file_format(path: Path, files: Files) -> str:
    """csv, tsv, parquet or json. Raises ConfigError where neither the settings nor the ending tells."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in ARCHIVES:
        raise DataError(f"{path} is an archive; unpack it, or leave it out of files: {files.files}.")
    if files.format:
        return files.format
    ending = next((suffix for suffix in reversed(suffixes) if suffix not in CODECS), "")
    if ending not in ENDINGS:
        raise ConfigError(f"{path}: its ending tells no format; set format of {files.files} (csv, tsv, parquet, json).")
    return ENDINGS[ending]


def layout(files: Files, kind: str = "csv") -> Layout:
    """How a text file keeps its columns. Raises ConfigError for settings that no file can be read with."""
    separator = files.separator or ("\t" if kind == "tsv" else ",")
    own_quote = '"' if kind == "csv" and len(separator) == 1 else ""
    quoted = own_quote if files.quote is None else files.quote
    return Layout(files.columns, separator, quoted, files.encoding)


def _header_lines(kind: str, files: Files) -> int:
    return int(kind != "json" and not files.columns)


def _open_text(con: DuckDBPyConnection, path: Path, form: Layout, only: Lines | None) -> dict[str, Column]:
    # The rows are read under names of our own: theirs may be "line", or differ in case alone.
    names = form.columns or header(path, form)
    safe = {name: f"c{place}" for place, name in enumerate(names)}
    if len(safe) < len(names):
        raise DataError(f"{path} names the column {max(names, key=names.count)!r} twice; rename one of them.")
    rows = read_rows(con, path, replace(form, columns=tuple(safe.values())), only)
    rows.filter(f"line > {int(not form.columns)}").create_view("raw_rows", replace=True)
    return {name: Column(column, TEXT) for name, column in safe.items()}


def _open_json(
    con: DuckDBPyConnection, path: Path, encoding: str, wanted: set[str], needed: set[str], only: Lines | None
) -> dict[str, Column]:
    document = "if(broken is null, try_cast(text as json), null)"
    read_lines(con, path, encoding, np.arange(1, SAMPLE + 1))
    keys = {key for (key,) in con.sql(f"select distinct unnest(json_keys({document})) from lines").fetchall()}
    heads = {name: name if name in keys else name.split(".")[0] for name in wanted}
    if missing := sorted(name for name in needed if keys and heads[name] not in keys):
        raise DataError(f"{path} has no {missing[0]!r} in its first {SAMPLE} lines; {nearest(missing[0], keys)}")
    # One walk through a document finds all its keys. A key that no line of the sample has may be in a later one.
    names = sorted(set(heads.values()))
    paths = ", ".join(pointer((name,)) for name in names)
    read_lines(con, path, encoding, only)
    con.sql(
        f"""
        with parsed as (select *, {document} as document from lines)
        select
            json_extract(document, [{paths}]) as fields,
            line,
            left(text, 2000) as raw,
            case
                when broken is not null then broken
                when json_type(document) = 'OBJECT' then null
                when trim(text, ' ' || chr(9)) = '' then 'blank line'
                when document is not null then 'is no JSON object'
                when torn then 'torn last line'
                else 'is no valid JSON'
            end as fault
        from parsed
        """
    ).create_view("raw_rows", replace=True)
    return {name: Column(f"fields[{place}]", JSON) for place, name in enumerate(names, start=1)}


def _open_parquet(con: DuckDBPyConnection, path: Path, only: Lines | None) -> dict[str, Column]:
    options = "file_row_number = true, hive_partitioning = false, binary_as_string = true"
    rows = con.sql(f"select * from read_parquet({literal(path)}, {options})")
    types = {name: kind for name, kind in zip(rows.columns, rows.types, strict=True) if name != "file_row_number"}
    safe = {name: f"c{place}" for place, name in enumerate(types)}
    columns = ", ".join(f"{quote(name)} as {column}" for name, column in safe.items())
    document = ", ".join(f"{quote(name)} := {column}" for name, column in safe.items())
    if only is not None:
        con.register("wanted_lines", pa.table({"line": pa.array(only, pa.int64())}))
        rows = rows.limit(int(only[-1]) if len(only) else 0)
    rows.create_view("parquet_rows", replace=True)
    kept = "" if only is None else "where line in (select line from wanted_lines)"
    con.sql(
        f"""
        with numbered as (select {columns}, file_row_number + 1 as line from parquet_rows)
        select *, left(to_json(struct_pack({document}))::varchar, 2000) as raw, null::varchar as fault
        from numbered {kept}
        """
    ).create_view("raw_rows", replace=True)
    return {name: Column(safe[name], kind) for name, kind in types.items()}
