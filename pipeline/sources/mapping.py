"""Anybody's own log: the experiment file says where what lies, and nobody writes code.

A record is a line of text or JSON, or a row of Parquet. It gives an event; with ``feedback``, one more for each flag
that is set; with ``unpack``, one for each entry of a list; with ``shown``, an impression for each item of a list and
the actions on them. What cannot be read is refused with its reason: the whole record where a list is to blame (no list
at all, parallel lists of different lengths, an entry that does not fit its pattern), else the one event.

- A text is trimmed, and one of ``nulls`` is nothing. An id like 123.0 is 123: so pandas writes a column with gaps.
- A record whose shown list is empty is its action alone; one without either is refused. What was done to an item that
  is not in the list is kept: the session decides whether it was shown earlier. A list without a request id is a
  request of its user, called by its time.
- A flag is set when it is true, t, yes, y or a number above 0; it is not when it is false, f, no, n, another number or
  missing.
- A code that ``type.map`` does not name is an unknown event type; one that ``type.ignore`` names is refused as ignored.
- A time that would lie in 1990 to 2100 if it were in another unit is refused: its unit is not what the file says.
- The value of a folder ``date=2024-01-01`` goes before a column of that name. Names that begin with . or _ are no logs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import duckdb
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import ConfigError, DataError, nearest
from pipeline.source_settings import Events, Files, MappingSource
from pipeline.sources.base import EVENT_COLUMNS, ITEM_COLUMNS, USER_COLUMNS, Lines, RawFile, log_folder, nothing
from pipeline.sources.mapping_columns import define_macros
from pipeline.sources.mapping_entities import read_items, read_users
from pipeline.sources.mapping_events import needed, read_facts, references
from pipeline.sources.mapping_files import count_records, file_format, folder_values, has_records, layout, open_rows
from pipeline.warehouse import connect

NO_ROWS = EVENT_COLUMNS | {"line": "bigint", "raw": "varchar", "reason": "varchar"}


class MappedLog:
    """A folder of files that the experiment's ``source`` describes."""

    name = "mapping"

    def __init__(self, settings: MappingSource, folder: Path) -> None:
        del folder  # nothing is generated
        self.folder = log_folder(settings.path, "log's")
        self.settings = settings
        tells_all = any("impression" in files.types for files in settings.events)
        self.has_impressions = tells_all if settings.has_impressions is None else settings.has_impressions
        self.unpacks = any(files.unpack or files.shown or files.feedback for files in settings.events)
        self._found: dict[Path, tuple[str, Files]] = {}
        for _, files in self._parts.values():
            layout(files)
        _check_times(settings)

    def discover(self) -> list[RawFile]:
        self._found = self._match()
        for part, (_, files) in self._parts.items():
            found = [path for path, (other, _) in self._found.items() if other == part]
            if not any(has_records(path, files) for path in found):
                raise DataError(
                    f"No file of {self.folder / files.files} has any record; check {part} in the experiment."
                )
        # The same bytes mean something else under another part, or in another folder of Hive.
        described = [
            RawFile(path, self._parts[part][0], context=f"{part} {folder_values(path, self.folder)}")
            for path, (part, _) in self._found.items()
        ]
        pools = self._matches(self.settings.pools) if self.settings.pools else []
        return [*described, *(RawFile(path, "pools") for path in pools)]

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        files = self._of(file)
        assert isinstance(files, Events)
        if not has_records(file.path, files):
            return nothing(con, NO_ROWS)
        define_macros(con, self.settings.nulls)
        columns = open_rows(con, file.path, self.folder, files, references(files), needed(files), only)
        return read_facts(con, columns, files)

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return count_records(file.path, self._of(file))

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        paths = [file.path for file in files if file.kind == "items"]
        if not paths or self.settings.items is None:
            return nothing(con, ITEM_COLUMNS)
        define_macros(con, self.settings.nulls)
        return read_items(con, paths, self.folder, self.settings.items)

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        paths = [file.path for file in files if file.kind == "users"]
        if not paths or self.settings.users is None:
            return nothing(con, USER_COLUMNS)
        define_macros(con, self.settings.nulls)
        return read_users(con, paths, self.folder, self.settings.users)

    @property
    def _parts(self) -> dict[str, tuple[Literal["events", "items", "users"], Files]]:
        """The parts of the settings that name files, by their place in the experiment file."""
        parts: dict[str, tuple[Literal["events", "items", "users"], Files]] = {
            f"source.events[{place}]": ("events", files) for place, files in enumerate(self.settings.events)
        }
        if self.settings.items:
            parts["source.items"] = ("items", self.settings.items)
        if self.settings.users:
            parts["source.users"] = ("users", self.settings.users)
        return parts

    def _match(self) -> dict[Path, tuple[str, Files]]:
        """Each file with the part of the settings that describes it, in a fixed order."""
        found: dict[Path, tuple[str, Files]] = {}
        for part, (_, files) in self._parts.items():
            for path in self._matches(files.files):
                if path in found:
                    raise ConfigError(
                        f"{path} is named by {found[path][0]} and by {part}; make one of the globs narrower."
                    )
                file_format(path, files)
                found[path] = part, files
        return found

    def _matches(self, glob: str) -> list[Path]:
        try:
            found = sorted(path for path in self.folder.glob(glob) if path.is_file())
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"source: files {glob!r} is no glob below source.path ({error}); mend it.") from None
        found = [p for p in found if not any(name.startswith((".", "_")) for name in p.relative_to(self.folder).parts)]
        if not found:
            held = sorted(path.name for path in self.folder.iterdir())[:5]
            raise DataError(f"{self.folder} has no {glob}; it holds {', '.join(held) or 'nothing'}. Check the glob.")
        return found

    def _of(self, file: RawFile) -> Files:
        self._found = self._found or self._match()
        if file.path not in self._found:
            raise DataError(f"{file.path} is none of the files that the experiment names; check the globs of source.")
        return self._found[file.path][1]


def _check_times(settings: MappingSource) -> None:
    """Raise ConfigError for a zone or a format that DuckDB does not know."""
    items = settings.items
    times = [*(files.time for files in settings.events), *([items.listed] if items and items.listed else [])]
    if all(time.zone == "UTC" and time.format is None for time in times):
        return
    with connect() as con:
        zones = {name for (name,) in con.sql("select name from pg_timezone_names()").fetchall()}
        for time in times:
            if time.zone not in zones:
                raise ConfigError(f"source: the zone {time.zone!r} is unknown; {nearest(time.zone, zones)}")
            try:
                con.execute("select try_strptime('', $format)", {"format": time.format or "%Y"})
            except duckdb.Error as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"source: time.format {time.format!r} is none ({reason}); see strptime.") from None
