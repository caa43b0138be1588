"""Taobao UserBehavior: 100,150,807 actions of a million users from 25 November to 3 December 2017 (China time).

The file (Tianchi, data set 649) has no header: user, item, category, behaviour (pv, fav, cart, buy), Unix seconds.
Licence CC BY-NC-SA 4.0; cite Zhu et al., "Learning Tree-based Deep Model for Recommender Systems", KDD 2018.

A page view counts as an impression: the log does not tell what was shown and passed over, so the shown set of a session
is constructed from what its user acted on. The file has a few rows of other days, which the papers drop; its days are
China's, while partitions are days in UTC: ``source.first_day`` and ``source.last_day`` cut it as the papers do.
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.source_settings import TaobaoSource
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS, Lines, RawFile, log_folder, nothing
from pipeline.sources.text import Layout, count_rows, read_rows, text_files
from pipeline.warehouse import run_sql

LAYOUT = Layout(columns=("user_id", "item_id", "category", "behaviour", "seconds"))
CHINA = timezone(timedelta(hours=8))
FARTHEST = 9_999_999_999  # what has more digits is not in seconds


class Taobao:
    """A folder with UserBehavior.csv, whole or in parts."""

    name = "taobao"
    has_impressions = False
    unpacks = False

    def __init__(self, settings: TaobaoSource, folder: Path) -> None:
        del folder  # nothing is generated
        self.settings = settings
        self.folder = log_folder(settings.path, "Taobao UserBehavior")

    def discover(self) -> list[RawFile]:
        found = text_files(self.folder, "UserBehavior*.csv")
        if not found:
            raise DataError(f"{self.folder} has no UserBehavior*.csv; fetch it from Tianchi (data set 649).")
        return [RawFile(path, "events") for path in found]

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        read_rows(con, file.path, LAYOUT, only).create_view("raw_rows")
        first, last = self.settings.first_day, self.settings.last_day
        params = {
            "first": _midnight(first) if first else -FARTHEST,
            "last": _midnight(last + timedelta(days=1)) - 1 if last else FARTHEST,
        }
        return run_sql(con, "staging/taobao_events", params)

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return count_rows(file.path, LAYOUT)

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        return nothing(con, ITEM_COLUMNS)

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        return nothing(con, USER_COLUMNS)


def _midnight(day: date) -> int:
    """The Unix second in which a day begins in China."""
    return int(datetime(day.year, day.month, day.day, tzinfo=CHINA).timestamp())
