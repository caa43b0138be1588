"""What the log had counted of an item by a moment: ``COUNTERS`` of schemas.py, for pages that were never logged too.

Of a logged impression the table ``features`` says the same and more. Rankers are told of their candidates as they stood
when the session began, or the page, and in roll-outs as they stood when the training window ended.
"""

from duckdb import DuckDBPyConnection

from pipeline.warehouse import create_table, sql_text


def view_facts(con: DuckDBPyConnection) -> None:
    """Make the view ``facts`` of ``impressions``: what was shown, and what became known as positive."""
    con.execute(f"create or replace view facts as {sql_text('staging/feature_facts')}")


def count_totals(con: DuckDBPyConnection) -> None:
    """Make ``item_totals`` of ``questions``, which holds pairs of ``item_id`` and ``ts``, each once."""
    view_facts(con)
    create_table(con, "asked", "staging/counter_asked")
    create_table(con, "moments", "staging/counter_moments")
    create_table(con, "item_totals", "staging/counter_totals")


def count_items(con: DuckDBPyConnection) -> None:
    """Make ``item_counters`` of ``questions``: ``item_id``, ``ts`` and ``counters``."""
    count_totals(con)
    create_table(con, "item_counts", "staging/feature_counts")
    create_table(con, "item_ages", "staging/feature_item_ages")
    create_table(con, "item_counters", "staging/item_counters")
