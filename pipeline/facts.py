"""Facts to files: one of the published form a partition, sorted and each fact once, and one of what was refused.

The facts are laid on piles, one a partition, as they come; then each pile is sorted alone, which takes less than to
sort them all. What a log has none of, or only one of, is added when a pile is written.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.schemas import TIME
from pipeline.warehouse import ROW_GROUP, ahead, connect, large_writer, memory_limit, taker, with_dictionaries

DAY_US = 86_400_000_000
CHUNK = 1 << 20  # facts that are divided among the piles at a time
LARGEST = 1 << 30  # bytes of a pile that is sorted in memory, where that allows it: an Arrow column of text holds two
TIMES = 4  # what sorting takes of memory, in piles; DuckDB sorts a pile that is too large, where it must on disk
WRITERS = 2  # partitions that are written at a time
SCHEMA = with_dictionaries("events", {"event_type": pa.int8(), "source": pa.int8()})
IDENTITY = ["event_id", "event_ts"]  # of a fact: its id is a hash of it
REJECTS = pa.schema({"line": pa.int64(), "raw": pa.string(), "reason": pa.string()})
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Written:
    """What became of facts, each counted where it was decided."""

    events: dict[str, int]  # rows of the partitions' files, by their keys
    duplicates: int  # facts that were there already
    reasons: dict[str, int]  # refused facts


def write_facts(batches: Iterable[pa.RecordBatch], folder: Path, source: str) -> Written:
    """Write ``events/<partition>.parquet`` and ``rejects.parquet``.

    The batches have the ``period`` of a fact (the first day of its partition; null if it was refused), the columns of
    ``events`` that the log has, and ``line``, ``raw`` and ``reason`` of what was refused.
    """
    piles, events = folder / "piles", folder / "events"
    piles.mkdir()
    events.mkdir()
    reasons: Counter[str] = Counter()
    with pq.ParquetWriter(folder / "rejects.parquet", REJECTS) as rejects:
        for facts in ahead(_chunks(batches)):
            is_refused = facts["reason"].is_valid().to_numpy()
            if is_refused.any():
                refused = facts.select(REJECTS.names).filter(pa.array(is_refused)).cast(REJECTS)
                rejects.write_table(refused)
                reasons.update(refused["reason"].to_pylist())
            _lay(facts.drop_columns(REJECTS.names), np.flatnonzero(~is_refused), piles)
    paths = {pile: events / f"{pile.name}.parquet" for pile in sorted(piles.iterdir())}
    largest = min(LARGEST, memory_limit(WRITERS) // TIMES)
    with ThreadPoolExecutor(WRITERS) as pool:
        duplicates = sum(pool.map(lambda pile: _write_events(pile, paths[pile], source, largest), paths))
    piles.rmdir()
    written = {path.stem: int(pq.read_metadata(path).num_rows) for path in paths.values()}
    return Written(written, duplicates, dict(sorted(reasons.items())))


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= CHUNK:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _lay(facts: pa.Table, sound: Array, piles: Path) -> None:
    """Append the ``sound`` facts (their places) to the piles of their partitions, in the order in which they came."""
    days = facts["period"].cast(pa.int32()).to_numpy()[sound]
    order = np.argsort(days.astype(np.int16), kind="stable")  # two bytes are sorted digit by digit
    facts, days = taker(facts.drop_columns("period"))(sound[order]), days[order]
    borders = (np.flatnonzero(np.diff(days)) + 1).tolist()
    for start, end in pairwise([0, *borders, len(days)] if len(days) else []):
        pile = piles / str(np.datetime64(int(days[start]), "D"))
        with pile.open("ab") as file, pa.ipc.new_stream(file, facts.schema) as stream:
            stream.write_table(facts.slice(start, end - start))


def _laid(pile: Path) -> pa.Table:
    """What was laid on a pile."""
    tables = []
    with pa.memory_map(str(pile)) as file:
        while file.tell() < file.size():
            tables.append(pa.ipc.open_stream(file).read_all())
    return pa.concat_tables(tables)


def _write_events(pile: Path, path: Path, source: str, largest: int) -> int:
    """Write one partition; returns how many of its facts were there already."""
    facts, fits = _laid(pile), pile.stat().st_size <= largest
    pile.unlink()
    duplicates, before = 0, facts.select(IDENTITY).slice(0, 0)
    with large_writer(path, SCHEMA) as writer:
        for rows in _sorted(facts) if fits else _sorted_by_duckdb(facts):
            known = pa.concat_tables([before, rows.select(IDENTITY)])
            is_again = _is_again(known)[len(before) :]
            before = known.slice(len(known) - 1)
            duplicates += int(is_again.sum())
            writer.write_table(_published(rows.filter(pa.array(~is_again)) if is_again.any() else rows, source))
    return duplicates


def _sorted(facts: pa.Table) -> Iterator[pa.Table]:
    """Facts in order of user, time and id, ROW_GROUP at a time; equal ones as they came."""
    order, take = _order(facts), taker(facts)
    for start in range(0, len(order), ROW_GROUP):
        yield take(order[start : start + ROW_GROUP])


def _sorted_by_duckdb(facts: pa.Table) -> Iterator[pa.Table]:
    """The same within the memory that a writer may take."""
    facts = facts.append_column("place", pa.array(np.arange(len(facts))))
    with connect(workers=WRITERS) as con:
        con.register("facts", facts)
        types = "event_type::event_type as event_type"  # an enum, as it was laid
        ordered = con.sql(f"select * replace ({types}) from facts order by user_id, event_ts, event_id, place")
        batches = (pa.Table.from_batches([batch]) for batch in ordered.to_arrow_reader(ROW_GROUP))
        yield from _row_groups(batches)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, ROW_GROUP at a time."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROW_GROUP:
            rows = pa.concat_tables(waiting)
            yield rows.slice(0, ROW_GROUP)
            waiting = [rows.slice(ROW_GROUP)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _order(facts: pa.Table) -> Array:
    """[N] the places of facts in order of user, time and id; of equal facts the first comes first.

    User and time are sorted as one number of 64 bits if they fit, and the id only where these are the same.
    """
    users = facts["user_id"].combine_chunks().dictionary_encode()
    rank = np.empty(len(users.dictionary), np.uint64)  # [U]
    rank[_text_order(users.dictionary)] = np.arange(len(rank))
    user = rank[users.indices.to_numpy()]  # [N]
    us, ids = facts["event_ts"].cast(pa.int64()).to_numpy(), facts["event_id"].to_numpy()
    since = us - us.min()
    since //= max(1, np.gcd.reduce(since))  # times are often whole seconds
    bits = int(since.max()).bit_length()
    if bits + len(rank).bit_length() > 64:
        return np.lexsort((ids, us, user))
    key = user << np.uint64(bits) | since.astype(np.uint64)
    order = _argsort(key, bits + len(rank).bit_length())
    is_same = key[order[1:]] == key[order[:-1]]
    tied = np.flatnonzero(np.append(is_same, False) | np.append(False, is_same))
    places = np.sort(order[tied])
    order[tied] = places[np.lexsort((ids[places], key[places]))]
    return order


def _argsort(numbers: Array, bits: int) -> Array:
    """[N] the places of numbers of so many bits in their order."""
    low = np.uint64(len(numbers).bit_length())
    if bits + int(low) > 64:
        return np.argsort(numbers)
    # With their places below them the numbers themselves are sorted: in a fifth of the time.
    ordered = np.sort(numbers << low | np.arange(len(numbers), dtype=np.uint64))
    return (ordered & ((np.uint64(1) << low) - np.uint64(1))).astype(np.int64)


def _text_order(texts: pa.StringArray) -> Array:
    """[U] the places of different texts in the order of their bytes; short ones are sorted as numbers."""
    if pc.max(pc.binary_length(texts)).as_py() <= 8:
        views = texts.cast(pa.string_view())
        bytes_ = np.frombuffer(views.buffers()[1], np.uint8, 16 * len(views), 16 * views.offset)
        numbers = bytes_.reshape(-1, 16)[:, 4:12].copy().view(">u8").ravel().astype(np.uint64)  # behind the length
        order = np.argsort(numbers)
        if (numbers[order[1:]] > numbers[order[:-1]]).all():  # else texts that differ only in NULs at their end
            return order
    return np.asarray(pc.sort_indices(texts))


def _is_again(rows: pa.Table) -> Array:
    """[N] whether a row is the same as the one before it."""
    is_again = np.arange(len(rows)) > 0
    for column in rows.columns:
        values = column.to_numpy()
        is_again[1:] &= values[1:] == values[:-1]
    return is_again


def _published(rows: pa.Table, source: str) -> pa.Table:
    """The columns of ``events``."""
    names = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int8), [source])
    days = rows["event_ts"].cast(TIME).cast(pa.int64()).to_numpy() // DAY_US
    known = {"source": names, "event_date": pa.array(days, pa.int32())}
    known |= {name: rows[name] for name in rows.column_names}
    columns = [
        known[column.name].cast(column.type) if column.name in known else pa.nulls(len(rows), column.type)
        for column in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)
