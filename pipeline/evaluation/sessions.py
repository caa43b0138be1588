"""Validation and test sessions as padded batches: what leg 1 ranks, and the state before the first page.

The candidates of a session are put into the order of a fixed hash of (session, item) as they are read. The logged
order is thereby gone: a ranker that prefers low indices among equals cannot profit from it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.base import StateBatch, Task, TensorBatch
from models.feedback import FIRST_POSITIVE
from models.hashing import mix64
from pipeline.errors import DataError
from pipeline.experiment import History
from pipeline.warehouse import connect

CHUNK = 4096  # sessions that iter_sessions holds at once
PER_CANDIDATE = ("items", "mask", "item_keys", "feedback", "rewards", "positions", "tie", "counters")

# Sorted by length so that a chunk is hardly padded; md5 so that every DuckDB draws the same sample. No limit is null.
_SELECT = """
with sampled as (
    select session_id
    from candidates
    where split = $split and len(items) > 0
    order by md5_number_lower(session_id || ':' || $seed), session_id
    limit $sessions
)
select session_id, user_key, user_features, initial_items, initial_feedback,
       items, item_keys, positions, feedback, rewards, counters
from candidates
where split = $split and session_id in (from sampled)
order by len(items), session_id
"""


@dataclass(frozen=True)
class CandidateSessions(TensorBatch):
    """S logged sessions with L candidates each, padded on the right."""

    session_id: Tensor  # [S] int64
    user_key: Tensor  # [S] int64
    state: StateBatch  # at the session's start: no page seen, the history is that of earlier sessions
    items: Tensor  # [S, L] int64, dense index; 0 = not seen in the training window, a candidate all the same
    mask: Tensor  # [S, L] bool, False = padding
    item_keys: Tensor  # [S, L] int64
    feedback: Tensor  # [S, L] int64, the best that came of the item in the session
    rewards: Tensor  # [S, L] float32
    positions: Tensor  # [S, L] int64, where the log first showed it
    tie: Tensor  # [S, L] int64, mix64(session_id, item_key); rows ascend in it
    counters: Tensor  # [S, L, C] float32, strictly before the session started

    def __len__(self) -> int:
        return len(self.session_id)

    @property
    def lengths(self) -> Tensor:
        """Candidates of each session, [S]."""
        return self.mask.sum(dim=1)

    @property
    def positives(self) -> Tensor:
        """Clicked or purchased candidates of each session, [S]."""
        return (self.feedback >= FIRST_POSITIVE).sum(dim=1)

    @property
    def scored(self) -> Tensor:
        """Sessions where an order can be better or worse: with a positive, and not only positives. [S] bool."""
        return (self.positives > 0) & (self.positives < self.lengths)

    def trimmed(self) -> "CandidateSessions":
        """The same sessions without the columns that pad all of them."""
        width = int(self.lengths.max()) if len(self) else 0
        return replace(self, **{name: getattr(self, name)[:, :width] for name in PER_CANDIDATE})


def load_sessions(
    files: Sequence[Path], split: str, task: Task, history: History, limit: int | None = None, seed: int = 0
) -> CandidateSessions:
    """All sessions of a split, or a fixed random sample of ``limit`` of them, as one batch on the CPU.

    Raises DataError when the split has none.
    """
    with _query(files, split, limit, seed) as relation:
        table = relation.to_arrow_table().combine_chunks()
    if not len(table):
        raise DataError(f"There is no {split} session to rank. Give the {split} split a longer part of the log.")
    return _sessions(table.to_batches()[0], task, history)


def iter_sessions(
    files: Sequence[Path], split: str, task: Task, history: History, chunk: int = CHUNK
) -> Iterator[CandidateSessions]:
    """All sessions of a split in batches of at most ``chunk``, shortest first, always in the same order."""
    with _query(files, split, None, 0) as relation:
        for batch in relation.to_arrow_reader(chunk):
            for start in range(0, len(batch), chunk):
                yield _sessions(batch.slice(start, chunk), task, history)


@contextmanager
def _query(files: Sequence[Path], split: str, limit: int | None, seed: int) -> Iterator[duckdb.DuckDBPyRelation]:
    with connect({"candidates": files}) as con:
        yield con.sql(_SELECT, params={"split": split, "seed": seed, "sessions": limit})


def _sessions(batch: pa.RecordBatch, task: Task, history: History) -> CandidateSessions:
    lengths = _lengths(batch["items"])
    width = int(lengths.max())
    mask = torch.from_numpy(np.arange(width) < lengths[:, None])
    session_id = torch.tensor(batch["session_id"].to_numpy())
    columns = {name: _padded(batch[name], width) for name in ("items", "item_keys", "feedback", "positions", "rewards")}
    numbers = task.catalogue.counters.shape[1]
    counters = _padded(batch["counters"], width * numbers).view(len(batch), width, numbers)
    tie = torch.where(mask, mix64(session_id[:, None], columns["item_keys"]), torch.iinfo(torch.int64).max)
    order = tie.argsort(dim=1, stable=True)  # the largest hash keeps the padding on the right, on any order of the log
    return CandidateSessions(
        session_id=session_id,
        user_key=torch.tensor(batch["user_key"].to_numpy()),
        state=_initial_state(batch, task, history),
        mask=mask,
        tie=tie.gather(1, order) * mask,
        counters=counters.gather(1, order[:, :, None].expand_as(counters)),
        **{name: values.gather(1, order) for name, values in columns.items()},
    )


def _initial_state(batch: pa.RecordBatch, task: Task, history: History) -> StateBatch:
    widths = _lengths(batch["user_features"])
    if (widths != task.user_width).any():
        wrong = int(widths[widths != task.user_width][0])
        raise DataError(
            f"candidates.user_features holds a row of {wrong} values where the task has {task.user_width}. "
            "Build users and candidates again from the same log."
        )
    return StateBatch.at_start(
        user_features=_padded(batch["user_features"], task.user_width),
        items=_padded(batch["initial_items"], history.positives, newest=True),
        feedback=_padded(batch["initial_feedback"], history.positives, newest=True),
        pages=history.pages,
        page_size=task.page_size,
    )


def _lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    return np.asarray(lists.value_lengths().fill_null(0).to_numpy(), dtype=np.int64)


def _padded(lists: pa.ListArray, width: int, newest: bool = False) -> Tensor:
    """Lists as a matrix [B, width]: zeros on the right, or the newest (last) entries with zeros on the left."""
    lengths = _lengths(lists)[:, None]
    slots = np.arange(width)
    ends = lengths.cumsum(axis=0)
    first, valid = (ends - width, slots >= width - lengths) if newest else (ends - lengths, slots < lengths)
    flat: NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    kind = np.float32 if flat.dtype.kind == "f" else np.int64
    values = np.append(flat.astype(kind), kind(0))  # its last entry, index -1, is what padding reads
    return torch.from_numpy(values[np.where(valid, first + slots, -1)])
