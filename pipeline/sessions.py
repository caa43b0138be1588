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

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from duckdb import DuckDBPyConnection

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline.errors import DataError
from pipeline.experiment import Rewards, Sessions
from pipeline.partitions import Partition
from pipeline.storage import code_fingerprint, fingerprint, link
from pipeline.warehouse import connect, copy_ordered, create_table, instant, run_sql

WORKERS = 2  # partitions that are made at a time
_PLACED = "request_id is not null or position is not null"
NEAR = timedelta(hours=48)  # events this far before and after a range decide its sessions: twice the largest max_hours


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
    reuse: Callable[[Partition], Mapping[str, Path]] = lambda partition: {},
) -> dict[str, dict[str, int]]:
    """Write ``impressions`` and ``sessions`` of each partition; returns counts by partition key.

    ``events`` must hold the partitions and ``NEAR`` on both sides of them. A table of a partition is two files: that of
    the users who were away at its end, which no later day changes unless one of their visits goes on there, and that of
    the users who were not (``late_path``). ``reuse`` gives the published files of a partition by table: where the first
    of them was made from the same rows it is linked, not made again. ``constructed`` is what ``is_constructed`` says of
    the whole log, by default of the given files. Raises DataError for ratings without ``positive_above``.
    """
    with connect({"events": events}) as con:
        if positive_above is None and _exists(con, "event_type in ('rating', 'watch')"):
            raise DataError(
                "The log has ratings or watch ratios, but nothing says which of them are positive; "
                "set source.positive_above (for one to five stars, 3 is usual)."
            )
        if constructed is None:
            constructed = not _exists(con, "event_type = 'impression'")
    rules = _Rules(settings, rewards, positive_above, constructed)

    def build(partition: Partition) -> dict[str, int]:
        with connect({"events": events}, workers=WORKERS) as con:
            outs = impressions_out(partition), sessions_out(partition)
            return _build(con, partition, rules, *outs, reuse(partition))

    with ThreadPoolExecutor(WORKERS) as pool:  # DuckDB computes outside of Python's lock
        return dict(zip((p.key for p in wanted), pool.map(build, wanted), strict=True))


def late_path(path: Path) -> Path:
    """Where the sessions of the users lie who were still there at a partition's end."""
    return path.with_name(f"{path.stem}-late{path.suffix}")


@dataclass(frozen=True)
class _Rules:
    settings: Sessions
    rewards: Rewards
    positive_above: float | None
    constructed: bool

    @property
    def max_us(self) -> int:
        return round(self.settings.max_hours * 3_600_000_000)

    @property
    def gap_us(self) -> int:
        return min(round(self.settings.gap_minutes * 60_000_000), self.max_us)


def _build(
    con: DuckDBPyConnection,
    partition: Partition,
    rules: _Rules,
    impressions: Path,
    sessions: Path,
    published: Mapping[str, Path],
) -> dict[str, int]:
    """Both files of both tables of one partition; what the first was made from lies beside it."""
    gap = timedelta(microseconds=rules.gap_us)
    near = {
        "start": partition.start,
        "end": partition.end,
        "read_from": partition.start - NEAR,
        "read_until": partition.end + NEAR,
    }
    pauses = {"gap": gap, "longest_pause": timedelta(microseconds=rules.max_us)}
    create_table(con, "visits_into", "staging/crossing_visits", {"border": partition.start} | pauses)
    create_table(con, "visits_out", "staging/crossing_visits", {"border": partition.end} | pauses)
    create_table(con, "request_users", "staging/request_users", near)
    create_table(con, "neighbours", "staging/session_neighbours", near)
    create_table(con, "late_users", "staging/late_users", {"end": partition.end, "gap": gap})
    is_simple = rules.constructed and not _exists(con, f"{_inside(partition)} and ({_PLACED})")
    is_simple = is_simple and not _exists(con, _PLACED, "neighbours")
    made_from = _early_rows(con, partition, rules)
    early = _linked(published, impressions, sessions, made_from)
    if early is None:
        _log_view(con, partition, is_simple, "anti")
        early = _write(con, partition, rules, is_simple, impressions, sessions)
    _log_view(con, partition, is_simple, "semi")
    late = _write(con, partition, rules, is_simple, late_path(impressions), late_path(sessions))
    record = {"made_from": made_from, "counts": early}
    (impressions.with_suffix(".json")).write_text(json.dumps(record), encoding="utf-8")
    return {name: count + late[name] for name, count in early.items()}


def _early_rows(con: DuckDBPyConnection, partition: Partition, rules: _Rules) -> str:
    """A fingerprint of all that the sessions of the users who were away at the partition's end are made from."""
    digest = (
        "select count(*), sum(event_id)::varchar, bit_xor(event_id) from {rows} as rows "
        "where user_id not in (from late_users)"
    )
    inside = f"(from events where {_inside(partition)})"
    rows = [con.sql(digest.format(rows=rows)).fetchall() for rows in (inside, "neighbours")]
    settings = rules.settings.model_dump(mode="json"), rules.rewards.model_dump(mode="json")
    return fingerprint(rows, settings, rules.positive_above, rules.constructed, code_fingerprint("pipeline.sessions"))


def _linked(published: Mapping[str, Path], impressions: Path, sessions: Path, made_from: str) -> dict[str, int] | None:
    """Link the published files if they were made from the same rows; returns their counts, or None."""
    if not {"impressions", "sessions"} <= published.keys():
        return None
    try:
        record = json.loads(published["impressions"].with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record["made_from"] != made_from:
        return None
    link(published["impressions"], impressions)
    link(published["sessions"], sessions)
    return dict(record["counts"])


def _inside(partition: Partition) -> str:
    return f"event_ts >= {instant(partition.start)} and event_ts < {instant(partition.end)}"


def _log_view(con: DuckDBPyConnection, partition: Partition, is_simple: bool, join: Literal["semi", "anti"]) -> None:
    """``session_log``: the events that decide the sessions of the late users (semi) or of the others (anti).

    A simple log is constructed and has no requests and slots: their columns are left out.
    """
    con.execute(
        f"""
        create or replace view session_log as
        with inside as (
            select event_id, user_id, item_id, event_ts, event_type, value, session_id, request_id, position, propensity
            from events
            where {_inside(partition)}
            union all
            from neighbours
        )
        select * {"exclude (request_id, position, propensity)" if is_simple else ""}
        from inside {join} join late_users using (user_id)
        """
    )


def _write(
    con: DuckDBPyConnection, partition: Partition, rules: _Rules, is_simple: bool, impressions: Path, sessions: Path
) -> dict[str, int]:
    """Sessionise ``session_log``; write what starts in the partition."""
    _sessionise(con, partition, rules, is_simple)
    copy_ordered(con, "from impressions", impressions, "impressions")  # both are sorted
    copy_ordered(con, "from sessions", sessions, "sessions")
    counts = {
        "impressions": "select count(*) from impressions",
        "sessions": "select count(*) from sessions",
        "capped": "select count(*) from sessions where capped",
    }
    found = {name: int(con.sql(select).fetchall()[0][0]) for name, select in counts.items()}
    left_out = {"empty": 0, "uncredited": 0}  # of a session's acts none, where every act shows its item
    if not is_simple:
        period = {"start": partition.start, "end": partition.end}
        left_out = run_sql(con, "staging/sessions_left_out", period).to_arrow_table().to_pylist()[0]
    return found | left_out


def _sessionise(con: DuckDBPyConnection, partition: Partition, rules: _Rules, is_simple: bool) -> None:
    """Make the temporary tables from ``session_rows`` to ``sessions``, each of the SQL file of its name."""
    names = [code.name.lower() for code in Feedback if code]  # SQL lists count from 1, as the codes do
    codes = {"feedback": names, "skip": int(Feedback.SKIP), "click": int(FIRST_POSITIVE)}
    pages = {"page_size": rules.settings.page_size, "cols": rules.settings.cols}
    outcomes = {"feedback": names, "rewards": list(rules.rewards.by_code()[1:])}
    limits = {"gap_us": rules.gap_us, "max_us": rules.max_us}
    create_table(con, "session_rows", "staging/session_rows", {"positive_above": rules.positive_above} | codes)
    create_table(con, "session_events", "staging/session_events", limits)
    if is_simple:
        first, last = (round(moment.timestamp() * 1_000_000) for moment in (partition.start, partition.end))
        bounds = {"first_us": first, "last_us": last, "click": int(FIRST_POSITIVE)}
        create_table(con, "constructed_acts", "staging/constructed_acts", bounds)
        create_table(con, "impressions", "staging/constructed_impressions", pages | outcomes)
    else:
        create_table(con, "showings", "staging/showings", {"constructed": rules.constructed})
        create_table(con, "credits", "staging/credits", {"constructed": rules.constructed, "max_us": rules.max_us})
        starts = {"first_start": partition.start, "last_end": partition.end}
        create_table(con, "shown", "staging/shown", starts | {"click": int(FIRST_POSITIVE)})
        create_table(con, "impressions", "staging/impressions", pages | outcomes)
    positive = {"click": int(FIRST_POSITIVE), "purchase": int(Feedback.PURCHASE)}
    create_table(con, "sessions", "staging/sessions", positive)


def _exists(con: DuckDBPyConnection, condition: str, table: str = "events") -> bool:
    return bool(con.sql(f"select 1 from {table} where {condition} limit 1").fetchall())
