"""What was ingested, as a table of single figures: counts, shares, distributions, and the reasons of what was refused.

Only SQL aggregates over the published tables up to the sessions, so it stands also for a log that is too small to
split. "Cold" therefore needs no split: it is what the last fifth of the sessions meets for the first time. No id of a
user or an item is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from duckdb import DuckDBPyConnection

from pipeline.schemas import SCHEMAS
from pipeline.warehouse import connect, create_table, run_sql, write_parquet

COLD_AFTER = 0.8  # the share of the sessions that counts as known when the cold ones begin
NAMED_REASONS = 50  # of refused records; rarer ones are counted together
MEASURES = (
    "impressions_of_a_session",
    "pages_of_a_session",
    "minutes_of_a_session",
    "sessions_of_a_user",
    "impressions_of_a_user",
    "impressions_of_an_item",
)  # in whole numbers: a minute counts once it is over


def build_data_report(inputs: Mapping[str, Sequence[Path]], grain: str, constructed: bool, out: Path) -> pa.Table:
    """Write ``data_report`` and return it.

    ``inputs`` are the files of events, impressions, sessions, rejects and ingest_counts; ``grain`` is the length of a
    period (day, month or year); ``constructed`` says that the log does not tell what was shown.
    """
    with connect(inputs) as con:
        cut = _cut_off(con)
        _aggregate(con, grain, cut)
        sections = (
            run_sql(con, "staging/data_report_overview", {"constructed": constructed}),
            run_sql(con, "staging/data_report_ingest"),
            run_sql(con, "staging/data_report_rejects", {"named": NAMED_REASONS}),
            run_sql(con, "staging/data_report_coverage"),
            run_sql(con, "staging/data_report_periods", {"grain": grain}),
            run_sql(con, "staging/data_report_spread", {"measures": list(MEASURES)}),
            run_sql(con, "staging/data_report_popularity"),
            run_sql(con, "staging/data_report_cold_start", {"cut": cut}),
        )
        rows = pa.concat_tables([section.to_arrow_table() for section in sections])
    places = pa.array(range(1, len(rows) + 1), pa.int32())
    table = rows.append_column("place", places).select(SCHEMAS["data_report"].names).cast(SCHEMAS["data_report"])
    write_parquet(out, "data_report", table.to_batches())
    return table


def _aggregate(con: DuckDBPyConnection, grain: str, cut: datetime | None) -> None:
    """The temporary tables that the sections select from: each log table is read a few times, whatever its length."""
    create_table(con, "event_counts", "staging/data_report_event_counts")
    create_table(con, "impression_counts", "staging/data_report_impression_counts")
    create_table(con, "active", "staging/data_report_active", {"grain": grain})
    create_table(con, "item_totals", "staging/data_report_item_totals", {"cut": cut})
    create_table(con, "user_totals", "staging/data_report_user_totals", {"cut": cut})
    create_table(con, "lengths", "staging/data_report_lengths")
    create_table(con, "reasons", "queries/rejects_by_reason")


def _cut_off(con: DuckDBPyConnection) -> datetime | None:
    """The session start from which on users and items can be cold; None where no session starts earlier."""
    found = run_sql(con, "staging/split_cutoff", {"share": COLD_AFTER, "after": None, "later_splits": 0}).fetchall()
    return found[0][0] if found else None


class Figures:
    """The rows of ``data_report`` by section, in their order."""

    def __init__(self, table: pa.Table) -> None:
        self._sections: dict[str, list[dict[str, Any]]] = {}
        for row in table.sort_by("place").to_pylist():
            self._sections.setdefault(row["section"], []).append(row)

    def rows(self, section: str) -> list[dict[str, Any]]:
        return self._sections.get(section, [])

    def series(self, section: str) -> dict[str, dict[str, float]]:
        """The values of a section by name and bucket."""
        found: dict[str, dict[str, float]] = {}
        for row in self.rows(section):
            found.setdefault(row["name"], {})[row["bucket"]] = row["value"]
        return found
