"""The same job as ``benchmarks.etl.ours`` in polars and in pandas, as one would write it for this one log.

From the CSV to events (each once, sorted by user and time), rejects with line and reason, impressions and sessions, one
Parquet file each. They may rely on what ours may not: ids are whole numbers, so that a blank or broken one is a value
that does not parse; the log fits in memory; a line has six columns at most (pandas drops longer ones unseen); no
session lasts 24 hours. They do not keep the rejects' text, write only the columns that this log has, and put all days
into one file, so that one day more would make everything anew.

``in_sql`` asks what the published columns alone cost: the leanest DuckDB known to us for all of them, from rows that
are sorted once in memory. Duplicates, dirt and what lies outside of the days stay in, every act shows its item anew (a
tenth more impressions), and there are no rejects and no partitions.
"""

import csv
from pathlib import Path

import duckdb
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
SORTED = """
create temp table sorted as
select * from read_csv(
    $log, header = false, ignore_errors = true,
    columns = {'user': 'bigint', 'item': 'bigint', 'category': 'bigint', 'behaviour': 'varchar', 'second': 'bigint'}
)
order by "user", second
"""
EVENTS = """
select
    (hash("user", item, second, behaviour) >> 1)::bigint as event_id, "user"::varchar as user_id,
    item::varchar as item_id, to_timestamp(second) as event_ts, behaviour as event_type,
    null::double as value, null::varchar as session_id,
    null::varchar as request_id, null::int as position, null::double as propensity, category::varchar as category,
    null::varchar as brand, null::varchar as shop, 'taobao' as source, to_timestamp(second)::date as event_date
from sorted
"""
# A window over an already sorted stream: DuckDB runs it without sorting again.
IMPRESSIONS = """
with neighbours as (
    select *, lag("user") over () as last_user, lag(second) over () as last_second from sorted
),
starts as (
    select *, last_user is distinct from "user" or second - last_second > $gap as is_start from neighbours
),
counted as (
    select
        *,
        sum(is_start::int) over (rows unbounded preceding) as session,
        row_number() over () as number
    from starts
),
placed as (
    select *, (number - max(if(is_start, number, 0)) over (rows unbounded preceding))::int as position from counted
)
select
    session::bigint as session_id, "user"::varchar as user_id, item::varchar as item_id,
    position // $page as page, (position % $page // $cols)::smallint as "row", (position % $cols)::smallint as col,
    position, if(behaviour = 'pv', 'skip', behaviour) as feedback,
    (case behaviour when 'pv' then 0 when 'buy' then 5 else 1 end)::float as reward, null::double as propensity,
    to_timestamp(max(if(position % $page = 0, second, null)) over (rows unbounded preceding)) as page_ts,
    to_timestamp(second) as impression_ts, if(behaviour = 'pv', null, to_timestamp(second)) as positive_ts
from placed
"""
SESSIONS = """
select
    session_id, first(user_id) as user_id, min(impression_ts) as start_ts, max(impression_ts) as end_ts,
    max(page) + 1 as pages, count(*)::int as impressions, count(*) filter (feedback <> 'skip')::int as clicks,
    count(*) filter (feedback = 'buy')::int as purchases, sum(reward)::float as reward, false as capped
from read_parquet($impressions)
group by session_id
order by user_id, start_ts
"""


def in_sql(log: Path, out: Path, threads: int) -> None:
    """Write ``events``, ``impressions`` and ``sessions`` with the published columns."""
    with duckdb.connect() as con:
        con.execute(f"set threads = {threads}")
        con.execute("set timezone = 'UTC'")
        con.execute("set enable_progress_bar = false")
        con.execute("set temp_directory = $out", {"out": str(out / "spill")})
        con.execute(SORTED, {"log": str(log)})
        shape = {"gap": GAP, "page": PAGE, "cols": COLS}
        impressions = {"impressions": str(out / "impressions.parquet")}
        for name, select, given in (
            ("events", EVENTS, {}), ("impressions", IMPRESSIONS, shape), ("sessions", SESSIONS, impressions)
        ):  # fmt: skip
            target = f"to '{out / name}.parquet' (format parquet, compression lz4_raw)"
            con.execute(f"copy ({select}) {target}", given)


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
