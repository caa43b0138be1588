"""The greedy ranker on a user model: what the simulator holds most likely to be clicked, and nothing of later pages.

    score(s, i) = P(positive answer to i | s) in the user model

What an agent earns beyond it in a roll-out is more than the click model behind the roll-outs would have told at once.

Deviation `as_a_new_session`: a fitted user model knows only the state at a session's start and what its own steps made
of it, so the session so far is read as history: its positives are the newest of the earlier ones, its skips are lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.base import AgentConfig, Candidates, StateBatch, Task
from models.simulators.base import FittedUserModel, UserModelConfig

SCORED_PAIRS = 131_072  # (state, candidate) pairs scored at a time: bounds the memory of a large pool


class GreedySimulatorConfig(AgentConfig):
    """Which user model it ranks by. It learns nothing itself: its weights are those of the fitted model."""

    stochastic: ClassVar[bool] = False

    simulator: str | None = None  # of the experiment's train side; None: the first one there
    user_model: dict[str, Any] = Field({"class": "models.simulators.rnn:RNNConfig"})  # as fitted; the pipeline sets it

    def build(self, task: Task, seed: int) -> GreedySimulator:
        module, _, name = self.user_model["class"].partition(":")
        kind: type[UserModelConfig] = getattr(import_module(module), name)
        settings = {key: value for key, value in self.user_model.items() if key != "class"}
        return GreedySimulator(kind(**settings).build(task))


class GreedySimulator:
    """``model`` is one of the train side: a ranker by the judge's own probabilities would know its judge."""

    def __init__(self, model: FittedUserModel) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    @torch.no_grad()
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        """The probability of a positive answer to each candidate, [B, K]."""
        rows = max(1, SCORED_PAIRS // max(1, candidates.items.shape[1]))
        state = replace(state, initial_items=state.history_items, initial_feedback=state.history_feedback)
        scores = [
            self.model.positive_probabilities(self.model.reset(state[at : at + rows]), candidates.items[at : at + rows])
            for at in range(0, len(state), rows)
        ]
        return torch.cat(scores) if scores else candidates.items.float()
