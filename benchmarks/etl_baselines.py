"""The same job as ``benchmarks.etl.ours`` in polars and in pandas, as one would write it for this one log.

From the CSV to events (each once, sorted by user and time), rejects with line and reason, impressions and sessions, one
Parquet file each. They may rely on what ours may not: ids are whole numbers, so that a blank or broken one is a value
that does not parse; the log fits in memory; a line has six columns at most (pandas drops longer ones unseen); no
session lasts 24 hours. They do not keep the rejects' text, write only the columns that this log has, and put all days
into one file, so that one day more would make everything anew.
"""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

COLUMNS = ("user", "item", "category", "behaviour", "second")
SPARE = "sixth"  # what a line with too many columns has
CODES = {"pv": 1, "fav": 3, "cart": 4, "buy": 5}  # of Feedback
POSITIVE, PURCHASE = 2, 5
REWARDS = (0.0, 0.0, 1.0, 1.0, 1.0, 5.0)  # by code
GAP = 30 * 60  # seconds
PAGE, COLS = 10, 2
FACT = ["user", "item", "behaviour", "second"]
Counts = dict[str, int]


def in_polars(log: Path, out: Path, first: int, end: int) -> Counts:
    """``first`` and ``end`` (exclusive) are the range in Unix seconds."""
    schema = {name: pl.String if name in ("behaviour", SPARE) else pl.Int64 for name in (*COLUMNS, SPARE)}
    rows = pl.scan_csv(
        log,
        has_header=False,
        schema=schema,
        quote_char=None,
        encoding="utf8-lossy",
        ignore_errors=True,
        truncate_ragged_lines=True,
        missing_columns="insert",
        row_index_name="line",
        row_index_offset=1,
    )
    reason = (
        pl.when(pl.col(SPARE).is_not_null()).then(pl.lit("too many columns"))
        .when(pl.col("behaviour").is_null()).then(pl.lit("too few columns"))
        .when(~pl.col("behaviour").is_in(list(CODES))).then(pl.lit("unknown behaviour"))
        .when(pl.col("second").is_null()).then(pl.lit("unreadable time stamp"))
        .when(~pl.col("second").is_between(first, end - 1)).then(pl.lit("outside the time range"))
        .when(pl.col("user").is_null()).then(pl.lit("blank or broken user id"))
        .when(pl.col("item").is_null()).then(pl.lit("blank or broken item id"))
    )  # fmt: skip
    checked = rows.with_columns(reason=reason)
    rejects, events = pl.collect_all(
        [
            checked.filter(pl.col("reason").is_not_null()).select("line", "reason"),
            checked.filter(pl.col("reason").is_null()).unique(FACT, keep="any").select(COLUMNS).sort("user", "second"),
        ]
    )
    rejects.write_parquet(out / "rejects.parquet")
    events.write_parquet(out / "events.parquet")
    impressions, sessions = _sessions_in_polars(events)
    impressions.write_parquet(out / "impressions.parquet")
    sessions.write_parquet(out / "sessions.parquet")
    return _counts(events, rejects, impressions, sessions)


def _sessions_in_polars(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    pause = (pl.col("user") != pl.col("user").shift()) | (pl.col("second").diff() > GAP)
    acts = events.select(
        "user",
        "item",
        "second",
        code=pl.col("behaviour").replace_strict(CODES, return_dtype=pl.Int8),
        session=pause.fill_null(True).cum_sum(),
    ).with_row_index("place")
    shown = (
        acts.group_by("session", "item")
        .agg(
            pl.col("user").first(),
            pl.col("place").min(),
            pl.col("second").min(),
            pl.col("code").max(),
            positive_second=pl.col("second").filter(pl.col("code") >= POSITIVE).min(),
        )
        .sort("place")
        .with_columns(position=pl.int_range(pl.len()).over("session"))
        .with_columns(page=pl.col("position") // PAGE)
    )
    impressions = shown.select(
        "session",
        "user",
        "item",
        "page",
        "position",
        "second",
        "positive_second",
        "code",
        row=pl.col("position") % PAGE // COLS,
        col=pl.col("position") % PAGE % COLS,
        page_second=pl.col("second").first().over("session", "page"),
        reward=pl.col("code").replace_strict(dict(enumerate(REWARDS)), return_dtype=pl.Float32),
    )
    spans = acts.group_by("session").agg(
        pl.col("user").first(), start=pl.col("second").min(), end=pl.col("second").max()
    )
    totals = impressions.group_by("session").agg(
        pages=pl.col("page").max() + 1,
        impressions=pl.len(),
        clicks=(pl.col("code") >= POSITIVE).sum(),
        purchases=(pl.col("code") == PURCHASE).sum(),
        reward=pl.col("reward").sum(),
    )
    return impressions, spans.join(totals, on="session").sort("session")


def in_pandas(log: Path, out: Path, first: int, end: int) -> Counts:
    """As ``in_polars``."""
    rows = pd.read_csv(
        log,
        names=[*COLUMNS, SPARE],
        dtype=str,
        na_values=[""],
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        encoding_errors="replace",
        on_bad_lines="skip",
        skip_blank_lines=False,
    )
    for name in ("user", "item", "category", "second"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    reasons = {
        "too many columns": rows[SPARE].notna(),
        "too few columns": rows["behaviour"].isna(),
        "unknown behaviour": ~rows["behaviour"].isin(list(CODES)),
        "unreadable time stamp": rows["second"].isna(),
        "outside the time range": ~rows["second"].between(first, end - 1),
        "blank or broken user id": rows["user"].isna(),
        "blank or broken item id": rows["item"].isna(),
    }
    bad = np.logical_or.reduce(list(reasons.values()))
    refused = [mask[bad] for mask in reasons.values()]
    rejects = pd.DataFrame({"line": np.flatnonzero(bad) + 1, "reason": np.select(refused, list(reasons), "")})
    events = rows.loc[~bad, list(COLUMNS)].drop_duplicates(FACT).sort_values(["user", "second"], ignore_index=True)
    events = events.astype({"user": "int64", "item": "int64", "second": "int64"})
    rejects.to_parquet(out / "rejects.parquet")
    events.to_parquet(out / "events.parquet")
    impressions, sessions = _sessions_in_pandas(events)
    impressions.to_parquet(out / "impressions.parquet")
    sessions.to_parquet(out / "sessions.parquet")
    return _counts(events, rejects, impressions, sessions)


def _sessions_in_pandas(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    acts = events[["user", "item", "second"]].assign(
        code=events["behaviour"].map(CODES).astype("int8"),
        session=((events["user"] != events["user"].shift()) | (events["second"].diff() > GAP)).cumsum(),
        place=np.arange(len(events)),
    )
    acts["positive_second"] = acts["second"].where(acts["code"] >= POSITIVE)
    shown = acts.groupby(["session", "item"], sort=False, as_index=False).agg(
        user=("user", "first"),
        place=("place", "min"),
        second=("second", "min"),
        code=("code", "max"),
        positive_second=("positive_second", "min"),
    )
    shown = shown.sort_values("place", ignore_index=True).drop(columns="place")
    shown["position"] = shown.groupby("session").cumcount()
    shown["page"] = shown["position"] // PAGE
    shown["row"] = shown["position"] % PAGE // COLS
    shown["col"] = shown["position"] % PAGE % COLS
    shown["page_second"] = shown.groupby(["session", "page"], sort=False)["second"].transform("first")
    shown["reward"] = np.array(REWARDS, np.float32)[shown["code"]]
    shown["clicked"] = shown["code"] >= POSITIVE
    shown["purchased"] = shown["code"] == PURCHASE
    spans = acts.groupby("session").agg(user=("user", "first"), start=("second", "min"), end=("second", "max"))
    totals = shown.groupby("session").agg(
        pages=("page", "max"),
        impressions=("item", "size"),
        clicks=("clicked", "sum"),
        purchases=("purchased", "sum"),
        reward=("reward", "sum"),
    )
    totals["pages"] += 1
    return shown.drop(columns=["clicked", "purchased"]), spans.join(totals).reset_index()


def _counts(*tables: pl.DataFrame | pd.DataFrame) -> Counts:
    return dict(zip(("events", "rejects", "impressions", "sessions"), map(len, tables), strict=True))
