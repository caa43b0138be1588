"""Point-in-time features: popularity and click-through rate of an item just before each of its impressions.

``item_impressions_w`` and ``item_positives_w`` count what happened in [t − w, t) for an impression at t and w of 1 h,
6 h, 24 h and 1 week; nothing of the moment t itself counts. ``item_ctr_w`` is their ratio, 0 where nothing was shown.
A positive counts from the moment that it was known, not from its impression, so that the ratio of a short window can
pass 1, as it does in a shop's own counters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from duckdb import DuckDBPyConnection

from pipeline.checks import run_check
from pipeline.partitions import Partition
from pipeline.warehouse import connect, copy_select, create_table

SAMPLE = 200  # impressions that the check recounts


def build_features(
    impressions: Sequence[Path], events: Sequence[Path], wanted: Sequence[Partition], out: Callable[[Partition], Path]
) -> dict[str, int]:
    """Write ``features`` of a contiguous range of partitions; returns the rows by partition key.

    A row belongs to the partition of its impression's time, not of its session's start. ``impressions`` and ``events``
    must hold the range and the eight days before it: a week, and a day for the length of a session.
    """
    with connect({"impressions": impressions, "events": events}) as con:
        create_table(con, "positive_times", "staging/positive_times")
        create_table(con, "features", "staging/features", {"start": wanted[0].start, "end": wanted[-1].end})
        return {p.key: _write(con, p, out(p)) for p in wanted}


def check_features(
    features: Sequence[Path], impressions: Sequence[Path], events: Sequence[Path], sample: int = SAMPLE
) -> list[str]:
    """What a plain recount of a sample of impressions finds wrong; empty if nothing from the future came in."""
    with connect({"features": features, "impressions": impressions, "events": events}) as con:
        create_table(con, "positive_times", "staging/positive_times")
        return run_check(con, "no_future_in_features", {"sample": sample})


def _write(con: DuckDBPyConnection, partition: Partition, path: Path) -> int:
    select = (
        "select * from features where impression_ts >= $start and impression_ts < $end "
        "order by impression_ts, session_id, position"
    )
    return copy_select(con, select, path, "features", {"start": partition.start, "end": partition.end})
