"""From a raw CSV to published events, rejects, sessions and impressions, against a bare sort and the same in polars and
in pandas; and what it costs to add one day to a long history.

``python -m benchmarks.etl --rows 20000000`` writes a Taobao-format log of that many lines and measures, each in a process
of its own, in turn, ``--repeat`` times, and reports medians:

- floor: ``copy (select * from read_csv(…) order by user, time) to …``, DuckDB as it comes. No dedup, no rejects, no sessions.
- ours: ``pipeline.ingest`` and ``pipeline.sessions`` as the assets call them, with the experiment ``taobao``.
- polars, pandas: ``benchmarks.etl_baselines``. All three must find as many events, rejects, sessions and impressions.

``--threads`` holds for all four, by the cores that they may run on and by their own settings; ``--memory 6GiB`` limits
DuckDB, in the floor and in ours. ``python -m benchmarks.etl --incremental --days 100`` runs the Dagster job up to the
features: over the last day's file alone in an empty store, and over the same file added to a store of the days before.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from benchmarks import etl_baselines
from benchmarks.common import Measurement, Metered, alone, publish
from pipeline.experiment import PROJECT, load_experiment
from pipeline.ingest import build_events, build_rejects, check_conservation, ingest_counts, stage, staged_folders
from pipeline.partitions import Partition, partitions_of
from pipeline.plan import Plan, row_count
from pipeline.sessions import build_sessions
from pipeline.sources import open_source

SEED = 7
DAY = 86_400  # seconds
FIRST_SECOND, DAYS = 1_511_539_200, 9  # 25 November 2017 in China
CHUNK = 1_000_000  # lines generated at a time
ACTS_OF_USER, ACTS_OF_BURST = 100, 8  # on average, as in the real file
ITEMS, CATEGORIES = 4_000_000, 9_000
SKEW = 0.6  # exponent of the items' Zipf law: the real file's head has as many different items with about 0.6
AGAIN = 0.12  # share of acts on the item of the act before
BEHAVIOURS = {"pv": 0.9, "cart": 0.05, "fav": 0.03, "buy": 0.02}
DUPLICATES, OUTSIDE, GARBAGE = 0.001, 0.0005, 0.0001  # shares of the lines
GARBAGE_LINES = (
    b"1,2,3,p\n", b"1,2,3,pv,1511600000,6\n", b"1,2,3,look,1511600000\n", b"1,2,3,pv,soon\n", b",2,3,pv,1511600000\n",
    b"1,,3,pv,1511600000\n", b"1\xff,2,3,pv,1511600000\n", b"\n",
)  # fmt: skip
FLOOR = """
copy (
    select * from read_csv(
        $log, header = false, ignore_errors = true,
        columns = {'user': 'bigint', 'item': 'bigint', 'category': 'bigint', 'behaviour': 'varchar', 'time': 'bigint'}
    )
    order by "user", "time"
) to $out (format parquet)
"""
TABLES = ("manifest", "events", "rejects", "ingest_counts", "entities", "mentions", "impressions", "sessions", "features")
REWRITTEN = 400 * DAY  # how far a line outside the range is off
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Limits:
    """What every competitor may use."""

    threads: int
    memory: str | None = None  # of DuckDB


@dataclass(frozen=True)
class Outcome:
    """What a run gave: rows by table, and seconds by part of the work."""

    counts: dict[str, int]
    seconds: dict[str, float]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="hindsight-etl-", dir=options.folder) as scratch:
        folder = Path(scratch)
        if options.incremental:
            measurements = add_a_day(folder, options.days, options.rows or 200_000, options.repeat)
        else:
            limits = Limits(options.threads, options.memory)
            measurements = compare(folder, options.rows or 2_000_000, limits, options.repeat, options.only.split(","))
    publish("etl", measurements)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.etl", description="See the head of benchmarks/etl.py.")
    parser.add_argument("--rows", type=int, help="lines of the log (2,000,000), of a day's file if incremental (200,000)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", help="limit of DuckDB's memory, as 6GiB")
    parser.add_argument("--only", default=",".join(COMPETITORS), help="which of them, with commas between")
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--incremental", action="store_true")
    parser.add_argument("--days", type=int, default=30, help="of history, with the day that is added")
    return parser.parse_args()


# The log


def write_log(path: Path, rows: int, seed: int = SEED) -> None:
    """Write a Taobao-format log of ``rows`` lines, grouped by user, dirt included; never more than a chunk in memory."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as stream:
        for done in range(0, rows, CHUNK):
            count = min(CHUNK, rows - done)
            users = range(done // ACTS_OF_USER, done // ACTS_OF_USER + max(1, count // ACTS_OF_USER))
            _write_lines(stream, rng, _acts(rng, count, users, FIRST_SECOND, DAYS * DAY - 3600))


def write_days(folder: Path, days: Sequence[Partition], rows: int, seed: int = SEED) -> list[Path]:
    """Write one file a day of about ``rows`` lines; bursts go on past midnight, in the next day's file."""
    rng = np.random.default_rng(seed)
    users = range(max(1, len(days) * rows // ACTS_OF_USER))
    paths, carried = [], _acts(rng, 0, users, 0, 1)
    for day in days:
        acts = pa.concat_tables([carried, _acts(rng, rows, users, int(day.start.timestamp()), DAY)])
        is_late = pc.greater_equal(acts["second"], int(day.end.timestamp()))
        carried = acts.filter(is_late)
        paths.append(folder / f"UserBehavior-{day.key}.csv")
        with paths[-1].open("wb") as stream:
            _write_lines(stream, rng, acts.filter(pc.invert(is_late)))
    return paths


def _acts(rng: np.random.Generator, count: int, users: range, first: int, length: int) -> pa.Table:
    """``count`` clean acts in bursts that start within ``length`` seconds, a user's bursts in no order of time."""
    bursts = count // ACTS_OF_BURST * 2 + 16
    sizes = 1 + rng.poisson(ACTS_OF_BURST - 1, bursts)
    of = np.repeat(np.arange(bursts), sizes)[:count]  # [A] the burst of each act
    user = np.sort(rng.integers(users.start, users.stop, of[-1] + 1 if count else 0))
    waited = np.cumsum(rng.integers(5, 120, count))
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]][:count])
    second = first + rng.integers(0, length, bursts)[of] + waited - waited[starts][of]
    item = (ITEMS * rng.random(count) ** (1 / (1 - SKEW))).astype(np.int64) + 1
    again = (rng.random(count) < AGAIN) & np.r_[False, of[1:] == of[:-1]][:count]
    item = np.where(again, np.roll(item, 1), item)
    names, shares = np.array(list(BEHAVIOURS)), list(BEHAVIOURS.values())
    return pa.table(
        {
            "user": (user[of] + 1) * 6_700_417 % 10_000_019,  # both prime: ten million ids in a mixed order
            "item": item,
            "category": item * 31 % CATEGORIES + 1,
            "behaviour": names[rng.choice(len(names), count, p=shares)],
            "second": second,
        }
    )


def _write_lines(stream: BinaryIO, rng: np.random.Generator, acts: pa.Table) -> None:
    """Write acts as CSV, some of them replaced by dirt."""
    count = len(acts)
    acts = acts.take(np.maximum(np.arange(count) - (rng.random(count) < DUPLICATES), 0))
    away = rng.choice([-REWRITTEN, REWRITTEN], count) * (rng.random(count) < OUTSIDE)
    acts = acts.set_column(4, "second", pc.add(acts["second"], pa.array(away)))
    text = [column.cast(pa.string()).combine_chunks() for column in acts.columns]
    text[-1] = pc.binary_join_element_wise(text[-1], "\n", "")
    lines = pc.binary_join_element_wise(*text, ",").cast(pa.binary())
    bad = np.flatnonzero(rng.random(count) < GARBAGE)
    mask = np.zeros(count, bool)
    mask[bad] = True
    lines = pc.replace_with_mask(lines, mask, pa.array([GARBAGE_LINES[n % len(GARBAGE_LINES)] for n in bad], pa.binary()))
    stream.write(b"".join(lines.to_pylist()))


# The comparison


def floor(log: Path, out: Path, limits: Limits) -> Outcome:
    """The least that any of them must do: read and sort."""
    with duckdb.connect() as con:
        con.execute(f"set threads = {limits.threads}")
        con.execute("set temp_directory = $out", {"out": str(out / "spill")})
        if limits.memory:
            con.execute("set memory_limit = $memory", {"memory": limits.memory})
        con.execute(FLOOR, {"log": str(log), "out": str(out / "x.parquet")})
    return Outcome({}, {})


def ours(log: Path, out: Path, limits: Limits) -> Outcome:
    """As the assets do it, from the raw file to what is published of each partition."""
    del limits  # the environment has them
    experiment = load_experiment("taobao", raw=str(log.parent))
    source, days = open_source(experiment.source, out), partitions_of(experiment.partitions)
    seconds: dict[str, float] = {}
    with _clock(seconds, "CSV to staged events and rejects"):
        manifest = stage(source, source.discover(), out / "staged", experiment.partitions, "code").to_pylist()
    with _clock(seconds, "publishing events, rejects and counts"):
        staged = staged_folders(manifest, out / "staged", experiment.partitions, "code")
        events = {day.key: out / "events" / day.key / "events.parquet" for day in days}
        given = {day.key: build_events(list(staged.values()), day, events[day.key]) for day in days}
        rejects = build_rejects(staged, out / "rejects.parquet")
        problems = check_conservation(ingest_counts(staged, given), events)
    with _clock(seconds, "sessions and impressions"):
        made = build_sessions(
            list(events.values()),
            days,
            experiment.sessions,
            experiment.rewards,
            None,
            impressions_out=lambda day: out / "impressions" / day.key / "impressions.parquet",
            sessions_out=lambda day: out / "sessions" / day.key / "sessions.parquet",
            constructed=not source.has_impressions,
        )
    if problems:
        raise SystemExit(" ".join(problems))
    shown = {table: sum(counts[table] for counts in made.values()) for table in ("impressions", "sessions")}
    return Outcome({"events": row_count(events.values()), "rejects": rejects, **shown}, seconds)


def baseline(job: Callable[[Path, Path, int, int], dict[str, int]], log: Path, out: Path, limits: Limits) -> Outcome:
    """polars and pandas, over the range of the experiment."""
    del limits  # the environment has them
    return Outcome(job(log, out, FIRST_SECOND, FIRST_SECOND + DAYS * DAY), {})


COMPETITORS: dict[str, Callable[[Path, Path, Limits], Outcome]] = {
    "floor": floor,
    "ours": ours,
    "polars": partial(baseline, etl_baselines.in_polars),
    "pandas": partial(baseline, etl_baselines.in_pandas),
}


def compare(folder: Path, rows: int, limits: Limits, repeat: int, names: Sequence[str]) -> list[Measurement]:
    """Run the named competitors in turn over one log; their medians, those of the others as multiples of the floor's."""
    log = folder / "raw" / "UserBehavior.csv"
    log.parent.mkdir()
    alone(write_log, log, rows)
    runs: dict[str, list[Metered[Outcome]]] = {name: [] for name in names}
    with _limited(limits):
        for _ in range(repeat):
            for name in names:
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    runs[name].append(alone(COMPETITORS[name], log, Path(out), limits))
    found = {name: done[0].result.counts for name, done in runs.items() if done[0].result.counts}
    if any(counts != next(iter(found.values())) for counts in found.values()):
        raise SystemExit(f"The competitors did not do the same work: {found}.")
    about = f"{rows:,} rows, {limits.threads} threads" + (f", {limits.memory}" if limits.memory else "")
    least = runs.get("floor")
    return [m for name, done in runs.items() for m in _measurements(f"{name}, {about}", done, least)]


def _measurements(
    what: str, runs: list[Metered[Outcome]], least: list[Metered[Outcome]] | None
) -> Iterator[Measurement]:
    """Wall and CPU seconds of one competitor, against ``least``, and the seconds of its parts."""
    memory = max(run.peak_rss_mb for run in runs)
    for field, unit in (("seconds", "s"), ("cpu_seconds", "CPU s")):
        value = median(getattr(run, field) for run in runs)
        base = median(getattr(run, field) for run in least) if least and least is not runs else None
        yield Measurement(what, value, unit, base, base and value / base, memory)
    for part in runs[0].result.seconds:
        yield Measurement(f"{what}: {part}", median(run.result.seconds[part] for run in runs), "s")


@contextmanager
def _limited(limits: Limits) -> Iterator[None]:
    """Give the processes that are started here so many cores and threads, and DuckDB so much memory."""
    os.environ["POLARS_MAX_THREADS"] = str(limits.threads)
    if limits.memory:
        os.environ["HINDSIGHT_MEMORY"] = limits.memory
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, sorted(cores)[: limits.threads])
    yield
    if cores:
        os.sched_setaffinity(0, cores)


@contextmanager
def _clock(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


# One day more


def add_a_day(folder: Path, days: int, rows: int, repeat: int) -> list[Measurement]:
    """What the last of ``days`` files costs in an empty store, and added to a store of the days before it."""
    start = date(2017, 11, 25)
    end = start + timedelta(days=days)
    raise NotImplementedError


if __name__ == "__main__":
    main()
