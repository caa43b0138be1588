"""What people open: results.duckdb, the HTML report, the page of the data, and the leaderboard in a terminal."""

import os
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from pipeline.data_report import build_data_report
from pipeline.plan import BESIDE, HISTORY, STEPS, Job, Plan
from pipeline.report.data import CONSTRUCTED, write_data_page
from pipeline.report.html import write_report
from pipeline.report.page import Section
from pipeline.report.tables import terminal_table
from pipeline.results import build_results, read, rebuild_views
from pipeline.schemas import SCHEMAS
from pipeline.storage import Store
from pipeline.warehouse import connect, copy_select, create_table, read_table, sql_text

LONGEST_CELL = 80  # of a table in a terminal


def publish_results(plan: Plan) -> Path:
    """Swap in a results.duckdb over all that is published now, the history of its leaderboards among it."""
    _remember(plan.store)
    build_results(table_files(plan.store), plan.results)
    return plan.results


def publish_report(plan: Plan) -> Path:
    """Swap in the HTML report of the current results."""
    write_report(plan.results, plan.report, plan.experiment.name, plan.experiment.description, _notes(plan))
    return plan.report


def publish_data_report(job: Job) -> Path:
    """Make the table ``data_report`` and swap in its page, which needs no splits, agents or results."""
    plan = job.plan
    inputs = {table: job.files(table) for table in STEPS["data_report"].inputs}
    grain, constructed = plan.experiment.partitions.grain, not plan.source.has_impressions
    report = build_data_report(inputs, grain, constructed, job.out("data_report"))
    counts = read_table(inputs["ingest_counts"], "ingest_counts")
    write_data_page(report, counts, plan.data_page, plan.experiment.name, plan.experiment.description, _notes(plan))
    return plan.data_page


def follow_move(plan: Plan) -> None:
    """Point the views of results.duckdb at the files where they lie now."""
    rebuild_views(table_files(plan.store), plan.results)


def leaderboard_text(plan: Plan) -> str:
    """The leaderboard as a terminal shows it."""
    return terminal_table(read(plan.results, "leaderboard"))


def answer_text(answer: pa.Table) -> str:
    """The answer of a query as a terminal shows it: a table, or one line a value where texts are long."""
    rows = answer.to_pandas()
    texts = rows.select_dtypes("str")
    if not len(texts) or int(texts.apply(lambda column: column.str.len()).max().max() or 0) <= LONGEST_CELL:
        return str(rows.to_string(index=False, max_rows=None))
    width = max(map(len, rows.columns))
    blocks = ("\n".join(f"{name:<{width}}  {value}" for name, value in row.items()) for _, row in rows.iterrows())
    return "\n\n".join(blocks)


def table_files(store: Store) -> dict[str, list[Path]]:
    """The current Parquet files of every published table, also of those that lie in another table's folder."""
    found = {}
    for table in SCHEMAS:
        if home := BESIDE.get(table):
            versions = [store.require(home, part) for part in store.parts(home)]
            found[table] = [path for v in versions if (path := v.folder / f"{table}.parquet").exists()]
        elif table == HISTORY:
            found[table] = sorted((store.root / HISTORY).glob("*.parquet"))
        else:
            found[table] = store.files(table)
    return found


def _remember(store: Store) -> None:
    """Add the main figures of the current leaderboard to the history, once, with the time: what trends are made of.

    Here alone a data file holds a time stamp. Nothing is made from it, so nothing else depends on the clock.
    """
    board = store.current("leaderboard")
    if board is None or (kept := _history(store) / f"{board.fingerprint}.parquet").exists():
        return
    with connect({"leaderboard": board.files}) as con, TemporaryDirectory(dir=kept.parent) as scratch:
        create_table(con, "agent_scores", "marts/agent_scores")
        params = {"published_at": datetime.now(UTC), "leaderboard": board.fingerprint}
        copy_select(con, sql_text("staging/history"), Path(scratch) / kept.name, HISTORY, params)
        os.replace(Path(scratch) / kept.name, kept)


def _history(store: Store) -> Path:
    folder = store.root / HISTORY
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _notes(plan: Plan) -> list[Section]:
    return [] if plan.source.has_impressions else [Section("What was shown is constructed", CONSTRUCTED)]
