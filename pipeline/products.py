"""What people open: results.duckdb, the HTML report, and the leaderboard in a terminal."""

from pathlib import Path

from pipeline.plan import BESIDE, Plan
from pipeline.report.html import Section, write_report
from pipeline.report.tables import terminal_table
from pipeline.results import build_results, read, rebuild_views
from pipeline.schemas import SCHEMAS
from pipeline.storage import Store

CONSTRUCTED = """\
This log tells what users acted on, not what they were shown. The shown set of a session is therefore constructed: the
items that the user acted on in it, in the order of time, with those below the threshold of positive feedback as skips.
A ranker is judged on telling liked items from others that the same user chose to rate, which is not the task of a shop;
nothing here says how users would react to items that they never met."""


def publish_results(plan: Plan) -> Path:
    """Swap in a results.duckdb over all that is published now."""
    build_results(table_files(plan.store), plan.results)
    return plan.results


def publish_report(plan: Plan) -> Path:
    """Swap in the HTML report of the current results."""
    notes = [] if plan.source.has_impressions else [Section("What was shown is constructed", CONSTRUCTED)]
    write_report(plan.results, plan.report, plan.experiment.name, plan.experiment.description, notes)
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
