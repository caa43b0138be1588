"""What sources made of CSV files share: finding them, and reading the small ones that describe items or users."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.sources.text import CODECS, Layout, has_rows, read_rows
from pipeline.warehouse import create_table, quote


def csv_files(folder: Path, stem: str) -> list[Path]:
    """The files of a folder named ``stem``.csv (a glob), plain or packed, in the order of their names.

    Raises DataError for one that holds nothing but a header.
    """
    found = [path for path in sorted(folder.glob(f"{stem}.csv*")) if path.suffix.lower() in {".csv", *CODECS}]
    for path in found:
        if not has_rows(path, 1):
            raise DataError(f"{path} holds no rows; fetch it again, or remove it if another file replaces it.")
    return found


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
