"""From events to what was shown and what came of it: impressions in pages, pages in sessions.

A session is the log's own (``session_id``), else a run of a user's events without a pause of more than
``gap_minutes``; a pause of more than ``max_hours`` ends either. It belongs to the partition of its start. A longer
one is cut ``max_hours`` after its start; what is left is cut again at every UTC midnight and each ``max_hours`` of the
day, so that its pieces can be found without knowing when it all began.

Feedback is credited once: to the newest showing of the item at or before it, on the same request, or in the same
session where the event names no request, until ``max_hours`` after the session's start. Feedback to something that was
not shown is left out and counted (``uncredited``): added as shown, it would let the user choose the candidates that
rankers are judged on. It still counts as activity; a session that showed nothing is left out and counted (``empty``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from duckdb import DuckDBPyConnection

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline.errors import DataError
from pipeline.experiment import Rewards, Sessions
from pipeline.partitions import Partition
from pipeline.warehouse import connect, copy_select, create_table, run_sql

NEAR = timedelta(hours=48)  # events this far before and after a range decide its sessions: twice the largest max_hours
_OF_PARTITION = "start_ts >= $start and start_ts < $end"


def is_constructed(events: Sequence[Path]) -> bool:
    """Whether a log has no impressions, so that its shown items must be constructed. Ask it of the whole log."""
    with connect({"events": events}) as con:
        return not _exists(con, "event_type = 'impression'")


def build_sessions(
    events: Sequence[Path],
    wanted: Sequence[Partition],
    settings: Sessions,
    rewards: Rewards,
    positive_above: float | None,
    impressions_out: Callable[[Partition], Path],
    sessions_out: Callable[[Partition], Path],
    constructed: bool | None = None,
) -> dict[str, dict[str, int]]:
    """Write ``impressions`` and ``sessions`` of a contiguous range of partitions; returns counts by partition key.

    ``events`` must hold the range and ``NEAR`` on both sides of it; then every range that contains a partition writes
    the same bytes for it. ``constructed`` is what ``is_constructed`` says of the whole log, by default of the given
    files. Raises DataError for ratings without ``positive_above``.
    """
    with connect({"events": events}) as con:
        if positive_above is None and _exists(con, "event_type in ('rating', 'watch')"):
            raise DataError(
                "The log has ratings or watch ratios, but nothing says which of them are positive; "
                "set source.positive_above (for one to five stars, 3 is usual)."
            )
        if constructed is None:
            constructed = not _exists(con, "event_type = 'impression'")
        _sessionise(con, wanted, settings, rewards, positive_above, constructed)
        return {p.key: _write(con, p, impressions_out(p), sessions_out(p)) for p in wanted}


def _sessionise(
    con: DuckDBPyConnection,
    wanted: Sequence[Partition],
    settings: Sessions,
    rewards: Rewards,
    positive_above: float | None,
    constructed: bool,
) -> None:
    """Make the temporary tables from ``session_events`` to ``sessions``, each of the SQL file of its name."""
    names = [code.name.lower() for code in Feedback if code]  # SQL lists count from 1, as the codes do
    first, last = wanted[0].start, wanted[-1].end
    max_us = round(settings.max_hours * 3_600_000_000)
    create_table(
        con,
        "session_events",
        "staging/session_events",
        {
            "read_from": first - NEAR,
            "read_until": last + NEAR,
            "gap_us": min(round(settings.gap_minutes * 60_000_000), max_us),
            "max_us": max_us,
            "positive_above": positive_above,
            "feedback": names,
            "skip": int(Feedback.SKIP),
            "click": int(Feedback.CLICK),
        },
    )
    create_table(con, "showings", "staging/showings", {"constructed": constructed})
    create_table(con, "credits", "staging/credits", {"constructed": constructed, "max_us": max_us})
    create_table(con, "shown", "staging/shown", {"first_start": first, "last_end": last})
    pages = {"page_size": settings.page_size, "cols": settings.cols}
    outcomes = {"feedback": names, "rewards": list(rewards.by_code()[1:])}
    create_table(con, "impressions", "staging/impressions", pages | outcomes)
    positive = {"click": int(FIRST_POSITIVE), "purchase": int(Feedback.PURCHASE)}
    create_table(con, "sessions", "staging/sessions", positive)


def _write(con: DuckDBPyConnection, partition: Partition, impressions: Path, sessions: Path) -> dict[str, int]:
    period = {"start": partition.start, "end": partition.end}
    return {
        "impressions": copy_select(
            con,
            f"select * from impressions where {_OF_PARTITION} order by start_ts, session_id, position",
            impressions,
            "impressions",
            period,
        ),
        "sessions": copy_select(
            con,
            f"select * from sessions where {_OF_PARTITION} order by start_ts, session_id",
            sessions,
            "sessions",
            period,
        ),
        **run_sql(con, "staging/sessions_left_out", period).to_arrow_table().to_pylist()[0],
    }


def _exists(con: DuckDBPyConnection, condition: str) -> bool:
    return bool(con.sql(f"select 1 from events where {condition} limit 1").fetchall())
