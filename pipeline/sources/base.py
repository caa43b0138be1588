"""The contract of a source: from a publisher's raw files to canonical events, as DuckDB relations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import ConfigError, DataError
from pipeline.warehouse import literal

EVENT_COLUMNS = {
    "user_id": "varchar",
    "item_id": "varchar",
    "event_ts": "timestamptz",
    "event_type": "varchar",
    "value": "double",
    "session_id": "varchar",
    "request_id": "varchar",
    "position": "integer",
    "propensity": "double",
    "category": "varchar",  # of the item, where the log's rows say it
    "brand": "varchar",
    "shop": "varchar",
}  # named and typed as in SCHEMAS["events"]; event_id, source and event_date are added by ingest.py
ITEM_COLUMNS = {
    "item_id": "varchar",
    "title": "varchar",
    "category": "varchar",
    "brand": "varchar",
    "shop": "varchar",
    "price": "double",
    "listed_ts": "timestamptz",  # when it was released or uploaded
    "features": "float[]",
}
USER_COLUMNS = {"user_id": "varchar", "features": "float[]"}
Lines = np.ndarray[Any, np.dtype[Any]]  # sorted 1-based numbers of records


@dataclass(frozen=True)
class RawFile:
    path: Path
    kind: Literal["events", "items", "users", "pools"]
    context: str = ""  # what reading it takes from its name or place: the same bytes elsewhere may mean something else
    needs: tuple[Path, ...] = ()  # other files that its reading looks into


class Source(Protocol):
    """Reads one log format. Nothing here holds a whole log in memory."""

    name: str
    has_impressions: bool  # False: the log tells what was acted on, not what was shown; the shown set is constructed
    unpacks: bool  # a raw record may hold several facts

    def discover(self) -> list[RawFile]:
        """The raw files, in a fixed order. Raises DataError when the folder or a needed file is missing or empty."""
        ...

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        """The facts of one events file: those of EVENT_COLUMNS that the log has, then line, raw and reason.

        Every raw record gives at least one row. ``line`` is the record's 1-based number, ``raw`` its text (or null),
        ``reason`` why the source cannot use it (or null); ingest.py adds the reasons that hold for every log.
        ``only`` limits it to some records. The relation is scanned once.
        """
        ...

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        """Raw records in an events file, counted without parsing them: what conservation is checked against."""
        ...

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        """ITEM_COLUMNS from the files of kind ``items``: one row an item, none where the log has no such file."""
        ...

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        """USER_COLUMNS from the files of kind ``users``; no rows where the log has none."""
        ...


def parquet_rows(con: DuckDBPyConnection, path: Path, only: Lines | None = None) -> DuckDBPyRelation:
    """The rows of a Parquet file with their 1-based ``line``; ``only`` limits them to some lines."""
    rows = con.sql(
        f"select * exclude (file_row_number), file_row_number + 1 as line "
        f"from read_parquet({literal(path)}, file_row_number = true, hive_partitioning = false)"
    )
    if only is None:
        return rows
    con.register("only_lines", pa.table({"line": pa.array(only, pa.int64())}))
    return rows.filter("line in (select line from only_lines)")


def nothing(con: DuckDBPyConnection, columns: dict[str, str]) -> DuckDBPyRelation:
    """A relation of these columns without rows."""
    return con.sql(f"select {', '.join(f'null::{kind} as {name}' for name, kind in columns.items())} where false")


def log_folder(path: Path | None, what: str) -> Path:
    """The folder that an experiment names for a log. Raises ConfigError or DataError with the remedy."""
    if path is None:
        raise ConfigError(f"source.path is not set; name the folder of the {what} files there or with RAW=folder.")
    folder = path.expanduser()
    if not folder.exists():
        raise DataError(f"There is no folder {folder}; set source.path or RAW to the folder of the log.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; give the folder that holds it.")
    return folder
