"""Columns of anybody's log as SQL: by name or by a path into what is nested, as text, as a list, as a time.

A column of a text file is text, one of Parquet has a type, one of JSON lines is JSON; a text that holds JSON can be
stepped into as well. Whatever it was, it leaves this module as text that is null where nothing is known, so that one
SQL file serves all formats. ``define_macros`` makes the functions that the SQL here calls.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection
from duckdb.sqltypes import DuckDBPyType

from pipeline.errors import DataError, nearest
from pipeline.source_settings import Time
from pipeline.warehouse import literal, quote

JSON = duckdb.sqltype("json")
TEXT = duckdb.sqltype("varchar")
SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # how many units make one
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
UNREADABLE = "unreadable time stamp"
MODERN = (631_152_000, 4_102_444_800)  # 1990 to 2100 in seconds: what a log's time lies in


@dataclass(frozen=True)
class Column:
    """A value of a row: its SQL, its DuckDB type, and the path that is still to go where it is JSON."""

    sql: str
    type: DuckDBPyType
    path: tuple[str, ...] = ()

    @property
    def is_json(self) -> bool:
        return bool(self.type == JSON)

    @property
    def is_list(self) -> bool:
        return self.type.id in ("list", "array")


@dataclass(frozen=True)
class Columns:
    """The columns of a file by name. ``place`` names the file in errors."""

    place: Path
    named: Mapping[str, Column]

    def __getitem__(self, reference: str) -> Column:
        """The column of this name, or the one that a dotted path leads to. Raises DataError with the nearest name."""
        if reference in self.named:
            return self.named[reference]
        for name in sorted(self.named, key=len, reverse=True):
            if reference.startswith(f"{name}."):
                return self._step(self.named[name], tuple(reference[len(name) + 1 :].split(".")), reference)
        raise DataError(f"{self.place} has no column {reference!r}; {nearest(reference, self.named)}")

    def _step(self, column: Column, path: tuple[str, ...], reference: str) -> Column:
        if not path:
            return column
        if column.is_json:
            return Column(column.sql, JSON, column.path + path)
        if column.type.id == "varchar":
            return Column(f"try_cast({column.sql} as json)", JSON, path)
        if column.type.id == "struct":
            children = dict(column.type.children)
            if path[0] not in children:
                raise DataError(f"{self.place} has no column {reference!r}: {nearest(path[0], children)}")
            return self._step(Column(f"{column.sql}.{quote(path[0])}", children[path[0]]), path[1:], reference)
        if column.is_list:
            entry = self._step(Column("entry", element(column)), path, reference)
            sql = f"list_transform({column.sql}, lambda entry: {as_text(entry)})"
            return Column(sql, duckdb.list_type(TEXT))
        raise DataError(
            f"{self.place}: {reference!r} leads into a column of type {column.type}, which holds no others."
        )


def define_macros(con: DuckDBPyConnection, nulls: Iterable[str]) -> None:
    """The SQL functions for text: what is known, what an id is, whether a flag is set (null: it is none), a split."""
    missing = ", ".join(literal(text) for text in nulls) or "''"
    for macro in (
        f"known(x) as if(trim(x) in ({missing}), null, trim(x))",
        # pandas writes the ids of a column with gaps as floats.
        "known_id(x) as if(ends_with(x, '.0') and regexp_full_match(x, ' *-?[0-9]+[.]0'), known(x[:-3]), known(x))",
        "is_set(x) as case when known(x) is null then false when isfinite(try_cast(x as double)) "
        "then try_cast(x as double) > 0 when lower(trim(x)) in ('true', 't', 'yes', 'y') then true "
        "when lower(trim(x)) in ('false', 'f', 'no', 'n') then false end",
        "split(x, mark) as case when trim(mark) = '' then string_split_regex(trim(x), '\\s+') "
        "else string_split(if(ends_with(x, mark), x[: -1 - length(mark)], x), mark) end",
    ):
        con.execute(f"create or replace temp macro {macro}")


def element(column: Column) -> DuckDBPyType:
    """The type of a list's entries."""
    child: DuckDBPyType = column.type.children[0][1]
    return child


def as_text(column: Column) -> str:
    """SQL of a value as text, as the log has it. Raises DataError for a list or an object of Parquet."""
    if column.is_json:
        return f"json_extract_string({column.sql}, {pointer(column.path)})"
    if column.is_list or column.type.id in ("struct", "map"):
        raise DataError(
            f"A column of type {column.type} holds several values; name it in unpack or shown, or name one value in it."
        )
    return column.sql if column.type.id == "varchar" else f"{column.sql}::varchar"


def id_text(columns: Columns, names: Sequence[str]) -> str:
    """SQL of an id, null without names. One that is made of several columns is missing where one of them is."""
    return " || '|' || ".join(f"known_id({as_text(columns[name])})" for name in names) or "null::varchar"


def as_list(column: Column, separator: str | None) -> str:
    """SQL of a list of texts. Null where the value is none."""
    if column.is_list:
        return f"list_transform({column.sql}, lambda entry: {as_text(Column('entry', element(column)))})"
    text = f"known({as_text(column)})"
    split = f"split({text}, {literal(separator)})" if separator else f"try_cast({text} as varchar[])"
    if column.is_json:
        return f"case {_json_lists(column)} else {split} end"
    if separator:
        return split
    return f"coalesce(list_transform({_json_list(f'try_cast({text} as json)', ())}, lambda x: x ->> '$'), {split})"


def as_entries(column: Column, separator: str | None) -> Column:
    """A column of entries that keep what is nested in them: a list of JSON, of text, or of Parquet's types."""
    if column.is_list:
        return column
    if separator:
        return Column(as_list(column, separator), duckdb.list_type(TEXT))
    found = _json_list(*((column.sql, column.path) if column.is_json else (f"try_cast({as_text(column)} as json)", ())))
    # A list that is written as Python writes it is no JSON.
    texts = f"try_cast({as_text(column)} as varchar[])"
    return Column(f"coalesce({found}, list_transform({texts}, lambda x: to_json(x)))", duckdb.list_type(JSON))


def as_parts(texts: str, entry: str) -> str:
    """SQL of a list of structs: texts taken apart by a pattern like "{item}-{click}"; all '' where one does not fit."""
    names = ", ".join(literal(name) for name in re.findall(r"{(\w+)}", entry))
    return f"list_transform({texts}, lambda x: regexp_extract(x, {literal(entry_pattern(entry))}, [{names}]))"


def entry_pattern(entry: str) -> str:
    """The regular expression of an entry. The first part may hold the text between the parts, the others may not."""
    pieces = re.split(r"{\w+}", entry)
    between = re.escape("".join(dict.fromkeys("".join(pieces[1:-1]))))
    groups = ["(.+)", *[f"([^{between}]*)"] * (len(pieces) - 2)]
    return "^" + "".join(re.escape(piece) + group for piece, group in zip(pieces, [*groups, "$"], strict=True))


def time_value(columns: Sequence[Column], time: Time, place: Path) -> Column:
    """What a time is read from: text, or a time stamp of Parquet. Raises DataError for one that is said to be text."""
    if len(columns) > 1 or not columns[0].type.id.startswith(("timestamp", "date")):
        # Of several columns, one that is missing makes the time missing.
        return Column(f"known({' || chr(32) || '.join(as_text(column) for column in columns)})", TEXT)
    if time.unit or time.format:
        raise DataError(f"{place}: {time.column[0]!r} holds time stamps already; drop time.unit and time.format.")
    return columns[0]


def as_time(value: Column, time: Time) -> tuple[str, str]:
    """SQL of a timestamptz, and of why it cannot be read (or null; a time that is missing is null in both)."""
    text = value.sql
    if value.type != TEXT:
        return _in_zone(value, time.zone), "null"
    if time.unit:
        return _counted(text, time.unit)
    if not time.format:
        return _iso(text, time.zone)
    # With %z or %Z a time names its zone.
    read = f"try_strptime({text}, {literal(time.format)})"
    moment = read if re.search("%[zZ]", time.format) else _zoned(read, time.zone)
    return moment, f"if({text} is not null and {read} is null, 'time stamp is not written as time.format', null)"


def _in_zone(value: Column, zone: str) -> str:
    return value.sql if value.type.id == "timestamp with time zone" else _zoned(f"{value.sql}::timestamp", zone)


def _zoned(timestamp: str, zone: str) -> str:
    """A time in a gap of the clock has the offset before the gap, one of an hour that comes twice the later offset."""
    return f"{timestamp}::timestamptz" if zone == "UTC" else f"timezone({literal(zone)}, {timestamp})"


def _counted(text: str, unit: str) -> tuple[str, str]:
    number = f"try_cast({text} as double)"
    # The digits of nanoseconds are more than a double has.
    seconds = f"try_cast({text} as bigint) // 1000 / 1e6" if unit == "ns" else f"{number} / {SECOND[unit]}"
    cases = [f"when {text} is null or {_is_modern(number, unit)} then null when {number} is null then '{UNREADABLE}'"]
    for other in SECOND:
        reason = f"time stamp is in {UNITS[other]} instead of {UNITS[unit]}"
        cases += [f"when {_is_modern(number, other)} then '{reason}'"] if other != unit else []
    return f"if(abs({seconds}) < 1e11, to_timestamp({seconds}), null)", f"case {' '.join(cases)} end"


def _is_modern(number: str, unit: str) -> str:
    first, last = (bound * SECOND[unit] for bound in MODERN)
    return f"{number} between {first} and {last}"


def _iso(text: str, zone: str) -> tuple[str, str]:
    read = f"try_cast({text} as timestamptz)"  # what names no zone is read in the connection's, UTC
    moment = read
    if zone != "UTC":
        own_zone = "regexp_matches(" + text + ", ':[0-9.]+ ?(z|[+-][0-9:]+| [a-z][a-z/_]+)$', 'i')"
        moment = f"if({own_zone}, {read}, {_zoned(f'try_cast({text} as timestamp)', zone)})"
    fault = (
        f"case when {text} is null or {read} is not null then null when try_cast({text} as double) is not null "
        f"then 'time stamp is a number: set time.unit, or time.format' else '{UNREADABLE}' end"
    )
    return moment, fault


def pointer(path: Iterable[str]) -> str:
    """A JSON path as an SQL literal."""
    return literal("$" + "".join('."' + step.replace('"', '\\"') + '"' for step in path))


def _json_lists(column: Column) -> str:
    """The cases of a JSON path that ends at a list, or leads through a list of objects: when … then …"""
    cases = []
    for end in range(len(column.path), -1, -1):
        to, rest = column.path[:end], column.path[end:]
        entries = f"list_transform({_json_list(column.sql, to)}, lambda x: x ->> {pointer(rest)})"
        cases.append(f"when json_type({column.sql}, {pointer(to)}) = 'ARRAY' then {entries}")
    return " ".join(cases)


def _json_list(sql: str, path: tuple[str, ...]) -> str:
    return f"try_cast(json_extract({sql}, {pointer(path)}) as json[])"
