"""What each logged request could have shown: Parquet files with request_id, item_ids and, where known, logits.

Few logs say it. Where one does, a policy's propensity of a page can be computed, and none has to be guessed.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.sources.base import RawFile
from pipeline.warehouse import connect, copy_select, literal, sql_text, write_parquet

COLUMNS = {"request_id", "item_ids", "logits"}


def build_pools(files: Sequence[RawFile], out: Path) -> int:
    """Write ``pools`` from the raw files of that kind, each request once; returns the rows.

    Raises DataError for a file without the columns, or with logits that are not one an item.
    """
    paths = [file.path for file in files if file.kind == "pools"]
    if not paths:
        return write_parquet(out, "pools", [])
    for path in paths:
        if absent := sorted(COLUMNS - set(pq.read_schema(path).names)):
            raise DataError(f"{path} has no column {absent[0]!r}. A file of pools has {', '.join(sorted(COLUMNS))}; "
                            "logits may be null.")  # fmt: skip
    with connect() as con:
        names = ", ".join(literal(path) for path in paths)
        con.execute(
            f"create view raw_pools as select *, filename as file_name "
            f"from read_parquet([{names}], file_row_number = true, filename = true, hive_partitioning = false)"
        )
        [(ragged,)] = con.sql(
            "select any_value(request_id) from raw_pools where len(logits) <> len(item_ids)"
        ).fetchall()
        if ragged is not None:
            raise DataError(
                f"The pool of request {ragged} has not one logit an item. Give each item its logit, or none."
            )
        return copy_select(con, sql_text("staging/pools"), out, "pools")
