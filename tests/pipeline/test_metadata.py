"""What Dagster shows beside an asset: made from published tables alone, with pictures, without personal data."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.defs.metadata import data_report_metadata, events_metadata, rejects_metadata, sessions_metadata
from pipeline.experiment import load_experiment
from pipeline.plan import Plan
from pipeline.storage import WHOLE
from tests.published import RAW_USER, demo_tables, table


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = Plan(load_experiment("demo"), tmp_path)
    for name in ("events", "rejects", "ingest_counts", "data_report"):
        publish(plan, name, demo_tables()[name])
    return plan


def publish(plan: Plan, name: str, rows: pa.Table) -> None:
    part = "2024-01-01" if name == "events" else WHOLE
    with plan.store.publish(name, {part: {"rows": len(rows)}}) as aside:
        (aside / part).mkdir()
        pq.write_table(rows, aside / part / f"{name}.parquet")


def test_the_data_report_shows_its_tables_and_its_charts(plan: Plan) -> None:
    found = data_report_metadata(plan)
    assert found.pop("page").value == str(plan.data_page)
    pictures = {name for name, entry in found.items() if entry.value.startswith("![")}
    assert {"events_by_type", "positives_by_kind", "impressions_of_a_session"} <= pictures
    assert "| Events | 144 |" in found["the_log_in_figures"].value
    assert found["refused_rows_by_reason"].value.startswith("| Reason | Rows |")
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in found)


def test_events_are_drawn_by_period(plan: Plan) -> None:
    assert events_metadata(plan)["by_period"].value.startswith("![Events by period](data:image/png")


def test_session_lengths_are_drawn_over_all_files_and_nothing_where_there_are_none(plan: Plan) -> None:
    assert sessions_metadata(plan) == {}
    publish(plan, "sessions", table("sessions", [{"session_id": n, "impressions": n % 3} for n in range(9)]))
    assert sessions_metadata(plan)["length"].value.startswith("![Session length](data:image/png")


def test_reasons_are_counted_without_what_they_quote(plan: Plan) -> None:
    text = rejects_metadata(plan)["reasons"].value
    assert "cannot read … as a time | 3 |" in text
    assert RAW_USER not in text


def test_a_log_without_rejects_says_so(plan: Plan) -> None:
    publish(plan, "rejects", demo_tables()["rejects"].slice(0, 0))
    assert rejects_metadata(plan)["reasons"].value == "Nothing was refused."
