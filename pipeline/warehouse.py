"""DuckDB: connections, the files under ``sql/``, and writing Parquet with the published schemas."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.schemas import SCHEMAS

SQL = Path(__file__).parent.parent / "sql"
ROW_GROUP = 122_880


def quote(identifier: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str | Path) -> str:
    """An SQL string literal, for the few places (views) where DuckDB binds no values."""
    return "'" + str(text).replace("'", "''") + "'"


@cache
def sql_text(name: str) -> str:
    """The select of ``sql/<name>.sql``, for example ``staging/sessions``."""
    path = SQL / f"{name}.sql"
    if not path.exists():
        raise ConfigError(f"There is no SQL file {path}; the files are named after the table or the question.")
    return path.read_text(encoding="utf-8").strip().removesuffix(";")


@contextmanager
def connect(inputs: Mapping[str, Sequence[Path]] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB in UTC, spilling to a temporary folder, with each input's Parquet files as a view.

    An input without files becomes an empty table with the published columns of its name.
    """
    with tempfile.TemporaryDirectory(prefix="hindsight-") as spill, duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        con.execute("set enable_progress_bar = false")
        con.execute("set temp_directory = $spill", {"spill": spill})
        con.execute(f"set threads = {min(4, os.cpu_count() or 1)}")
        con.execute("create macro key64(text) as (md5_number_lower(text) >> 1)::bigint")
        for name, files in (inputs or {}).items():
            view(con, name, files)
        yield con


def view(con: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path]) -> None:
    """A view over Parquet files, or an empty table with the published columns where there are none."""
    if files:
        paths = ", ".join(literal(path) for path in files)
        con.execute(f"create or replace view {quote(name)} as select * from read_parquet([{paths}])")
    else:
        none = SCHEMAS[name].empty_table()
        con.register("_none", none)
        con.execute(f"create or replace table {quote(name)} as select * from _none")
        con.unregister("_none")


def run_sql(
    con: duckdb.DuckDBPyConnection, name: str, params: Mapping[str, Any] | None = None
) -> duckdb.DuckDBPyRelation:
    """The relation of ``sql/<name>.sql`` with bound ``$parameters``."""
    return con.sql(sql_text(name), params=dict(params or {}))


def create_table(
    con: duckdb.DuckDBPyConnection, table: str, name: str, params: Mapping[str, Any] | None = None
) -> None:
    """Materialise ``sql/<name>.sql`` as a temporary table ``table``."""
    con.execute(f"create or replace temp table {quote(table)} as {sql_text(name)}", dict(params or {}))


def copy_select(
    con: duckdb.DuckDBPyConnection, select: str, path: Path, table: str, params: Mapping[str, Any] | None = None
) -> int:
    """Write a select to one Parquet file with exactly the columns and types of ``SCHEMAS[table]``; returns the rows."""
    relation = con.sql(select, params=dict(params or {}))
    return write_parquet(path, table, relation.to_arrow_reader(ROW_GROUP))


def write_parquet(path: Path, table: str, batches: Iterable[pa.RecordBatch]) -> int:
    """Stream record batches to one Parquet file, cast to the published schema of ``table``; returns the rows."""
    schema = SCHEMAS[table]
    rows = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="zstd", version="2.6") as writer:
        for batch in batches:
            typed = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
            writer.write_table(typed, row_group_size=ROW_GROUP)
            rows += len(typed)
    return rows


def read_table(files: Sequence[Path], table: str, columns: list[str] | None = None) -> pa.Table:
    """Parquet files of a published table as one Arrow table; no files give an empty one."""
    if not files:
        none = SCHEMAS[table].empty_table()
        return none.select(columns) if columns else none
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in files])
