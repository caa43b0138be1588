"""Items and users: a row for each one that was seen or described, numbered as the training window knows them.

The dense indices, the category codes, the counts, and the mean and deviation that scale the free features come from the
sessions that the training split keeps, so that an entity which appears later changes nobody else's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.counters import count_items
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS, RawFile, Source
from pipeline.splits import session_splits
from pipeline.warehouse import connect, copy_select, run_sql, sql_text, write_parquet

Array = np.ndarray[Any, np.dtype[Any]]
LARGEST = float(np.finfo(np.float32).max)


def write_entities(source: Source, files: Sequence[RawFile], items_out: Path, users_out: Path) -> None:
    """Write what the log's catalogues say of its items and users, columns as ``sources/base.py`` names them."""
    with connect() as con:
        _typed(source.items(con, files), ITEM_COLUMNS).order("item_id, title").write_parquet(
            str(items_out), compression="zstd"
        )
        _typed(source.users(con, files), USER_COLUMNS).order("user_id").write_parquet(
            str(users_out), compression="zstd"
        )


def _typed(rows: DuckDBPyRelation, columns: Mapping[str, str]) -> DuckDBPyRelation:
    return rows.project(", ".join(f"{name}::{kind} as {name}" for name, kind in columns.items()))


def build_mentions(events: Sequence[Path], constructed: bool, out: Path) -> int:
    """Write ``mentions``, what the showings of one partition say of their items; returns the rows.

    ``constructed``: the log has no impressions, so that every event shows its item.
    """
    with connect({"events": events}) as con:
        return copy_select(con, sql_text("staging/mentions"), out, "mentions", {"constructed": constructed})


def build_items(
    impressions: Sequence[Path],
    sessions: Sequence[Path],
    splits: Sequence[Path],
    described: Path,
    mentions: Sequence[Path],
    out: Path,
) -> int:
    """Write ``items``; returns the rows. ``described`` is the items file of ``write_entities``."""
    inputs = {"impressions": impressions, "sessions": sessions, "splits": splits, "mentions": mentions}
    with connect(inputs | {"described_items": [described]}) as con:
        con.execute(
            "create table questions as select distinct item_id, end_ts as ts from impressions, splits "
            "where split = 'train' and impression_ts < end_ts"
        )
        count_items(con)
        return _build(con, "items", "staging/items", out)


def build_users(
    impressions: Sequence[Path], sessions: Sequence[Path], splits: Sequence[Path], described: Path, out: Path
) -> int:
    """Write ``users``; returns the rows. ``described`` is the users file of ``write_entities``."""
    inputs = {"impressions": impressions, "sessions": sessions, "splits": splits, "described_users": [described]}
    with connect(inputs) as con:
        return _build(con, "users", "staging/users", out)


def _build(con: DuckDBPyConnection, table: str, select: str, out: Path) -> int:
    session_splits(con)
    rows = run_sql(con, select).to_arrow_table()
    in_training = rows[table.removesuffix("s")].to_numpy() > 0
    place = rows.schema.get_field_index("features")
    rows = rows.set_column(place, "features", standardised(rows["features"], in_training))
    return write_parquet(out, table, rows.to_batches())


def standardised(features: pa.ChunkedArray, in_training: Array) -> pa.Array:
    """Lists of numbers as lists of one width, in standard deviations of the training rows from their mean.

    The width is that of the longest training row. What is missing or not finite becomes 0, the mean; so does a
    component that is the same for all training rows.
    """
    values, filled = _padded(features, in_training)  # [R, F] float64, [R, F] bool
    fit = filled & in_training[:, None]
    n = np.maximum(fit.sum(axis=0), 1)
    mean = np.where(fit, values, 0).sum(axis=0) / n
    deviation = np.sqrt((np.where(fit, values - mean, 0) ** 2).sum(axis=0) / n)
    constant = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-9)  # a deviation of rounding errors only
    scaled = np.where(filled & ~constant, values - mean, 0) / np.where(constant, 1, deviation)
    flat = pa.array(np.clip(scaled, -LARGEST, LARGEST).astype(np.float32).ravel())
    offsets = np.arange(len(scaled) + 1, dtype=np.int32) * scaled.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _padded(features: pa.ChunkedArray, in_training: Array) -> tuple[Array, Array]:
    """A list column as a matrix [R, F] and the mask of its finite numbers."""
    column = features.combine_chunks()
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    numbers = column.flatten().cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    width = int(lengths[in_training].max(initial=0))
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    fits = places < width
    matrix = np.full((len(lengths), width), np.nan)
    matrix[rows[fits], places[fits]] = numbers[fits]
    filled = np.isfinite(matrix)
    return np.where(filled, matrix, 0), filled
