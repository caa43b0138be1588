"""``make check``: how a log would be understood. It reads the first rows of some files and writes nothing."""

import re
import tempfile
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from pipeline.conservation import LEFT_OUT
from pipeline.errors import ConfigError, DataError
from pipeline.experiment import Experiment, Partitions
from pipeline.ingest import checked, outside
from pipeline.partitions import partitions_of
from pipeline.sources import open_source
from pipeline.sources.base import EVENT_COLUMNS, RawFile, Source
from pipeline.warehouse import connect, run_sql

ROWS = 10_000  # of each file
FILES = 3  # of those whose names differ in numbers only
EXAMPLES = 3
REASONS = 8
RAW = 160  # characters of a refused record
CATALOGUE = 64 << 20  # bytes of item and user files that are read
PERIODS = 60  # partitions that are still quick to list


def describe_log(experiment: Experiment) -> str:
    """What the experiment's source finds and how it reads it, as text for people.

    Raises ConfigError for the storefront, which has no raw files of its own, and DataError for unreadable files.
    """
    if experiment.source.kind == "storefront":
        raise ConfigError("The storefront makes its own log: there is nothing to check. Choose another EXPERIMENT.")
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(experiment.source, Path(scratch))
        files = source.discover()
        shown = "is in the log" if source.has_impressions else "is not in the log and will be constructed"
        lines = [f"{experiment.name}: a log of kind {experiment.source.kind}; what was shown {shown}", *_found(files)]
        for file in _chosen(files):
            lines += ["", f"{file.path}: the first {ROWS:,} records", *_indented(_read(experiment, source, file))]
        lines += ["", *_catalogue(source, files)] if any(file.kind != "events" for file in files) else []
    return "\n".join(lines)


def _found(files: Sequence[RawFile]) -> list[str]:
    """How many files of each kind there are, and the first of them."""
    lines = []
    for kind in ("events", "items", "users"):
        paths = [file.path for file in files if file.kind == kind]
        size = sum(path.stat().st_size for path in paths)
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        lines += [f"  {kind:<7} {paths[0]}{more} ({size:,} bytes)"] if paths else []
    return lines


def _chosen(files: Sequence[RawFile]) -> list[RawFile]:
    """The first, middle and last events files of each form: those whose names differ in numbers only."""
    forms: dict[str, list[RawFile]] = {}
    for file in files:
        if file.kind == "events":
            forms.setdefault(re.sub(r"[0-9a-f-]*[0-9][0-9a-f-]*", "#", str(file.path)), []).append(file)
    chosen = []
    for alike in forms.values():
        places = np.unique(np.linspace(0, len(alike) - 1, FILES).astype(int))
        chosen += [alike[place] for place in places]
    return chosen


def _read(experiment: Experiment, source: Source, file: RawFile) -> list[str]:
    """What the first lines of a file are read as."""
    try:
        with connect() as con:
            told = _sample(con, experiment, source, file)
            params = {"outside": outside(experiment.partitions)}
            types = run_sql(con, "staging/check_types", params).fetchall()
            reasons = run_sql(con, "staging/check_reasons", {"longest": RAW}).fetchall()
            judged = {"positive_above": getattr(experiment.source, "positive_above", None)}
            found = run_sql(con, "staging/check_totals", params | judged)
            totals = dict(zip(found.columns, found.fetchall()[0], strict=True))
            usable = con.table("sampled_facts").filter("reason is null")
            examples = usable.order("line, position, event_type").limit(EXAMPLES)
            rows = [dict(zip(examples.columns, row, strict=True)) for row in examples.fetchall()]
            filled = con.sql(f"select {', '.join(f'count({name}) as {name}' for name in told)} from sampled_facts")
            empty = [name for name, n in zip(told, filled.fetchall()[0], strict=True) if not n]
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file.path} cannot be read ({reason}); check its format in the experiment.") from None
    dirt = sum(n for reason, n, *_ in reasons if not reason.startswith(LEFT_OUT))
    hints = [*_range_hints(experiment.partitions, totals), *_hints(source, totals, empty)]
    if dirt > experiment.ingest.max_rejects * totals["facts"]:
        hints.append(f"{dirt / totals['facts']:.1%} is refused as dirt, more than ingest.max_rejects allows.")
    return [
        f"{totals['records']:,} records hold {totals['facts']:,} facts, {totals['usable']:,} of them usable: "
        f"{totals['users']:,} users, {totals['items']:,} items, {totals['visits']:,} sessions or users",
        *[f"{n:>12,} {kind or 'of unknown type'} from {first} to {last}" for kind, n, first, last in types],
        *[f"     example {_fact(row)}" for row in rows],
        *[f"{n:>12,} refused: {reason}, first in line {line}: {raw!r}" for reason, n, line, raw in reasons[:REASONS]],
        *[f"        note {hint}" for hint in hints],
    ]


def _sample(con: duckdb.DuckDBPyConnection, experiment: Experiment, source: Source, file: RawFile) -> list[str]:
    """Make the table ``sampled_facts`` of a file's first lines; returns the columns that its source fills."""
    facts = checked(con, source, file, experiment.partitions, np.arange(1, ROWS + 1))
    told = [name for name in EVENT_COLUMNS if name in facts.columns]
    absent = [f"null::{kind} as {name}" for name, kind in EVENT_COLUMNS.items() if name not in told]
    facts.project(", ".join([*told, *absent, "line", "raw", "reason"])).create("sampled_facts")
    return told


def _range_hints(partitions: Partitions, totals: dict[str, Any]) -> list[str]:
    """Whether the times fit the experiment's partitions, and what would."""
    if not totals["outside"]:
        return []
    timed = totals["usable"] + totals["outside"]
    share = totals["outside"] / timed
    hint = f"{share:.1%} of {timed:,} lie outside the partitions {partitions.start} to {partitions.end}."
    if share < 0.05:
        return [hint]
    first, last = totals["early_ts"].date(), totals["late_ts"].date() + timedelta(days=1)
    return [f"{hint} These rows would need at least {_suggested(partitions.grain, first, last)}."]


def _suggested(grain: str, first: date, last: date) -> str:
    """Partitions from the period of ``first`` to the one that ends at ``last`` or after it: few enough to be quick."""
    for wanted in ("day", "month", "year")[("day", "month", "year").index(grain) :]:
        start = first.replace(day=1 if wanted != "day" else first.day, month=1 if wanted == "year" else first.month)
        found = Partitions(grain=wanted, start=start, end=_aligned(wanted, last))
        if len(partitions_of(found)) <= PERIODS:
            break
    return f"{{grain: {found.grain}, start: {found.start}, end: {found.end}}}"


def _aligned(grain: str, last: date) -> date:
    """The first period's start that is not before ``last``."""
    if grain == "day" or (last.day == 1 and (grain == "month" or last.month == 1)):
        return last
    if grain == "year" or last.month == 12:
        return date(last.year + 1, 1, 1)
    return date(last.year, last.month + 1, 1)


def _hints(source: Source, totals: dict[str, Any], empty: Sequence[str]) -> list[str]:
    """What a person should look at before a run."""
    usable, impressions = totals["usable"], totals["impressions"]
    found = [
        (f"{', '.join(empty)}: empty in all of these rows; check the columns.", totals["facts"] and empty),
        ("No positives here: no click, favorite, cart or purchase, and no rating above positive_above.",
         usable and not totals["actions"] + totals["liked"]),
        ("No impressions here: they must come from other files, or set source.has_impressions to false.",
         usable and source.has_impressions and not impressions),
        (f"{totals['unshown']:,} of {totals['answers']:,} actions are on items that their request did not show; "
         "is it the same kind of id?", impressions and totals["unshown"] > totals["answers"] / 2),
        (f"Median facts of a session (or of a user, where the log has none): {totals['facts_a_visit'] or 0:.0f}; "
         "sessions this short teach little.", usable and totals["facts_a_visit"] < 2),
    ]  # fmt: skip
    return [hint for hint, holds in found if holds]


def _fact(row: dict[str, Any]) -> str:
    """One fact in the order of the columns, without what it does not have."""
    told = " ".join(f"{name}={row[name]}" for name in EVENT_COLUMNS if row[name] is not None)
    return f"(line {row['line']}) {told}"


def _catalogue(source: Source, files: Sequence[RawFile]) -> list[str]:
    """How many items and users are described, and how many of them have what."""
    lines = []
    for kind, read in (("items", source.items), ("users", source.users)):
        paths = [file.path for file in files if file.kind == kind]
        size = sum(path.stat().st_size for path in paths)
        if size > CATALOGUE:
            lines.append(f"{kind}: {size:,} bytes are not read for a check")
        elif paths:
            with connect() as con:
                described = read(con, files)
                names = [name for name in described.columns if name != "features"]
                counts = ", ".join(f"count({name}) as {name}" for name in names)
                found = described.aggregate(f"{counts}, coalesce(max(len(features)), 0) as features")
                counted = dict(zip(found.columns, found.fetchall()[0], strict=True))
            told = [
                f"{n:,} features" if name == "features" else f"{n:,} with {name}" for name, n in counted.items() if n
            ]
            lines.append(f"{kind}: " + ", ".join(told))
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
