"""From a raw CSV to published events, rejects, sessions and impressions, against a bare sort and the same in polars and
in pandas; and what it costs to add one day to a long history.

``python -m benchmarks.etl --rows 20000000`` writes a Taobao-format log of that many lines and measures, each in a
process of its own, in turn, ``--repeat`` times, and reports medians:

- floor: ``copy (select * from read_csv(…) order by user, time) to …``, DuckDB as it comes: no dedup, no rejects kept.
- ours: ``pipeline.ingest`` and ``pipeline.sessions`` as the assets call them, with the experiment ``taobao``.
- sql: the published columns by the leanest SQL known to us; duplicates and dirt stay in.
- polars, pandas: ``benchmarks.etl_baselines``. They must find as many events, rejects, sessions and impressions.

``--threads`` holds for all, by the cores that they may run on and by their own settings; ``--memory 6GiB`` limits
DuckDB, in the floor and in ours.

What bounds ours, in CPU seconds at 20 M rows on a machine that had other work too, where the floor takes 12 and ours
27: reading, splitting and checking the lines 8; laying them on piles, one a partition, 2.6; putting each pile in order
1.8, fetching its rows in that order and writing their 15 columns 5.5; sessions and impressions 9, of which the sessions
themselves are 2 and the rest is reading events and writing both tables; hashing the file and counting its lines 0.8. A
fifth of it is spent in the kernel, most of that on handing out memory. Reading alone comes near the floor: a line is
text until it is known to be sound, and one that is not must be found again by its number. In a quiet run the floor took
7.3 CPU seconds, ours 22.7, and the published columns alone, by ``sql``, 26.8.

``python -m benchmarks.etl --incremental --days 100`` runs the Dagster job up to the features: over the last day's file
alone in an empty store, and over the same file added to a store of all the days before. What a history of 99 days adds
to the features of a day of 100,000 lines is a scan of the week before it, 650,000 rows: a fifth of what the day costs
alone, of which finding the facts of its items, of its users and what was said of its items take a quarter each.
"""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import duckdb
import yaml

from benchmarks import etl_baselines
from benchmarks.common import Measurement, Metered, alone, publish
from benchmarks.etl_log import DAY, DAYS, FIRST_SECOND, write_days, write_log
from pipeline.conservation import check_conservation, ingest_counts
from pipeline.experiment import PROJECT, Partitions, experiment_from_environment, load_experiment
from pipeline.ingest import build_events, build_rejects, stage, staged_folders
from pipeline.partitions import partitions_of
from pipeline.plan import STEPS, Plan, row_count
from pipeline.sessions import build_sessions
from pipeline.sources import open_source

FLOOR = """
copy (
    select * from read_csv(
        $log, header = false, ignore_errors = true,
        columns = {'user': 'bigint', 'item': 'bigint', 'category': 'bigint', 'behaviour': 'varchar', 'time': 'bigint'}
    )
    order by "user", "time"
) to $out (format parquet)
"""
TABLES = [table for table, step in STEPS.items() if step.group == "logs"] + ["impressions", "sessions", "features"]
WHOLE_RUN = "whole run, with its checks and Dagster"


@dataclass(frozen=True)
class Limits:
    """What every competitor may use."""

    threads: int
    memory: str | None = None  # of DuckDB


@dataclass(frozen=True)
class Outcome:
    """What a run gave: rows (or parts made) by table, and seconds by part of the work."""

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
    parser.add_argument("--rows", type=int, help="lines of the log (2,000,000), or of one day's file (200,000)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", help="limit of DuckDB's memory, as 6GiB")
    parser.add_argument("--only", default=",".join(COMPETITORS), help="which of them, with commas between")
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--incremental", action="store_true", help="measure the cost of one day more")
    parser.add_argument("--days", type=int, default=30, help="files of the history, with the one that is added")
    return parser.parse_args()


# The comparison


def floor(log: Path, out: Path, limits: Limits) -> Outcome:
    """The least that any of them must do: read and sort."""
    with duckdb.connect() as con:
        con.execute(f"set threads = {limits.threads}")
        con.execute("set enable_progress_bar = false")
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
    with _clock(seconds, "CSV to sorted events and rejects"):
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
    """polars or pandas, over the time range of the experiment."""
    del limits  # the environment has them
    return Outcome(job(log, out, FIRST_SECOND, FIRST_SECOND + DAYS * DAY), {})


def unchecked(log: Path, out: Path, limits: Limits) -> Outcome:
    """The published columns alone."""
    etl_baselines.in_sql(log, out, limits.threads)
    return Outcome({}, {})


COMPETITORS: dict[str, Callable[[Path, Path, Limits], Outcome]] = {
    "floor": floor,
    "ours": ours,
    "sql": unchecked,
    "polars": partial(baseline, etl_baselines.in_polars),
    "pandas": partial(baseline, etl_baselines.in_pandas),
}


def compare(folder: Path, rows: int, limits: Limits, repeat: int, names: Sequence[str]) -> list[Measurement]:
    """Run the named competitors in turn over one log; medians, those of the others as multiples of the floor's."""
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
    return [m for name, done in runs.items() for m in _measurements(f"{name}, {about}", done, runs.get("floor"))]


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
        yield Measurement(f"{what}: {part}", median(run.result.seconds[part] for run in runs), "s", peak_rss_mb=memory)


@contextmanager
def _limited(limits: Limits) -> Iterator[None]:
    """Give the processes that are started here so many cores and threads, and DuckDB so much memory."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    memory = {"HINDSIGHT_MEMORY": limits.memory} if limits.memory else {}
    with patch.dict(os.environ, {"POLARS_MAX_THREADS": str(limits.threads)} | memory):
        if cores:
            os.sched_setaffinity(0, sorted(cores)[: limits.threads])
        yield
        if cores:
            os.sched_setaffinity(0, cores)


@contextmanager
def _clock(seconds: dict[str, float], part: str, now: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    start = now()
    yield
    seconds[part] = now() - start


# One day more


def add_a_day(folder: Path, days: int, rows: int, repeat: int) -> list[Measurement]:
    """What the last of ``days`` files costs in an empty store, and added to a store of the days before it."""
    start = date(2017, 11, 25)
    last, end = start + timedelta(days=days - 1), start + timedelta(days=days)
    raw, files = folder / "raw", folder / "files"
    files.mkdir()
    *earlier, added = alone(write_days, files, partitions_of(Partitions(start=start, end=end)), rows).result
    raw.mkdir()
    for file in earlier:
        os.link(file, raw / file.name)
    history = _home(folder / "history", raw, start, end)
    alone(ingest, history)
    os.link(added, raw / added.name)
    for file in earlier:
        file.unlink()
    in_empty, in_history = [], []
    for number in range(repeat):
        in_empty.append(alone(ingest, _home(folder / f"empty-{number}", files, last, end)))
        copy = shutil.copytree(history, folder / f"copy-{number}")
        in_history.append(alone(ingest, copy))
        shutil.rmtree(copy)
    made = in_history[0].result.counts
    print(f"Parts made for one day more: {made}")
    if made["events"] != 1:
        raise SystemExit("More events were made than those of the new day: did the code change while this ran?")
    what = f"one day of {rows:,} rows after {days - 1} days, against alone"
    return list(_of_a_day(what, in_history, in_empty))


def _of_a_day(what: str, runs: list[Metered[Outcome]], least: list[Metered[Outcome]]) -> Iterator[Measurement]:
    """CPU seconds of the tables together, of the whole run and of each table."""
    memory = max(run.peak_rss_mb for run in runs)
    tables = [part for part in runs[0].result.seconds if part != WHOLE_RUN]
    named = {"all tables": tables, WHOLE_RUN: [WHOLE_RUN]} | {table: [table] for table in tables}
    for name, parts in named.items():
        value, base = (median(sum(run.result.seconds[p] for p in parts) for run in those) for those in (runs, least))
        yield Measurement(f"{what}: {name}", value, "CPU s", base, value / base, memory)


def _home(folder: Path, raw: Path, start: date, end: date) -> Path:
    """A folder with an experiment over the raw files, an empty storage and an empty Dagster home."""
    (folder / "dagster").mkdir(parents=True)
    shutil.copy(PROJECT / "storage" / "dagster" / "dagster.yaml", folder / "dagster")
    experiment = {
        "name": "days",
        "source": {"kind": "taobao", "path": str(raw)},
        "partitions": {"grain": "day", "start": start, "end": end},
        "agents": {"popularity": {}},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    return folder


def ingest(home: Path) -> Outcome:
    """What is stale, made up to the features by Dagster as launch.py does: parts made and CPU seconds, by table."""
    os.environ |= {
        "EXPERIMENT": str(home / "experiment.yaml"),
        "HINDSIGHT_STORAGE": str(home / "storage"),
        "DAGSTER_HOME": str(home / "dagster"),
    }
    # DuckDB 2.0's bindings report "leaks" when the interpreter ends.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno()))
    import dagster as dg

    from pipeline.definitions import defs  # reads EXPERIMENT
    from pipeline.defs.automation import range_tags, stale_assets

    before = _versions()
    seconds: dict[str, float] = {}
    with _timed_tables(seconds), _clock(seconds, WHOLE_RUN, time.process_time), dg.DagsterInstance.get() as instance:
        known = Plan(experiment_from_environment()).store.current("manifest")
        for tables in (["manifest"], TABLES) if known else (TABLES,):
            stale = Plan(experiment_from_environment()).stale_tables()
            stale = {table: parts for table, parts in stale.items() if table in tables}
            defs.resolve_job_def("materialize_all").execute_in_process(
                instance=instance,
                tags=range_tags(stale),
                asset_selection=stale_assets(stale),
                run_config={"loggers": {"console": {"config": {}}}},
            )
    made = Counter(table for table, part, _ in _versions() - before)
    return Outcome(dict(made), seconds)


@contextmanager
def _timed_tables(seconds: dict[str, float]) -> Iterator[None]:
    """Time what makes the tables, apart from the checks and Dagster's own work."""
    make = Plan.make

    def timed(plan: Plan, tables: tuple[str, ...], *arguments: Any) -> dict[str, list[str]]:
        with _clock(seconds, " and ".join(tables), time.process_time):
            return make(plan, tables, *arguments)

    with patch.object(Plan, "make", timed):
        yield


def _versions() -> set[tuple[str, str, str]]:
    """Table, part and fingerprint of all that is published."""
    plan = Plan(experiment_from_environment())
    found = (plan.store.current(table, part) for table in TABLES for part in plan.parts(table))
    return {(version.table, version.part, version.fingerprint) for version in found if version}


if __name__ == "__main__":
    main()
