"""RL4RS (NetEase, a game's shop): slates of nine items, one a session in dataset A, up to four in B.

Files (rl4rs-dataset.tar.gz, https://zenodo.org/record/6622390): item_info.csv, and for each data set the log of a
supervised policy and, later, of a reinforcement-learned one (rl4rs_dataset_a_sl.csv, …_b_rl.csv); columns between @,
with a header. Licence CC BY-SA 4.0 in the archive (CC BY 4.0 on its page); cite Wang et al., "RL4RS: A Real-World
Dataset for Reinforcement Learning based Recommender System", SIGIR 2023.

A row is a slate: nine impressions in the order of exposed_items (positions 0 to 8), all at the row's time, and a
purchase at its price in item_info.csv where user_feedback is 1. Every log numbers its sessions from 1, so a session is
called by its log and its number (``a-rl-1``), and a slate by its sequence_id besides.

There is no user id: a session is a user of its own, described by the dense part of the portrait in its first slate
(32 numbers, as signed logarithms); the portrait's ten hashed codes are left out. The time stamps are an anonymous
count, read as seconds since 1970. behavior_policy_id names a policy, not its odds: there are no propensities. An item's
layer (its location, which decides where in a slate it may lie) is its category.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.source_settings import Rl4rsSource
from pipeline.sources.base import ITEM_COLUMNS, Lines, RawFile, log_folder, nothing
from pipeline.sources.files import read_catalogue
from pipeline.sources.text import Layout, count_rows, header, read_rows, text_files
from pipeline.warehouse import run_sql

LOG = Layout(
    separator="@",
    needed=("timestamp", "session_id", "sequence_id", "exposed_items", "user_feedback", "user_protrait"),
)
ITEMS = Layout(separator=" ", needed=("item_id", "item_vec", "price", "location", "special_item"))
# The publisher's scripts put cut and shuffled copies (…_sl_train.csv) beside the logs.
_LOG_NAME = re.compile(r"rl4rs_dataset_([ab])_(sl|rl)\.")


class RL4RS:
    """A folder with item_info.csv and some of the logs."""

    name = "rl4rs"
    has_impressions = True
    unpacks = True

    def __init__(self, settings: Rl4rsSource, folder: Path) -> None:
        del folder  # nothing is generated
        self.folder = log_folder(settings.path, "RL4RS")

    def discover(self) -> list[RawFile]:
        logs = [path for path in text_files(self.folder, "rl4rs_dataset_*.csv", 1) if _LOG_NAME.match(path.name)]
        if not logs:
            raise DataError(f"{self.folder} has no rl4rs_dataset_[ab]_[sl|rl].csv; unpack rl4rs-dataset.tar.gz there.")
        for path in logs:
            header(path, LOG)
        items = self._item_info()
        # A log is read once more for the portraits of its users.
        return [
            *(RawFile(path, "events", context=_log(path), needs=(items,)) for path in logs),
            RawFile(items, "items"),
            *(RawFile(path, "users", context=_log(path)) for path in logs),
        ]

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        read_catalogue(con, self._item_info(), ITEMS, "staging/rl4rs_items").create_view("item_info")
        read_rows(con, file.path, LOG, only).create_view("raw_rows")
        return run_sql(con, "staging/rl4rs_events", {"log": _log(file.path)})

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return count_rows(file.path, LOG)

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        for file in files:
            if file.kind == "items":
                return read_catalogue(con, file.path, ITEMS, "staging/rl4rs_items")
        return nothing(con, ITEM_COLUMNS)

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        con.execute(
            "create or replace temp table portraits (user_id varchar, second bigint, page integer, features float[])"
        )
        for file in files:
            if file.kind == "users":
                read_rows(con, file.path, LOG).create_view("raw_rows")
                run_sql(con, "staging/rl4rs_portraits", {"log": _log(file.path)}).insert_into("portraits")
        return run_sql(con, "staging/rl4rs_users")

    def _item_info(self) -> Path:
        found = text_files(self.folder, "item_info.csv", 1)
        if not found:
            raise DataError(f"{self.folder} has no item_info.csv; it lies in rl4rs-dataset.tar.gz with the logs.")
        return found[0]


def _log(path: Path) -> str:
    """The log that a file belongs to, as ``a-rl``."""
    match = _LOG_NAME.match(path.name)
    return f"{match[1]}-{match[2]}" if match else path.stem
