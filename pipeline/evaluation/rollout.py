"""Leg 2: every user's next session with an agent, in a fitted user model; one row an episode.

Luck is fixed by (seed, user, page), so every agent and seed meets the same users with the same draws.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from models.base import Agent, CriticAgent, StateBatch, Task, rank_page
from models.environments.recall import RECALLS, Recall
from models.environments.sessions import Outcome, Sessions, SessionSettings
from models.feedback import FIRST_POSITIVE, Feedback
from models.hashing import uniforms
from models.simulators.base import EMPTY
from pipeline.evaluation.simulator_gate import support
from pipeline.experiment import Rollouts
from pipeline.schemas import ROLLOUT_METRICS
from pipeline.simulation import Simulator

CHUNK = 4096  # users at a time: bounds memory, changes no number

Values = dict[str, NDArray[np.float64]]  # one value a user for each of ROLLOUT_METRICS


@dataclass(frozen=True)
class Episodes:
    """The sessions of U users with one agent."""

    values: Values  # each [U]
    items_shown: list[int]  # different items, over all users: their dense indices


@torch.no_grad()
def roll_out(
    agent: Agent,
    task: Task,
    simulator: Simulator,
    sessions: str,
    settings: Rollouts,
    start: StateBatch,
    users: Tensor,
    seed: int,
) -> Episodes:
    """One session of each user ``users`` [U] (int64 keys) from the states ``start``, in ``simulator``.

    ``sessions`` is natural, short, long or high_variance (natural sessions with noise on the clicks).
    """
    length = "natural" if sessions == "high_variance" else sessions
    shape = SessionSettings(
        rows=task.rows, cols=task.cols, pool=settings.pool, length=length, high_variance=sessions == "high_variance"
    )
    recall = RECALLS[settings.recall](task)
    chunks = [
        _Episodes(agent, task, simulator, recall, shape, settings.min_support).run(
            start[rows].to(task.device), users[rows].to(task.device), seed
        )
        for rows in (slice(first, first + CHUNK) for first in range(0, len(users), CHUNK))
    ]
    values = {name: np.concatenate([chunk[0][name] for chunk in chunks]) for name in ROLLOUT_METRICS}
    shown = torch.stack([chunk[1] for chunk in chunks]).any(dim=0)
    return Episodes(values, (shown.nonzero()[:, 0] + 1).tolist())


class _Episodes:
    """The sessions of one chunk of B users and what is counted in them."""

    def __init__(
        self,
        agent: Agent,
        task: Task,
        simulator: Simulator,
        recall: Recall,
        shape: SessionSettings,
        min_support: int,
    ) -> None:
        self.agent, self.task, self.simulator = agent, task, simulator
        self.engine = Sessions(simulator.model, task, recall, shape)
        self.min_support = min_support
        self.directions = normalize(task.catalogue.vectors.to(task.device), dim=1)  # [I+1, V]

    def run(self, start: StateBatch, users: Tensor, seed: int) -> tuple[Values, Tensor]:
        engine = self.engine
        engine.start(start, users, seed)
        self.totals = {
            name: torch.zeros(len(users), dtype=torch.float64, device=self.task.device)
            for name in ("return", "discounted", "depth", "clicks", "purchases", "shown", "similarity", "pairs",
                         "repeats", "unsupported", "spread", "probability", "predicted")
        }  # fmt: skip
        covered = torch.zeros_like(self.simulator.shown, dtype=torch.bool)  # [I+1]
        page = 0
        while not engine.done:
            chosen = rank_page(self.agent, engine.state, engine.candidates, self.task.rows, self.task.cols)
            if page == 0:
                self._first_page(start, users, chosen, seed)
            before = engine.running.shown  # [A, S]
            outcome = engine.step(chosen)
            self._count(outcome, before, self._discount**page)
            covered[outcome.items.clamp(min=0)] = True
            page += 1
        return self._metrics(), covered[1:]

    @property
    def _discount(self) -> float:
        return self.agent.discount if isinstance(self.agent, CriticAgent) else 1.0

    def _first_page(self, start: StateBatch, users: Tensor, chosen: Tensor, seed: int) -> None:
        """What the critic predicts, and how far the ensemble disagrees: before anything was answered."""
        candidates = self.engine.candidates.items
        items = torch.where(chosen < 0, EMPTY, candidates.gather(1, chosen.clamp(min=0)))  # [B, K]
        if isinstance(self.agent, CriticAgent):
            self.totals["predicted"] = self.agent.predicted_return(start, items).double()
        members = self.simulator.members
        answers = torch.stack(
            [
                model.positive_probabilities(
                    model.reset(start, uniforms(users, seed, width=model.reset_width())), items
                )
                for model in members
            ]
        )  # [M, B, K]
        shown = items != EMPTY
        self.totals["spread"] = (answers.std(dim=0) * shown).sum(dim=1).double()
        self.totals["probability"] = (answers.mean(dim=0) * shown).sum(dim=1).double()

    def _count(self, outcome: Outcome, before: Tensor, discount: float) -> None:
        """Add one page of the users [A] who were still there and had been shown ``before`` [A, S]."""
        users, items, feedback = outcome.users, outcome.items, outcome.feedback
        shown = items != EMPTY  # [A, K]
        ids = items.clamp(min=0)
        vectors = self.directions[ids] * shown[..., None]  # [A, K, V]
        n = shown.sum(dim=1)  # [A]
        # Σ over ordered pairs of the cosines = |Σ v|² − Σ |v|²
        similarity = vectors.sum(dim=1).square().sum(dim=1) - vectors.square().sum(dim=(1, 2))
        page = {
            "return": outcome.rewards,
            "discounted": discount * outcome.rewards,
            "depth": torch.ones_like(outcome.rewards),
            "clicks": (feedback >= FIRST_POSITIVE).sum(dim=1),
            "purchases": (feedback == Feedback.PURCHASE).sum(dim=1),
            "shown": n,
            "similarity": similarity,
            "pairs": n * (n - 1),
            "repeats": ((ids[:, :, None] == before[:, None]).any(dim=2) & shown).sum(dim=1),
            "unsupported": (~support(self.simulator.shown, items, self.min_support)).sum(dim=1),
        }
        for name, values in page.items():
            self.totals[name][users] += values.double()

    def _metrics(self) -> Values:
        t = self.totals
        metrics = {
            **{name: t[name] for name in ("return", "depth", "clicks", "purchases")},
            "ctr": t["clicks"] / t["shown"],
            "diversity": 1 - t["similarity"] / t["pairs"],  # nan for pages of one item
            "repeat_rate": t["repeats"] / t["shown"],
            "out_of_support": t["unsupported"] / t["shown"],
            "disagreement": t["spread"] / t["probability"],
        }
        unknown = torch.full_like(t["return"], torch.nan)
        has_critic = isinstance(self.agent, CriticAgent)
        predicted, discounted = (t["predicted"], t["discounted"]) if has_critic else (unknown, unknown)
        metrics |= {
            "predicted_return": predicted,
            "discounted_return": discounted,
            "overestimation": predicted - discounted,
        }
        return {name: metrics[name].cpu().numpy() for name in ROLLOUT_METRICS}
