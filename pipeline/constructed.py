"""Sessions and impressions of a log that tells only what was acted on, in one pass over its events in order.

The same as ``sql/staging/session_events.sql`` and what follows it, for a log without impressions, requests and slots:
an item is shown when its user first acts on it in a session. The rows come sorted by visit and time, so that a step
looks at a row and the one before it; only an item's acts of a session are brought together by sorting. A visit's rows
are never parted, and no more than CHUNK of them are in memory beside one visit's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline.schemas import TIME
from pipeline.warehouse import large_writer, taker, with_dictionaries

CHUNK = 1 << 17  # rows that are worked on at a time: their columns fit into a core's cache
DAY_US = 86_400_000_000
NEVER = np.iinfo(np.int64).max
MILLION = 1_000_000  # rewards are added up in millionths, to the same sum in any order
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no two sessions of a chunk meet
FEEDBACK = pa.array([code.name.lower() if code else "" for code in Feedback])
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Rules:
    """What parts a user's acts into sessions and pages, and what these are worth."""

    first_us: int  # sessions that start in [first_us, last_us) are wanted
    last_us: int
    max_us: int  # length of a session
    page_size: int
    cols: int
    rewards: Array  # [6] by code


def write_sessions(
    batches: Iterable[pa.RecordBatch],
    rules: Rules,
    impressions: Path,
    sessions: Path,
    put_aside: Callable[[pa.Table], Array | None] = lambda rows: None,
) -> dict[str, int]:
    """Write both tables of the rows of ``sql/staging/constructed_rows.sql``, sorted by visit and time; returns counts.

    ``put_aside`` is given whole visits, and says of which rows the sessions are left out.
    """
    capped = 0
    with _writer(impressions, "impressions") as shown, _writer(sessions, "sessions") as visits:
        for rows in whole_visits(batches):
            of_items, of_sessions = impressions_and_sessions(rows, rules, put_aside(rows))
            shown.write_batch(of_items)
            visits.write_batch(of_sessions)
            capped += of_sessions["capped"].true_count
    rows_of = {"impressions": impressions, "sessions": sessions}
    return {name: int(pq.read_metadata(path).num_rows) for name, path in rows_of.items()} | {"capped": capped}


def whole_visits(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of about CHUNK, cut where a visit ends."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) < CHUNK:
            continue
        rows = pa.Table.from_batches(waiting).combine_chunks()
        visit = rows["visit"].to_numpy()
        borders = np.flatnonzero(visit[1:] != visit[:-1])
        end = int(borders[-1]) + 1 if len(borders) else 0
        if end:
            yield rows.slice(0, end)
        waiting = rows.slice(end).to_batches()
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def near_midnight(rows: pa.Table, gap_us: int) -> Array:
    """[N] whether a row's run of acts without a pause comes within ``gap_us`` of midnight (UTC): it may go on there."""
    us = rows["us"].to_numpy()
    is_start = _changes(rows["visit"].to_numpy()) | _changes(us // DAY_US)
    is_start[1:] |= np.diff(us) > gap_us
    starts = np.flatnonzero(is_start)  # [R]
    ends = np.append(starts[1:], len(us))
    near = (us[starts] % DAY_US < gap_us) | (us[ends - 1] % DAY_US >= DAY_US - gap_us)
    return np.repeat(near, ends - starts)


def impressions_and_sessions(
    rows: pa.Table, rules: Rules, left_out: Array | None = None
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The rows of both tables that whole visits give, but for sessions that start with a row that is ``left_out``.

    Users and feedback are dictionaries.
    """
    visit, us = (rows[name].to_numpy() for name in ("visit", "us"))
    spans = _spans(visit, us, rows["pause"].to_numpy(), rules)
    session = np.repeat(np.arange(len(spans.start)), spans.end - spans.start)  # [N]
    acts = _acts(session, rows["item_key"].to_numpy(), us, rows["code"].to_numpy())
    is_wanted = (us[spans.start] >= rules.first_us) & (us[spans.start] < rules.last_us)  # [S]
    if left_out is not None:
        is_wanted &= ~left_out[spans.start]
    of_session = session[acts.place]  # [A]
    shown = np.bincount(of_session)  # [S] items, at least one
    if not is_wanted.all():
        acts, spans, shown = acts.of(is_wanted[of_session]), spans.of(is_wanted), shown[is_wanted]
    users = _users(rows["user_id"], visit)
    return _impressions(rows, acts, spans, shown, users, rules), _totals(rows, acts, spans, shown, users, rules)


@dataclass(frozen=True)
class _Spans:
    """[S] the sessions: their first rows, those behind their last, and whether the length cap cut them."""

    start: Array
    end: Array
    capped: Array

    def of(self, mask: Array) -> "_Spans":
        return _Spans(self.start[mask], self.end[mask], self.capped[mask])


@dataclass(frozen=True)
class _Acts:
    """[A] what came of each item of a session, in the order in which they were first acted on."""

    place: Array  # of the first act
    code: Array  # the best
    positive_us: Array  # of the first that was positive, or NEVER

    def of(self, mask: Array) -> "_Acts":
        return _Acts(self.place[mask], self.code[mask], self.positive_us[mask])


def _changes(values: Array) -> Array:
    """[N] whether a value is not the one before it."""
    changes = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def _spans(visit: Array, us: Array, pause: Array, rules: Rules) -> _Spans:
    """A chain is a run of a visit's acts without a pause; its first ``max_us`` are a session, the rest is cut again."""
    is_chain = _changes(visit)
    is_chain[1:] |= np.diff(us) > pause[1:]
    chains = np.flatnonzero(is_chain)
    chain_us = np.repeat(us[chains], np.diff(chains, append=len(us)))
    is_long = us - chain_us >= rules.max_us
    is_session = is_chain
    if is_long.any():
        pieces = np.where(is_long, us % DAY_US % rules.max_us - us, chain_us)  # of the rest: of the other sign
        is_session = is_chain | _changes(pieces)
    start = np.flatnonzero(is_session)
    return _Spans(start, np.append(start[1:], len(us)), np.append(~is_chain[start[1:]], False))


def _acts(session: Array, item: Array, us: Array, code: Array) -> _Acts:
    """``item`` is a hash."""
    key = item ^ (session.astype(np.uint64) * MIX)
    order = np.argsort(key)  # [N]
    is_new = _changes(key[order])
    order = order[~is_new | ~np.append(is_new[1:], True)]  # of the items that were acted on again, a few
    best, positive_us, is_first = code.copy(), np.where(code >= FIRST_POSITIVE, us, NEVER), np.ones(len(us), bool)
    if len(order):
        groups = np.flatnonzero(_changes(key[order]))
        first = np.minimum.reduceat(order, groups)
        best[first] = np.maximum.reduceat(code[order], groups)
        positive_us[first] = np.minimum.reduceat(positive_us[order], groups)
        is_first[order] = False
        is_first[first] = True
    place = np.flatnonzero(is_first)  # [A]
    return _Acts(place, best[place], positive_us[place])


def _users(user_id: pa.ChunkedArray, visit: Array) -> pa.DictionaryArray:
    """[N] the users as a dictionary: what is the same within a visit is hashed once."""
    is_start = _changes(visit)
    users = user_id.take(pa.array(np.flatnonzero(is_start))).combine_chunks().dictionary_encode()
    return pa.DictionaryArray.from_arrays(users.indices.to_numpy()[np.cumsum(is_start) - 1], users.dictionary)


def _impressions(
    rows: pa.Table, acts: _Acts, spans: _Spans, shown: Array, users: pa.DictionaryArray, rules: Rules
) -> pa.RecordBatch:
    us = rows["us"].to_numpy()[acts.place]
    first = np.repeat(np.cumsum(shown) - shown, shown)  # [A] the act that shows the session's first item
    position = (np.arange(len(us)) - first).astype(np.int32)
    page = position // rules.page_size
    slot = position - page * rules.page_size  # several times as fast as divmod
    row = slot // rules.cols
    columns = {
        "session_id": np.repeat(rows["session_id"].to_numpy()[spans.start], shown),
        "user_id": users.take(pa.array(acts.place)),
        "item_id": taker(rows.select(["item_id"]))(acts.place)["item_id"].combine_chunks(),
        "page": page,
        "row": row,
        "col": slot - row * rules.cols,
        "position": position,
        "feedback": pa.DictionaryArray.from_arrays(acts.code, FEEDBACK),
        "reward": rules.rewards[acts.code],
        "propensity": pa.nulls(len(us), pa.float64()),
        "page_ts": _moments(us[first + page * rules.page_size]),
        "impression_ts": _moments(us),
        "positive_ts": pa.array(acts.positive_us, mask=acts.positive_us == NEVER).cast(TIME),
    }
    return _batch("impressions", columns)


def _totals(
    rows: pa.Table, acts: _Acts, spans: _Spans, shown: Array, users: pa.DictionaryArray, rules: Rules
) -> pa.RecordBatch:
    us = rows["us"].to_numpy()
    end = np.cumsum(shown)
    millionths = np.rint(rules.rewards * MILLION).astype(np.int64)[acts.code]
    columns = {
        "session_id": rows["session_id"].to_numpy()[spans.start],
        "user_id": users.take(pa.array(spans.start)),
        "start_ts": _moments(us[spans.start]),
        "end_ts": _moments(us[spans.end - 1]),
        "pages": (shown - 1) // rules.page_size + 1,
        "impressions": shown,
        "clicks": _sums(acts.code >= FIRST_POSITIVE, end),
        "purchases": _sums(acts.code == Feedback.PURCHASE, end),
        "reward": _sums(millionths, end) / MILLION,
        "capped": spans.capped,
    }
    return _batch("sessions", columns)


def _sums(values: Array, end: Array) -> Array:
    """[S] the sums over the acts of each session. ``end`` [S] lies behind its last."""
    return np.diff(np.cumsum(values, dtype=np.int64)[end - 1], prepend=0)


def _moments(us: Array) -> pa.Array:
    return pa.array(us).cast(TIME)


def _batch(table: str, columns: dict[str, Any]) -> pa.RecordBatch:
    """The columns as they are written."""
    values = {name: v if isinstance(v, pa.Array) else pa.array(v) for name, v in columns.items()}
    schema = _schema(table)
    return pa.RecordBatch.from_arrays([values[field.name].cast(field.type) for field in schema], schema=schema)


def _schema(table: str) -> pa.Schema:
    return with_dictionaries(table, {"user_id": pa.int32(), "feedback": pa.int8()})


def _writer(path: Path, table: str) -> pq.ParquetWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    return large_writer(path, _schema(table))
