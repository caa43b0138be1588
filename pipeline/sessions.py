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
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from duckdb import DuckDBPyConnection

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline.constructed import Rules, near_midnight, whole_visits, write_sessions
from pipeline.errors import DataError
from pipeline.experiment import Rewards, Sessions
from pipeline.partitions import Partition
from pipeline.storage import code_fingerprint, fingerprint, link
from pipeline.warehouse import ROW_GROUP, connect, copy_ordered, create_table, instant, run_sql, sql_text

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

    ``events`` must hold the partitions and ``NEAR`` on both sides of them, sorted as ``pipeline.ingest`` does. A table
    of a partition is two files: that of the users who were away at its end, which no later day changes unless one of
    their visits goes on there, and that of the users who were not (``late_path``). ``reuse`` gives the published files
    of a partition by table: where the first of them was made from the same rows it is linked, not made again.
    ``constructed`` is what ``is_constructed`` says of the whole log, by default of the given files. Raises DataError
    for ratings without ``positive_above``.
    """
    with connect({"events": events}) as con:
        if positive_above is None and _exists(con, "event_type in ('rating', 'watch')"):
            raise DataError(
                "The log has ratings or watch ratios, but nothing says which of them are positive; "
                "set source.positive_above (for one to five stars, 3 is usual)."
            )
        if constructed is None:
            constructed = not _exists(con, "event_type = 'impression'")
        plain = [partition for partition in wanted if constructed and _is_plain(con, partition)]
    # Fingerprinted here, not by the workers: two threads must not be in Python's parser at a time.
    rules = _Rules(settings, rewards, positive_above, constructed, code_fingerprint("pipeline.sessions"))
    others = [partition for partition in wanted if partition not in plain]

    def build(partition: Partition) -> dict[str, int]:
        with connect({"events": events}, workers=WORKERS) as con:
            outs = impressions_out(partition), sessions_out(partition)
            return _build(con, partition, rules, *outs, reuse(partition))

    with ThreadPoolExecutor(WORKERS) as pool:  # DuckDB and numpy compute outside of Python's lock
        counts = dict(zip((p.key for p in others), pool.map(build, others), strict=True))
    outs = {p: (impressions_out(p), sessions_out(p)) for p in plain}
    counts |= _build_plain(events, outs, rules, reuse) if plain else {}
    return {partition.key: counts[partition.key] for partition in wanted}


def _is_plain(con: DuckDBPyConnection, partition: Partition) -> bool:
    """Whether the events that decide a partition's sessions only say who acted on what and when."""
    near = _between(partition.start - NEAR, partition.end + NEAR)
    return not _exists(con, f"{near} and (session_id is not null or {_PLACED})")


def late_path(path: Path) -> Path:
    """Where the sessions of the users lie who were still there at a partition's end.

    For logs that only say who acted on what and when: the sessions near the beginning or the end.
    """
    return path.with_name(f"{path.stem}-late{path.suffix}")


@dataclass(frozen=True)
class _Rules:
    settings: Sessions
    rewards: Rewards
    positive_above: float | None
    constructed: bool
    code: str  # fingerprint of what reads and sessionises

    @property
    def max_us(self) -> int:
        return round(self.settings.max_hours * 3_600_000_000)

    @property
    def gap_us(self) -> int:
        return min(round(self.settings.gap_minutes * 60_000_000), self.max_us)

    def of(self, partition: Partition) -> Rules:
        first, last = (round(moment.timestamp() * 1_000_000) for moment in (partition.start, partition.end))
        rewards = np.array(self.rewards.by_code())
        return Rules(first, last, self.max_us, self.settings.page_size, self.settings.cols, rewards)

    def codes(self) -> dict[str, Any]:
        """The parameters of ``constructed_rows.sql``."""
        names = [code.name.lower() for code in Feedback if code]  # SQL lists count from 1, as the codes do
        codes = {"feedback": names, "skip": int(Feedback.SKIP), "click": int(FIRST_POSITIVE)}
        return codes | {"positive_above": self.positive_above, "gap_us": self.gap_us, "max_us": self.max_us}

    def made_from(self, *rows: Any) -> str:
        """A fingerprint of rows with all that decides what becomes of them."""
        settings = self.settings.model_dump(mode="json"), self.rewards.model_dump(mode="json")
        return fingerprint(rows, settings, self.positive_above, self.constructed, self.code)


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
    return _noted(impressions, made_from, early, late)


def _noted(impressions: Path, made_from: str, early: dict[str, int], late: dict[str, int]) -> dict[str, int]:
    """Write down what the first file was made from, for ``_linked``; returns the counts of both."""
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
    return rules.made_from(rows)


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
    return _between(partition.start, partition.end)


def _between(start: datetime, end: datetime) -> str:
    return f"event_ts >= {instant(start)} and event_ts < {instant(end)}"


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
    left_out = {"empty": 0, "uncredited": 0}  # of a session's acts none, where every act shows its item
    if is_simple:
        rows = f"from ({sql_text('staging/constructed_rows')}) order by visit, us, event_id"
        batches = con.sql(rows, params=rules.codes()).to_arrow_reader(ROW_GROUP)
        return write_sessions(batches, rules.of(partition), impressions, sessions) | left_out
    _sessionise(con, partition, rules)
    copy_ordered(con, "from impressions", impressions, "impressions")  # both are sorted
    copy_ordered(con, "from sessions", sessions, "sessions")
    counts = {
        "impressions": "select count(*) from impressions",
        "sessions": "select count(*) from sessions",
        "capped": "select count(*) from sessions where capped",
    }
    found = {name: int(con.sql(select).fetchall()[0][0]) for name, select in counts.items()}
    period = {"start": partition.start, "end": partition.end}
    [(empty, uncredited)] = run_sql(con, "staging/sessions_left_out", period).fetchall()
    return found | {"empty": int(empty), "uncredited": int(uncredited)}


def _sessionise(con: DuckDBPyConnection, partition: Partition, rules: _Rules) -> None:
    """Make the temporary tables from ``session_rows`` to ``sessions``, each of the SQL file of its name."""
    names = [code.name.lower() for code in Feedback if code]  # SQL lists count from 1, as the codes do
    codes = {"feedback": names, "skip": int(Feedback.SKIP), "click": int(FIRST_POSITIVE)}
    pages = {"page_size": rules.settings.page_size, "cols": rules.settings.cols}
    outcomes = {"feedback": names, "rewards": list(rules.rewards.by_code()[1:])}
    limits = {"gap_us": rules.gap_us, "max_us": rules.max_us}
    starts = {"first_start": partition.start, "last_end": partition.end}
    create_table(con, "session_rows", "staging/session_rows", {"positive_above": rules.positive_above} | codes)
    create_table(con, "session_events", "staging/session_events", limits)
    create_table(con, "showings", "staging/showings", {"constructed": rules.constructed})
    create_table(con, "credits", "staging/credits", {"constructed": rules.constructed, "max_us": rules.max_us})
    create_table(con, "shown", "staging/shown", starts | {"click": int(FIRST_POSITIVE)})
    create_table(con, "impressions", "staging/impressions", pages | outcomes)
    positive = {"click": int(FIRST_POSITIVE), "purchase": int(Feedback.PURCHASE)}
    create_table(con, "sessions", "staging/sessions", positive)


def _build_plain(
    events: Sequence[Path],
    outs: Mapping[Partition, tuple[Path, Path]],
    rules: _Rules,
    reuse: Callable[[Partition], Mapping[str, Path]],
) -> dict[str, dict[str, int]]:
    """As ``_build``, for a log that only says who acted on what and when."""
    with connect({"events": events}) as con, ThreadPoolExecutor(WORKERS) as pool:
        log = _PlainLog(con, rules)
        early = list(pool.map(lambda partition: log.write_early(partition, outs[partition], reuse(partition)), outs))
        list(pool.map(log.read_margin, _margins(list(outs))))
        late = list(pool.map(lambda partition: log.write_late(partition, outs[partition]), outs))
    left_out = {"empty": 0, "uncredited": 0}
    return {
        partition.key: _noted(impressions, *of_early, of_late) | left_out
        for (partition, (impressions, _)), of_early, of_late in zip(outs.items(), early, late, strict=True)
    }


class _PlainLog:
    """Events that lie in the order in which ``pipeline.constructed`` asks for them, but for visits over midnight.

    A run of a user's acts that does not come near midnight has nothing to do with other days: its sessions go to the
    first file. All others come together in the table ``edges``; they are sorted, and make the second file.
    """

    def __init__(self, con: DuckDBPyConnection, rules: _Rules) -> None:
        self.con = con
        self.rules = rules
        con.execute("set threads = 1")  # a cursor: each keeps the order of its rows
        con.execute("create temp view session_log as from events limit 0")
        con.execute(f"create table edges as {sql_text('staging/constructed_rows')}", rules.codes())

    def write_early(
        self, partition: Partition, outs: tuple[Path, Path], published: Mapping[str, Path]
    ) -> tuple[str, dict[str, int]]:
        """What the first files of both tables are made from, and what they hold."""
        with self.con.cursor() as con:
            digest = (
                f"select count(*), sum(event_id)::varchar, bit_xor(event_id) from events where {_inside(partition)}"
            )
            made_from = self.rules.made_from(con.sql(digest).fetchall())
            counts = _linked(published, *outs, made_from)
            if counts is not None:
                self._read_edges(con, _inside(partition))
                return made_from, counts
            edges = _Edges(self.rules.gap_us)
            counts = write_sessions(self._rows(con, _inside(partition)), self.rules.of(partition), *outs, edges.take)
            edges.insert(con)
            return made_from, counts

    def read_margin(self, margin: tuple[datetime, datetime]) -> None:
        with self.con.cursor() as con:
            self._read_edges(con, _between(*margin))

    def _read_edges(self, con: DuckDBPyConnection, condition: str) -> None:
        edges = _Edges(self.rules.gap_us)
        for visits in whole_visits(self._rows(con, condition)):
            edges.take(visits)
        edges.insert(con)

    def write_late(self, partition: Partition, outs: tuple[Path, Path]) -> dict[str, int]:
        moments = (partition.start, partition.end, partition.start - NEAR, partition.end + NEAR)
        start, end, read_from, read_until = (round(moment.timestamp() * 1_000_000) for moment in moments)
        rows = f"""
            from edges
            where us >= {read_from} and us < {read_until}
                and visit in (select visit from edges where us >= {start} and us < {end})
            order by visit, us, event_id"""
        impressions, sessions = map(late_path, outs)
        with self.con.cursor() as con:
            batches = con.sql(rows).to_arrow_reader(ROW_GROUP)
            return write_sessions(batches, self.rules.of(partition), impressions, sessions)

    def _rows(self, con: DuckDBPyConnection, condition: str) -> pa.RecordBatchReader:
        con.execute(f"create or replace temp view session_log as from events where {condition}")
        return con.sql(sql_text("staging/constructed_rows"), params=self.rules.codes()).to_arrow_reader(ROW_GROUP)


class _Edges:
    """The rows of one partition or margin that are put aside."""

    def __init__(self, gap_us: int) -> None:
        self.gap_us = gap_us
        self.taken: list[pa.Table] = []

    def take(self, rows: pa.Table) -> np.ndarray[Any, np.dtype[Any]]:
        """Keep the runs of acts that come near midnight; returns which rows these are."""
        near = near_midnight(rows, self.gap_us)
        self.taken.append(rows.filter(pa.array(near)))
        return near

    def insert(self, con: DuckDBPyConnection) -> None:
        """Add them to ``edges``: at once, for each insertion takes milliseconds."""
        if self.taken:
            con.register("near_rows", pa.concat_tables(self.taken))
            con.execute("insert into edges from near_rows")
            con.unregister("near_rows")


def _margins(partitions: Sequence[Partition]) -> list[tuple[datetime, datetime]]:
    """The times within NEAR of the partitions that lie in none of them."""
    ordered = sorted(partitions, key=lambda partition: partition.start)
    margins = [(ordered[0].start - NEAR, ordered[0].start), (ordered[-1].end, ordered[-1].end + NEAR)]
    for before, after in pairwise(ordered):
        middle = min(before.end + NEAR, after.start)
        margins += [(before.end, middle), (max(middle, after.start - NEAR), after.start)]
    return [(start, end) for start, end in margins if start < end]


def _exists(con: DuckDBPyConnection, condition: str, table: str = "events") -> bool:
    return bool(con.sql(f"select 1 from {table} where {condition} limit 1").fetchall())
