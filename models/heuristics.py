"""Rankers that learn nothing: the floor, the ceiling and the yardsticks that stand beside every agent.

``random`` and ``popularity`` know what any agent knows. The others hold a privilege that no real ranker has: the logged
order, the labels themselves, or the storefront's hidden truth. They bound the others and refuse to run without it.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from models.base import AgentConfig, Candidates, StateBatch, Task
from models.hashing import mix64
from pipeline.errors import ModelError

T = TypeVar("T")


class RandomConfig(AgentConfig):
    """A uniformly random order, fixed by the candidates' tie hash and the seed."""

    def build(self, task: Task, seed: int) -> Random:
        return Random(seed)


class PopularityConfig(AgentConfig):
    """Clicks and purchases of the training window; unknown items last."""

    stochastic: ClassVar[bool] = False

    def build(self, task: Task, seed: int) -> Popularity:
        return Popularity(task)


class LoggedOrderConfig(AgentConfig):
    """The order in which the log showed the items: the ranker to beat."""

    privileges: ClassVar[frozenset[str]] = frozenset({"logged_position"})
    legs: ClassVar[frozenset[str]] = frozenset({"rerank"})
    stochastic: ClassVar[bool] = False

    def build(self, task: Task, seed: int) -> LoggedOrder:
        return LoggedOrder()


class IdealConfig(AgentConfig):
    """The labels themselves: the ceiling of re-ranking."""

    privileges: ClassVar[frozenset[str]] = frozenset({"labels"})
    legs: ClassVar[frozenset[str]] = frozenset({"rerank"})
    stochastic: ClassVar[bool] = False

    def build(self, task: Task, seed: int) -> Ideal:
        return Ideal()


class OracleMyopicConfig(AgentConfig):
    """The storefront's truth, greedy for the expected reward of the page at hand."""

    privileges: ClassVar[frozenset[str]] = frozenset({"truth"})
    legs: ClassVar[frozenset[str]] = frozenset({"rollout"})
    stochastic: ClassVar[bool] = False

    def build(self, task: Task, seed: int) -> Oracle:
        return Oracle(task, farsighted=False)


class OracleFarsightedConfig(OracleMyopicConfig):
    """The storefront's truth, with the worth of quality and variety for the pages to come."""

    def build(self, task: Task, seed: int) -> Oracle:
        return Oracle(task, farsighted=True)


class Random:
    """Scores uniform in [0, 1): a hash of (tie, seed), so neither batch nor order of the candidates matters."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        seed = torch.tensor(self.seed, dtype=torch.int64, device=candidates.tie.device)
        bits = mix64(seed, candidates.tie)
        return ((bits >> 40) & 0xFFFFFF).float() / 2**24  # 24 bits: all that a float32 holds exactly


class Popularity:
    def __init__(self, task: Task) -> None:
        self.popularity = task.catalogue.popularity.to(task.device)

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return self.popularity[candidates.items]


class LoggedOrder:
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return -_granted(candidates.logged_position, "logged_order", "logged_position").float()


class Ideal:
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return _granted(candidates.rewards, "ideal", "rewards")


class Oracle:
    """Pages composed by the storefront itself, from the user's hidden state."""

    def __init__(self, task: Task, farsighted: bool) -> None:
        self.rows, self.cols, self.farsighted = task.rows, task.cols, farsighted
        self.name = "oracle_farsighted" if farsighted else "oracle_myopic"

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        """Minus the slot on the page that it would show; items off that page share the last place."""
        page = self.rank_page(state, candidates, self.rows, self.cols)
        slots = torch.arange(page.shape[1], device=page.device, dtype=torch.float32).expand_as(page)
        width = candidates.items.shape[1]
        scores = torch.full((len(page), width + 1), -float(page.shape[1]), device=page.device)
        # Empty slots (-1) write into the extra last column.
        return scores.scatter(1, torch.where(page < 0, width, page), -slots)[:, :width]

    def rank_page(self, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
        truth = _granted(candidates.truth, self.name, "truth")
        page: Tensor = truth.shop.oracle_page(truth.state, truth.shop_items, farsighted=self.farsighted)
        if page.shape[1] != rows * cols:
            raise ModelError(
                f"{self.name}: a page of {rows} × {cols} slots was asked for, but the storefront lays out "
                f"{page.shape[1]}. Set sessions.rows and sessions.cols to the storefront's page."
            )
        return page


def _granted(value: T | None, agent: str, field: str) -> T:
    if value is None:
        raise ModelError(
            f"{agent}: Candidates.{field} is not filled. Evaluate it only where its privilege is granted "
            f"({agent} declares it in its config's `privileges`)."
        )
    return value
