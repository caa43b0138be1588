"""Train, validation and test as cut-offs in global time.

A session belongs to the split that it starts in; one that reaches the end of its split is dropped and counted, so that
everything of an earlier split lies before everything of a later one. ``sql/staging/session_splits.sql`` names the
sessions that are left: the one place where a session gets its split.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
from duckdb import DuckDBPyConnection

from pipeline.checks import run_check
from pipeline.errors import TooSmallError
from pipeline.experiment import Splits, utc
from pipeline.warehouse import connect, create_table, run_sql, write_parquet

MIN_STARTS = 3  # distinct session starts: one a split
MIN_USABLE = 2  # sessions of validation and of test in which a ranking can be judged: an interval needs two


def build_splits(
    sessions: Sequence[Path], settings: Splits, out: Path, min_usable: int = MIN_USABLE
) -> dict[str, dict[str, int]]:
    """Write ``splits``; returns the kept and dropped sessions by split.

    A share is turned into the session start that comes nearest to it. Raises TooSmallError when a split stays empty.
    """
    with connect({"sessions": sessions}) as con:
        n, starts = con.sql("select count(*), count(distinct start_ts) from sessions").fetchall()[0]
        if starts < MIN_STARTS:
            raise TooSmallError(
                f"The log is too small to split: {n} sessions with {starts} distinct start times, and train, "
                "validation and test need one each; use a longer log, or cut sessions finer with sessions.gap_minutes."
            )
        validation, test = _cut_offs(con, settings)
        splits = run_sql(con, "staging/splits", {"validation": validation, "test": test}).to_arrow_table()
        _refuse_empty(splits, n, min_usable)
        write_parquet(out, "splits", splits.to_batches())
        return {s["split"]: {"sessions": s["sessions"], "dropped": s["dropped"]} for s in splits.to_pylist()}


def session_splits(con: DuckDBPyConnection) -> None:
    """Make the temporary table ``session_splits`` (session_id, user_id, split) from ``sessions`` and ``splits``."""
    create_table(con, "session_splits", "staging/session_splits")


def check_splits(sessions: Sequence[Path], impressions: Sequence[Path], splits: Sequence[Path]) -> list[str]:
    """Why max(train ts) < min(validation ts) and max(validation ts) < min(test ts) do not hold; empty if they do."""
    with connect({"sessions": sessions, "impressions": impressions, "splits": splits}) as con:
        session_splits(con)
        return run_check(con, "split_order")


def _cut_offs(con: DuckDBPyConnection, settings: Splits) -> tuple[datetime, datetime]:
    if isinstance(settings.validation, datetime) and isinstance(settings.test, datetime):
        return utc(settings.validation), utc(settings.test)
    validation = _at_share(con, settings.validation, None, later_splits=1)
    return validation, _at_share(con, settings.test, validation, later_splits=0)


def _at_share(con: DuckDBPyConnection, share: float | datetime, after: datetime | None, later_splits: int) -> datetime:
    params = {"share": share, "after": after, "later_splits": later_splits}
    ((moment,),) = run_sql(con, "staging/split_cutoff", params).fetchall()
    return utc(moment)


def _refuse_empty(splits: pa.Table, n: int, min_usable: int) -> None:
    for split in splits.to_pylist():
        if not split["sessions"]:
            raise TooSmallError(
                f"The log is too small to split: of {n} sessions, {split['dropped']} start in the {split['split']} "
                f"split ({split['start_ts']} to {split['end_ts']}) and none ends in it; "
                "use a longer log, or move splits.validation and splits.test."
            )
        if split["usable"] < min_usable and split["split"] != "train":
            raise TooSmallError(
                f"The log is too small to split: {split['usable']} of the {split['sessions']} sessions of the "
                f"{split['split']} split have both positive and other feedback, and without {min_usable} no ranking "
                "can be judged; use a longer log, or move splits.validation and splits.test."
            )
