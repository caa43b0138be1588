"""YooChoose (RecSys Challenge 2015): 33,003,944 clicks and 1,150,753 buys, 9,249,729 sessions, April to September 2014.

Two files without a header, joined by the session: yoochoose-clicks.dat (session, ISO time in UTC, item, context) and
yoochoose-buys.dat (session, time, item, price, quantity); yoochoose-test.dat has no buys and is left alone. Licence
CC BY-NC-ND 4.0; cite Ben-Shimon et al., "RecSys Challenge 2015 and the YOOCHOOSE Dataset", RecSys 2015.

Nobody is known beyond a session: each session is a user of its own. A click counts as an impression, for the log does
not tell what was shown and passed over. A purchase's value is its price; 0 means unknown, and the quantity, which says
as little, is not read. The context of a click gives the item's category (1 to 12, or S in a special offer) or brand.

With ``source.buying_sessions``, as in GoalRec, clicks of sessions without a usable line in the buys are left out. That
is decided when a clicks file is first read: bring the buys with it, not later.
"""

from collections.abc import Sequence
from pathlib import Path

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.source_settings import YooChooseSource
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS, Lines, RawFile, log_folder, nothing
from pipeline.sources.text import Layout, count_rows, read_rows, text_files
from pipeline.warehouse import run_sql

# The publisher's files have no quotes, some copies do.
CLICKS = Layout(columns=("session_id", "time", "item_id", "context"), quote='"')
BUYS = Layout(columns=("session_id", "time", "item_id", "price", "quantity"), quote='"')
LAYOUTS = {"yoochoose-clicks": CLICKS, "yoochoose-buys": BUYS}


class YooChoose:
    """A folder with the clicks and the buys, each whole or in parts."""

    name = "yoochoose"
    has_impressions = False
    unpacks = False

    def __init__(self, settings: YooChooseSource, folder: Path) -> None:
        del folder  # nothing is generated
        self.settings = settings
        self.folder = log_folder(settings.path, "YooChoose")

    def discover(self) -> list[RawFile]:
        found = {name: text_files(self.folder, f"{name}*.dat") for name in LAYOUTS}
        for name, paths in found.items():
            if not paths:
                raise DataError(f"{self.folder} has no {name}*.dat; unpack yoochoose-data.7z there.")
        needs = tuple(found["yoochoose-buys"]) if self.settings.buying_sessions else ()
        return [RawFile(path, "events", context=name, needs=needs) for name, paths in found.items() for path in paths]

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        if _layout(file.path) is BUYS:
            return _buys(con, file.path, only)
        if not self.settings.buying_sessions:
            return _clicks(con, file.path, only)
        con.execute("create or replace temp table buyers (session_id varchar)")
        for path in text_files(self.folder, "yoochoose-buys*.dat"):
            usable = _buys(con, path).filter("reason is null and session_id <> ''")
            usable.project("session_id").distinct().insert_into("buyers")
        _clicks(con, file.path, only).create_view("clicks")
        return run_sql(con, "staging/yoochoose_buying_sessions")

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return count_rows(file.path, _layout(file.path))

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        return nothing(con, ITEM_COLUMNS)

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        return nothing(con, USER_COLUMNS)


def _layout(path: Path) -> Layout:
    return next(layout for name, layout in LAYOUTS.items() if path.name.startswith(name))


def _clicks(con: DuckDBPyConnection, path: Path, only: Lines | None) -> DuckDBPyRelation:
    read_rows(con, path, CLICKS, only).create_view("raw_rows")
    return run_sql(con, "staging/yoochoose_clicks")


def _buys(con: DuckDBPyConnection, path: Path, only: Lines | None = None) -> DuckDBPyRelation:
    read_rows(con, path, BUYS, only).create_view("raw_rows")
    return run_sql(con, "staging/yoochoose_buys")
