"""DuckDB: connections, the files under ``sql/``, and writing Parquet with the published schemas."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.feedback import Feedback
from pipeline.errors import ConfigError
from pipeline.schemas import EVENT_TYPES, SCHEMAS, TIME

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]
SQL = Path(__file__).parent.parent / "sql"
ROW_GROUP = 122_880
_UNITS = {"bytes": 1} | {f"{letter}iB": 1 << 10 * power for power, letter in enumerate("KMGT", start=1)}
_ENUMS = {"event_type", "source", "feedback"}  # written from enums: the same text, without hashing every value
_REPEATED = {"user_id", "event_type", "feedback", "source", "event_date", "category", "brand", "shop"}  # of few values
_DISTINCT = {"event_id", "item_id"}  # hardly smaller when compressed
_MOMENTS = {"event_ts", "impression_ts"}  # byte by byte, for the first ones are much the same
_DUCKDB_TYPES = {
    pa.string(): "varchar",
    pa.int8(): "tinyint",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    pa.date32(): "date",
    TIME: "timestamptz",
}


def quote(identifier: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str | Path) -> str:
    """An SQL string literal, for the few places (views) where DuckDB binds no values."""
    return "'" + str(text).replace("'", "''") + "'"


def instant(moment: datetime) -> str:
    """An SQL literal of an instant, for the same places."""
    return f"timestamptz {literal(moment.isoformat())}"


@cache
def sql_text(name: str) -> str:
    """The select of ``sql/<name>.sql``, for example ``staging/sessions``."""
    path = SQL / f"{name}.sql"
    if not path.exists():
        raise ConfigError(f"There is no SQL file {path}; the files are named after the table or the question.")
    return path.read_text(encoding="utf-8").strip().removesuffix(";")


@contextmanager
def connect(
    inputs: Mapping[str, Sequence[Path]] | None = None, workers: int = 1
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB in UTC, spilling to a temporary folder, with each input's Parquet files as a view.

    HINDSIGHT_MEMORY (as ``6GiB``) limits what it holds in memory; DuckDB's own default is 80 % of the machine's. Of
    several ``workers`` at a time each gets its share of the memory, and one thread: a window over all rows has no more.
    An input without files becomes an empty view with the published columns of its name.
    """
    with tempfile.TemporaryDirectory(prefix="hindsight-") as spill, duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        con.execute("set enable_progress_bar = false")
        con.execute("set temp_directory = $spill", {"spill": spill})
        # One thread groups rows into other files' row groups than several do: never fewer than two, for the same bytes.
        con.execute(f"set threads = {max(2, min(4, os.cpu_count() or 1)) if workers == 1 else 1}")
        if memory := os.environ.get("HINDSIGHT_MEMORY"):
            con.execute("set memory_limit = $memory", {"memory": memory})
        if workers > 1:
            [(limit,)] = con.execute("select current_setting('memory_limit')").fetchall()  # as 18.8 GiB
            number, unit = limit.split()
            con.execute(f"set memory_limit = '{float(number) / workers:.3f} {unit}'")
        con.execute("create macro key64(text) as (md5_number_lower(text) >> 1)::bigint")
        con.execute(f"create type event_type as enum ({', '.join(map(literal, EVENT_TYPES))})")
        names = [code.name.lower() for code in Feedback if code]
        con.execute(f"create type feedback as enum ({', '.join(map(literal, names))})")
        for name, files in (inputs or {}).items():
            view(con, name, files)
        yield con


def memory_limit(workers: int = 1) -> int:
    """What each of ``workers`` may hold in memory, in bytes: of HINDSIGHT_MEMORY, or of DuckDB's own limit."""
    with connect(workers=workers) as con:
        [(limit,)] = con.execute("select current_setting('memory_limit')").fetchall()  # as 18.8 GiB
    number, unit = limit.split()
    return int(float(number) * _UNITS[unit])


def view(con: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path]) -> None:
    """A view over Parquet files, or over no rows with the published columns where there are none."""
    if files:
        paths = ", ".join(literal(path) for path in files)
        rows = f"select * from read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"
    else:
        columns = ", ".join(f"null::{_duckdb_type(field.type)} as {quote(field.name)}" for field in SCHEMAS[name])
        rows = f"select {columns} limit 0"
    con.execute(f"create or replace view {quote(name)} as {rows}")


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


def copy_ordered(con: duckdb.DuckDBPyConnection, select: str, path: Path, table: str) -> None:
    """Write a select to one Parquet file in its order, with the columns and types of ``SCHEMAS[table]``.

    DuckDB's own writer: for the large tables, several times as fast as ``copy_select``. The select must not join, for
    a join does not keep the order of rows.
    """
    columns = ", ".join(f"{quote(field.name)}::{_duckdb_type(field.type)} as {quote(field.name)}"
                        if field.name not in _ENUMS else quote(field.name) for field in SCHEMAS[table])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    con.execute(
        f"copy (select {columns} from ({select})) to {literal(path)} "
        "(format parquet, compression lz4_raw, parquet_version v2, dictionary_size_limit 2000)"
    )


def _duckdb_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"{_duckdb_type(kind.value_type)}[]"
    return _DUCKDB_TYPES[kind]


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


def large_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """For the large tables in order of their users: each column as takes the least time, and hardly more space."""
    searched = [name for name in schema.names if name not in {*_DISTINCT, "category", "brand", "shop"}]
    return pq.ParquetWriter(
        path,
        schema,
        compression={name: "none" if name in _DISTINCT else "lz4" for name in schema.names},
        use_dictionary=[name for name in schema.names if name in _REPEATED],
        use_byte_stream_split=[name for name in schema.names if name in _MOMENTS],
        write_statistics=searched,
        store_schema=False,
    )


def ahead(batches: Iterator[T]) -> Iterator[T]:
    """The same, each made in another thread while the one before it is worked on."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def taker(rows: pa.Table) -> Callable[[Array], pa.Table]:
    """What gives the rows at some places. Text moves as views of sixteen bytes: in a quarter of the time."""
    views = [column.cast(pa.string_view()) if pa.types.is_string(column.type) else column for column in rows.columns]
    columns = [pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks() for column in views]

    def take(places: Array) -> pa.Table:
        indices = pa.array(places)
        return pa.table([_taken(column, indices) for column in columns], rows.column_names)

    return take


def _taken(column: pa.Array, places: pa.Array) -> pa.Array:
    if not pa.types.is_string_view(column.type):
        return column.take(places)
    valid, views, *letters = column.buffers()
    taken = pa.Array.from_buffers(pa.binary(16), len(column), [valid, views], offset=column.offset).take(places)
    return pa.Array.from_buffers(column.type, len(taken), [*taken.buffers(), *letters]).cast(pa.string())


def with_dictionaries(table: str, kinds: Mapping[str, pa.DataType]) -> pa.Schema:
    """The published schema with text that is repeated as dictionaries (of ``kinds``): Parquet has the same for both."""
    return pa.schema(
        [
            pa.field(column.name, pa.dictionary(kinds[column.name], pa.string())) if column.name in kinds else column
            for column in SCHEMAS[table]
        ]
    )


def read_table(files: Sequence[Path], table: str, columns: list[str] | None = None) -> pa.Table:
    """Parquet files of a published table as one Arrow table; no files give an empty one."""
    schema = SCHEMAS[table] if columns is None else pa.schema([SCHEMAS[table].field(name) for name in columns])
    parts = [pq.read_table(path, columns=columns).cast(schema) for path in files]
    return pa.concat_tables(parts) if parts else schema.empty_table()
