"""What people open: results.duckdb, the HTML report, and the leaderboard in a terminal."""

from pathlib import Path

from pipeline.plan import BESIDE, Plan
from pipeline.report.html import write_report
from pipeline.report.tables import terminal_table
from pipeline.results import build_results, read, rebuild_views
from pipeline.schemas import SCHEMAS
from pipeline.storage import Store


def publish_results(plan: Plan) -> Path:
    """Swap in a results.duckdb over all that is published now."""
    build_results(table_files(plan.store), plan.results)
    return plan.results


def publish_report(plan: Plan) -> Path:
    """Swap in the HTML report of the current results."""
    write_report(plan.results, plan.report, plan.experiment.name, plan.experiment.description)
    return plan.report


def follow_move(plan: Plan) -> None:
    """Point the views of results.duckdb at the files where they lie now."""
    rebuild_views(table_files(plan.store), plan.results)


def leaderboard_text(plan: Plan) -> str:
    """The leaderboard as a terminal shows it."""
    return terminal_table(read(plan.results, "leaderboard"))


def table_files(store: Store) -> dict[str, list[Path]]:
    """The current Parquet files of every published table, also of those that lie in another table's folder."""
    found = {}
    for table in SCHEMAS:
        if home := BESIDE.get(table):
            versions = [store.require(home, part) for part in store.parts(home)]
            found[table] = [path for v in versions if (path := v.folder / f"{table}.parquet").exists()]
        else:
            found[table] = store.files(table)
    return found
