"""What sources made of CSV files share: naming what a folder holds, and reading the files of items or users."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.sources.text import Layout, read_rows
from pipeline.warehouse import create_table, quote


def held(folder: Path) -> str:
    """The first names in a folder, for messages."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"


def read_catalogue(
    con: DuckDBPyConnection, path: Path, layout: Layout, sql: str, params: Mapping[str, Any] | None = None
) -> DuckDBPyRelation:
    """What an SQL file makes of the ``raw_rows`` of a catalogue file.

    It selects the id first and ``line``, ``raw`` and ``fault`` besides, which are cut off here. Raises DataError with
    the first line that cannot be read or has no id.
    """
    read_rows(con, path, layout).create_view("raw_rows")
    create_table(con, "catalogue", sql, params)
    catalogue = con.table("catalogue")
    name = catalogue.columns[0]
    broken = con.sql(
        f"select line, raw, coalesce(fault, 'it has no id') from catalogue "
        f"where fault is not null or coalesce({quote(name)}, '') = '' order by line limit 1"
    ).fetchall()
    for line, raw, reason in broken:
        raise DataError(f"{path}, line {line} ({raw!r}): {reason}; mend or remove the line.")
    return catalogue.project("* exclude (line, raw, fault)")
