"""The contract of a source: from a publisher's raw files to canonical events, as DuckDB relations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from duckdb import DuckDBPyConnection, DuckDBPyRelation

RAW_EVENT_COLUMNS = (
    "user_id",
    "item_id",
    "event_ts",
    "event_type",
    "value",
    "session_id",
    "request_id",
    "position",
    "propensity",
)  # named and typed as in SCHEMAS["events"]; event_id, source and event_date are added by ingest.py


@dataclass(frozen=True)
class RawFile:
    path: Path
    kind: Literal["events", "items", "users"]


@dataclass(frozen=True)
class Parsed:
    """One raw events file, read. Every raw record is in exactly one of the two relations."""

    events: DuckDBPyRelation  # RAW_EVENT_COLUMNS, then line (1-based) and raw (the record's text, or null)
    rejects: DuckDBPyRelation  # line, raw, reason


class Source(Protocol):
    """Reads one log format. Nothing here holds a whole log in memory."""

    name: str
    has_impressions: bool  # False: the log tells what was acted on, not what was shown; the shown set is constructed

    def discover(self) -> list[RawFile]:
        """The raw files, in a fixed order. Raises DataError when the folder or a needed file is missing or empty."""
        ...

    def read(self, con: DuckDBPyConnection, file: RawFile) -> Parsed:
        """Parse one events file; a record that cannot be used is a reject with its reason."""
        ...

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        """Raw records in an events file, counted without parsing them: what conservation is checked against."""
        ...

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        """item_id, title, category, brand, price, features (float[]): one row an item, none where the log has none."""
        ...

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        """user_id, features (float[]): one row a user; no rows where the log has none."""
        ...
