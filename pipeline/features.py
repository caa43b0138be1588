"""Point-in-time features: GoalRec's four groups, of what lay strictly before each impression.

For an impression of item i to user u at the moment t, ``_1h``, ``_6h``, ``_24h`` and ``_1w`` look at [t − w, t):
nothing of the moment t itself counts, and nothing older than a week.

- item: its category, brand and shop; impressions, positives and their ratio (``ctr``, 0 where nothing was shown); hours
  since its first showing of that week, null where there was none.
- user: impressions, positives, and the number of different categories of the positives.
- user and item: impressions and positives of i to u, and u's positives in i's category, brand and shop; null where the
  catalogue does not name the category, brand or shop.
- context: hour and weekday (UTC), page and position in the session, hours since the item was listed.

A positive counts from the moment that it was known (``positive_ts``), not from its impression, so that the ratio of a
short window can pass 1, as it does in a shop's own counters. GoalRec's item embeddings and user portraits are joined by
id where they are needed: rows keep ids, not features.

A day costs about the same with a long history as without: of the week before it only the two days in which windows
start are kept moment by moment, the time between as one count; of users, only those of the day; and whether an earlier
day's facts are other ones is told from the files that are new, for of the others a record beside the features knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from pipeline.checks import run_check
from pipeline.partitions import Partition
from pipeline.storage import code_fingerprint, file_hash, fingerprint, link
from pipeline.warehouse import connect, copy_select, create_table, run_sql, sql_text, view

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY, WEEK = timedelta(hours=24), timedelta(hours=168)
SAMPLE = 200  # impressions that the check recounts
_KINDS = ("user_category", "user_brand", "user_shop")  # subjects of which only positives count
_OF_WEEK = ("user_item", *_KINDS)  # subjects that are counted over a week alone


def build_features(
    impressions: Sequence[Path],
    described: Path,
    wanted: Sequence[Partition],
    out: Callable[[Partition], Path],
    reuse: Callable[[Partition], Path | None] = lambda partition: None,
    mentions: Callable[[Partition], Sequence[Path]] = lambda partition: (),
) -> list[Partition]:
    """Write ``features`` of each partition; returns those that had to be made.

    A row belongs to the partition of its impression's time, not of its session's start. ``impressions`` must hold the
    partitions and the eight days before each: a week, and a day for the length of a session. ``described`` is the items
    file of ``write_entities``; ``mentions`` gives the tables ``mentions`` of a partition and of the eight days before
    it, which say what the catalogue does not (of contradictory ones the smallest holds). ``reuse`` gives the published
    file of a partition: where it was made from the same facts it is linked, not made again, for a new day's impressions
    come with those of the days before it.
    """
    code = code_fingerprint("pipeline.features")
    published = {p: path for p in wanted if (path := reuse(p))}
    records = {p: _record(path, code) for p, path in published.items()}
    with connect({"impressions": impressions, "described_items": [described]}) as con:
        files = _shown(con, impressions, records.values())
        said = {p: [path for path in mentions(p) if pq.read_metadata(path).num_rows] for p in wanted}
        hashes = {path: file_hash(path) for path in {described, *chain(*said.values())}}
        made_from = {
            p: fingerprint(_facts_of(files, p), code, [hashes[path] for path in (described, *said[p])]) for p in wanted
        }
        same = [p for p, record in records.items() if record.get("made_from") == made_from[p]]
        for p in same:
            link(published[p], out(p))
        stale = [p for p in wanted if p not in same]
        con.execute(f"create view facts as {sql_text('staging/feature_facts')}")
        # What events say of an item may change with time: each partition then has a catalogue of its own.
        for neighbours in [[p] for p in stale] if any(said.values()) else _runs(stale):
            view(con, "impressions", [file.path for file in _near(files, neighbours)])
            view(con, "mentions", said[neighbours[0]])
            _build(con, neighbours, out)
    for p in wanted:
        near = {file.name: file.days for file in _near(files, [p])}
        record = {"code": code, "made_from": made_from[p], "days": near}
        _beside(out(p)).write_text(json.dumps(record), encoding="utf-8")
    return stale


def check_features(
    features: Sequence[Path],
    impressions: Sequence[Path],
    described: Path,
    sample: int = SAMPLE,
    mentions: Sequence[Path] = (),
) -> list[str]:
    """What a plain recount of a sample of impressions finds wrong; empty if nothing from the future came in."""
    inputs = {"features": features, "impressions": impressions, "described_items": [described], "mentions": mentions}
    with connect(inputs) as con:
        con.execute(f"create view facts as {sql_text('staging/feature_facts')}")
        create_table(con, "sampled", "staging/feature_sample", {"sample": sample})
        create_table(con, "needed_items", "staging/feature_sampled_items")
        create_table(con, "catalogue", "staging/feature_catalogue")
        return run_check(con, "no_future_in_features")


@dataclass(frozen=True)
class _Shown:
    """A file of impressions, and what the facts of each of its days come to: day, how many, the sum of their hashes."""

    path: Path
    name: str  # a hash of its content
    days: list[tuple[int, int, int]]

    def within(self, start: datetime, end: datetime) -> list[tuple[int, int, int]]:
        first, last = ((moment - EPOCH) // DAY for moment in (start, end))
        return [day for day in self.days if first <= day[0] < last]


def _shown(con: DuckDBPyConnection, files: Sequence[Path], records: Iterable[Mapping[str, Any]]) -> list[_Shown]:
    """The files, in their order. One that a record knows is not read again: of a long history only a day is new."""
    names = {path: file_hash(path) for path in files}
    days = {name: list(map(tuple, known)) for record in records for name, known in record.get("days", {}).items()}
    new = {str(path): name for path, name in names.items() if name not in days}
    days |= {name: [] for name in new.values()}
    if new:
        for path, *day in run_sql(con, "staging/feature_digests", {"files": list(new)}).fetchall():
            days[new[path]].append(tuple(day))
    return [_Shown(path, name, days[name]) for path, name in names.items()]


def _near(files: Iterable[_Shown], neighbours: Sequence[Partition]) -> list[_Shown]:
    """The files that the features of neighbours are made from: a positive may come a day after its impression."""
    return [file for file in files if file.within(neighbours[0].start - WEEK - DAY, neighbours[-1].end)]


def _facts_of(files: Iterable[_Shown], partition: Partition) -> list[int]:
    """The facts that count for the partition: how many, and the sum of their hashes."""
    days = [day for file in files for day in file.within(partition.start - WEEK, partition.end)]
    return [sum(day[n] for day in days) for n in (1, 2)]


def _record(published: Path, code: str) -> dict[str, Any]:
    """What published features were made from; empty where that is not known, or other code wrote it."""
    try:
        record = json.loads(_beside(published).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(record) if record.get("code") == code else {}


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _runs(partitions: Sequence[Partition]) -> list[list[Partition]]:
    """The partitions in runs of neighbours."""
    runs: list[list[Partition]] = []
    for partition in partitions:
        if runs and runs[-1][-1].end == partition.start:
            runs[-1].append(partition)
        else:
            runs.append([partition])
    return runs


def _build(con: DuckDBPyConnection, wanted: Sequence[Partition], out: Callable[[Partition], Path]) -> None:
    start, end = wanted[0].start, wanted[-1].end
    past = {"read_from": start - WEEK, "end": end, "quiet_from": end - WEEK, "quiet_until": start - DAY}
    create_table(con, "in_range", "staging/feature_in_range", {"start": start, "end": end})
    create_table(con, "user_facts", "staging/feature_user_facts", past)
    create_table(con, "needed_items", "staging/feature_needed_items")
    create_table(con, "catalogue", "staging/feature_catalogue")
    create_table(con, "user_positives", "staging/feature_user_positives")
    create_table(con, "shown", "staging/feature_shown")
    _count(con, past, start)
    create_table(con, "features", "staging/features")
    for partition in wanted:
        select = (
            "select * from features where impression_ts >= $start and impression_ts < $end "
            "order by impression_ts, session_id, position"
        )
        period = {"start": partition.start, "end": partition.end}
        copy_select(con, select, out(partition), "features", period)


def _count(con: DuckDBPyConnection, past: Mapping[str, datetime], start: datetime) -> None:
    """Make ``<kind>_counts`` of every kind of subject, ``item_ages`` and ``user_categories``.

    ``asked`` and ``moments`` hold one kind at a time: the impressions of the range with their subject, and its past.
    """
    create_table(con, "asked", "staging/feature_asked", {"kind": "item"})
    create_table(con, "moments", "staging/feature_item_moments", past)
    create_table(con, "item_counts", "staging/feature_counts")
    create_table(con, "item_ages", "staging/feature_item_ages")
    create_table(con, "user_categories", "staging/feature_user_categories", {"start": start})
    for kind in ("user", *_OF_WEEK):
        create_table(con, "asked", "staging/feature_asked", {"kind": kind})
        moments = "staging/feature_kind_moments" if kind in _KINDS else "staging/feature_user_moments"
        create_table(con, "moments", moments, {"kind": kind})
        counts = "staging/feature_week_counts" if kind in _OF_WEEK else "staging/feature_counts"
        create_table(con, f"{kind}_counts", counts)
