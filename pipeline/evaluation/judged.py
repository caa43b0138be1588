"""The published decisions: n logged pages, what each could have shown, and what leg 3 reads of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.base import StateBatch, Task, TensorBatch
from models.hashing import mix64
from pipeline.evaluation.ope.logged import Bools, Floats
from pipeline.schemas import COUNTERS
from pipeline.trajectories import ragged
from pipeline.warehouse import read_table

STATE = (
    "user_features", "initial_items", "initial_feedback", "history_items", "history_feedback", "skipped_items",
    "page_items", "page_feedback",
)  # fmt: skip


@dataclass(frozen=True)
class Decisions(TensorBatch):
    """n logged pages of K slots with R candidates each. Candidates come in a fixed random order."""

    session_id: Tensor  # [n] int64
    user_key: Tensor  # [n] int64
    step: Tensor  # [n] int64
    hour: Tensor  # [n] int64, since 1970; 0 once published
    state: StateBatch
    items: Tensor  # [n, R] int64, dense index; 0 = not seen in the training window
    keys: Tensor  # [n, R] int64
    mask: Tensor  # [n, R] bool
    slate: Tensor  # [n, K] int64, numbers among the candidates, -1 in an empty slot
    feedback: Tensor  # [n, K] int64
    rewards: Tensor  # [n, K] float32
    propensities: Tensor  # [n, K] float64 as logged; NaN where they were not
    logits: Tensor  # [n, R] float64 as logged; NaN where they were not
    counters: Tensor | None = None  # [n, R, C] float32, strictly before the page; None until published

    def __len__(self) -> int:
        return len(self.step)

    @property
    def tie(self) -> Tensor:
        """[n, R] int64, a fixed hash of page and item."""
        return mix64(mix64(self.session_id, self.step)[:, None], self.keys)


@dataclass(frozen=True)
class Behaviour:
    """Who made the log, as far as leg 3 needs to know."""

    conditional: Floats  # [n, K] given the slots above
    marginal: Floats  # [n, K]
    first_slot: Floats  # [n, R]
    kind: str  # logged, logged by slot, fitted


@dataclass(frozen=True)
class Judged:
    """The published decisions as leg 3 reads them: numpy, beside the state as tensors."""

    decisions: Decisions
    behaviour: Behaviour
    level: Floats  # [n, R]
    trend: Floats  # [n, R]
    pool: str


def read_decisions(files: Sequence[Path], task: Task) -> Judged | None:
    """The published decisions; None where there are none."""
    table = read_table(files, "decisions")
    if not len(table):
        return None
    n, slots = len(table), task.page_size
    lengths = ragged(table["candidates"])[1]
    width = int(lengths.max())
    mask = np.arange(width) < lengths[:, None]

    def candidates(name: str, *shape: int) -> Any:
        values = ragged(table[name])[0].reshape(-1, *shape)
        padded = np.zeros((n, width, *shape), values.dtype)
        padded[mask] = values
        return padded

    def lists(name: str, *shape: int) -> Any:
        return ragged(table[name])[0].reshape(n, *shape)

    widths = {"user_features": (task.user_width,), "page_items": (-1, slots), "page_feedback": (-1, slots)}
    state = {name: torch.from_numpy(lists(name, *widths.get(name, (-1,))).copy()) for name in STATE}
    decisions = Decisions(
        session_id=to_tensor(table["session_id"]),
        user_key=to_tensor(table["user_key"]),
        step=to_tensor(table["step"]),
        hour=torch.zeros(n, dtype=torch.int64),
        state=StateBatch(
            **{name: values if name == "user_features" else values.long() for name, values in state.items()},
            pages_seen=to_tensor(table["step"]),
        ),
        items=torch.from_numpy(candidates("candidates").astype(np.int64)),
        keys=torch.from_numpy(candidates("candidate_keys")),
        mask=torch.from_numpy(mask),
        slate=torch.from_numpy(lists("slate", slots).astype(np.int64)),
        feedback=torch.from_numpy(lists("feedback", slots).astype(np.int64)),
        rewards=torch.from_numpy(lists("rewards", slots).copy()),
        propensities=torch.full((n, slots), torch.nan, dtype=torch.float64),
        logits=torch.full((n, width), torch.nan, dtype=torch.float64),
        counters=torch.from_numpy(candidates("counters", len(COUNTERS))),
    )
    behaviour = Behaviour(
        conditional=lists("behaviour", slots),
        marginal=lists("behaviour_marginal", slots),
        first_slot=candidates("first_slot"),
        kind=str(table["propensities"][0]),
    )
    return Judged(decisions, behaviour, candidates("reward_level"), candidates("reward_trend"), str(table["pool"][0]))


def to_tensor(column: pa.ChunkedArray) -> Tensor:
    """A column of whole numbers as int64."""
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def to_lists(values: Any, mask: Bools | None = None) -> pa.Array:
    """Rows as a list column: all of them, or what ``mask`` keeps."""
    rows = np.asarray(values)
    if mask is None:
        rows = np.ascontiguousarray(rows).reshape(len(rows), -1)
        lengths, flat = np.full(len(rows), rows.shape[1]), rows.ravel()
    else:
        lengths, flat = mask.sum(axis=1), rows[mask]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
