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
start are kept moment by moment, the time between as one count; and of users, only those of the day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from duckdb import DuckDBPyConnection

from pipeline.checks import run_check
from pipeline.partitions import Partition
from pipeline.warehouse import connect, copy_select, create_table, sql_text

DAY, WEEK = timedelta(hours=24), timedelta(hours=168)
SAMPLE = 200  # impressions that the check recounts
_OF_WEEK = ("user_item", "user_category", "user_brand", "user_shop")  # subjects that are counted over a week alone


def build_features(
    impressions: Sequence[Path], described: Path, wanted: Sequence[Partition], out: Callable[[Partition], Path]
) -> dict[str, int]:
    """Write ``features`` of a contiguous range of partitions; returns the rows by partition key.

    A row belongs to the partition of its impression's time, not of its session's start. ``impressions`` must hold the
    range and the eight days before it: a week, and a day for the length of a session. ``described`` is the items file
    of ``write_entities``.
    """
    first, last = wanted[0], wanted[-1]
    with connect({"impressions": impressions, "described_items": [described]}) as con:
        _view_facts(con)
        create_table(con, "shown", "staging/feature_shown", {"start": first.start, "end": last.end})
        _count(con, first.start, last.end)
        create_table(con, "features", "staging/features")
        return {p.key: _write(con, p, out(p)) for p in wanted}


def check_features(
    features: Sequence[Path], impressions: Sequence[Path], described: Path, sample: int = SAMPLE
) -> list[str]:
    """What a plain recount of a sample of impressions finds wrong; empty if nothing from the future came in."""
    inputs = {"features": features, "impressions": impressions, "described_items": [described]}
    with connect(inputs) as con:
        _view_facts(con)
        return run_check(con, "no_future_in_features", {"sample": sample})


def _view_facts(con: DuckDBPyConnection) -> None:
    create_table(con, "catalogue", "staging/feature_catalogue")
    con.execute(f"create view facts as {sql_text('staging/feature_facts')}")


def _count(con: DuckDBPyConnection, start: datetime, end: datetime) -> None:
    """Make ``<kind>_counts`` of every kind of subject, ``item_ages`` and ``user_categories``.

    ``asked`` and ``moments`` hold one kind at a time: the impressions of the range with their subject, and its past.
    """
    past = {"read_from": start - WEEK, "end": end, "quiet_from": end - WEEK, "quiet_until": start - DAY}
    create_table(con, "asked", "staging/feature_asked", {"kind": "item"})
    create_table(con, "moments", "staging/feature_item_moments", past)
    create_table(con, "item_counts", "staging/feature_counts")
    create_table(con, "item_ages", "staging/feature_item_ages")
    create_table(con, "user_facts", "staging/feature_user_facts", past)
    create_table(con, "user_categories", "staging/feature_user_categories", {"start": start})
    for kind in ("user", *_OF_WEEK):
        create_table(con, "asked", "staging/feature_asked", {"kind": kind})
        create_table(con, "moments", "staging/feature_user_moments", {"kind": kind})
        counts = "staging/feature_week_counts" if kind in _OF_WEEK else "staging/feature_counts"
        create_table(con, f"{kind}_counts", counts)


def _write(con: DuckDBPyConnection, partition: Partition, path: Path) -> int:
    select = (
        "select * from features where impression_ts >= $start and impression_ts < $end "
        "order by impression_ts, session_id, position"
    )
    return copy_select(con, select, path, "features", {"start": partition.start, "end": partition.end})
