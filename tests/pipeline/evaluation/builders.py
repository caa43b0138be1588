"""Small seeded tables of candidates, and agents small enough to reason about."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.base import AgentConfig, Candidates, StateBatch
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import write_parquet
from tests.models.builders import COUNTERS, ITEMS, REWARDS, USER_WIDTH

Row = dict[str, Any]


def make_rows(sessions: int, longest: int = 35, seed: int = 0, split: str = "test") -> list[Row]:
    """Sessions of 1 to ``longest`` distinct items, some unknown (item 0), of about half as many users."""
    rng = np.random.default_rng(seed)
    rows = []
    for session in rng.permutation(sessions):
        length, history = int(rng.integers(1, longest + 1)), int(rng.integers(0, 15))
        feedback = rng.choice([1, 1, 1, 2, 4, 5], length)
        rows.append(
            {
                "session_id": int(session) * 1_000_003 + 5,
                "split": split,
                "user": 1,
                "user_key": int(rng.integers(sessions // 2 + 1)),
                "start_ts": int(session),
                "user_features": rng.normal(size=USER_WIDTH).tolist(),
                "initial_items": rng.integers(1, ITEMS, history).tolist(),
                "initial_feedback": rng.choice([2, 5], history).tolist(),
                "items": rng.permutation(ITEMS)[:length].tolist(),
                "item_keys": rng.integers(0, 2**62, length).tolist(),
                "positions": list(range(length)),
                "feedback": feedback.tolist(),
                "rewards": np.array(REWARDS)[feedback].tolist(),
                "counters": np.random.default_rng(int(session)).random(length * COUNTERS).tolist(),
            }
        )
    return rows


def write(path: Path, rows: Iterable[Row]) -> list[Path]:
    write_parquet(path, "candidates", pa.Table.from_pylist(list(rows), SCHEMAS["candidates"]).to_batches())
    return [path]


class Plain(AgentConfig):
    """Settings of an agent without privileges."""


class Seeing(AgentConfig):
    privileges = frozenset({"logged_position", "labels"})


@dataclass
class ByTaste:
    """Item-wise: likes items that are near those of the history, so that it ranks otherwise once it saw feedback."""

    liking: Tensor  # [I, I]

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        weights = state.history_feedback.float() + 0.5  # [B, N]
        skipped = self.liking[candidates.items[:, :, None], state.skipped_items[:, None]].mean(-1)
        liked = self.liking[candidates.items[:, :, None], state.history_items[:, None]]  # [B, K, N]
        return (liked * weights[:, None]).sum(-1) - skipped


@dataclass
class InPages(ByTaste):
    """Page-wise: the same taste, but every page shows its best items in reverse, which no score could say."""

    def rank_page(self, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
        scores = self.score(state, candidates).masked_fill(~candidates.mask, -torch.inf)
        best = scores.topk(min(rows * cols, scores.shape[1]), dim=1).indices
        size = candidates.mask.sum(1, keepdim=True).clamp(max=best.shape[1])
        slots = torch.arange(best.shape[1])
        flipped = torch.where(slots < size, size - 1 - slots, slots)
        page = torch.where(slots < size, best.gather(1, flipped), -1)
        return torch.nn.functional.pad(page, (0, rows * cols - page.shape[1]), value=-1)


def by_taste(kind: type[ByTaste] = ByTaste, seed: int = 3) -> ByTaste:
    return kind(torch.randn(ITEMS + 1, ITEMS + 1, generator=torch.Generator().manual_seed(seed)))


class Constant:
    """Indifferent: every order comes from the tie-break."""

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return torch.zeros(candidates.items.shape)


class Ideal:
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        assert candidates.rewards is not None
        return candidates.rewards


class LoggedOrder:
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        assert candidates.logged_position is not None
        return -candidates.logged_position.float()
