"""Checks of the data: a select under ``sql/checks`` returns the offending rows, each with its reason."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from pipeline.schemas import SCHEMAS
from pipeline.warehouse import run_sql


def run_check(con: DuckDBPyConnection, name: str, params: Mapping[str, Any] | None = None) -> list[str]:
    """The reasons that ``sql/checks/<name>.sql`` gives, at most 100; an empty list is a pass."""
    rows = run_sql(con, f"checks/{name}", params).limit(100).to_arrow_table()
    return [str(reason) for reason in rows["reason"].to_pylist()]


def check_schema(files: Sequence[Path], table: str) -> list[str]:
    """One sentence for each file whose columns or types are not those of ``SCHEMAS[table]``."""
    wanted = SCHEMAS[table]
    problems = []
    for path in files:
        found = pq.read_schema(path)
        types = {field.name: field.type for field in found}
        off = [field.name for field in wanted if types.get(field.name) != field.type]
        if off or found.names != wanted.names:
            problems.append(f"{path} differs from the published schema of {table} in {off or 'its extra columns'}.")
    return problems
