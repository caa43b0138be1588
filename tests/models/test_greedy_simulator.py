"""The greedy ranker on a user model ranks by that model's probabilities of the session so far."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from models.base import Agent
from models.greedy_simulator import GreedySimulator, GreedySimulatorConfig
from models.simulators.attention import AttentionConfig
from models.simulators.base import FittedUserModel, UserModelConfig
from models.simulators.feedback import FeedbackConfig
from models.simulators.rnn import RNNConfig
from pipeline.errors import ModelError, NotFittedError
from tests.models import contract
from tests.models.builders import make_candidates, make_state
from tests.models.contract import Subject
from tests.models.simulators.contract import TASK, sessions

MODELS: list[UserModelConfig] = [
    RNNConfig(hidden=16, layers=(16,)),
    AttentionConfig(dim=16, hidden=32),
    FeedbackConfig(),
]


def fitted(config: UserModelConfig) -> FittedUserModel:
    return config.build(TASK).fit(lambda step: sessions(32, step), 20, seed=3)


@pytest.mark.parametrize("config", MODELS, ids=lambda config: type(config).__name__)
def test_it_ranks_by_the_probability_of_a_click_after_all_that_was_liked(config: UserModelConfig) -> None:
    torch.set_num_threads(1)
    model, state, candidates = fitted(config), make_state(6, TASK), make_candidates(6, TASK, padded=False)
    agent: Agent = GreedySimulator(model)
    scores = agent.score(state, candidates)
    assert ((scores > 0) & (scores < 1)).all()
    later = replace(state, initial_items=state.history_items)
    assert_close(scores, model.positive_probabilities(model.reset(later), candidates.items))
    known = (state.history_items != state.initial_items).any(dim=1)
    assert known.any()
    at_start = model.positive_probabilities(model.reset(state), candidates.items)
    assert not torch.allclose(scores[known], at_start[known])


SMALL = GreedySimulatorConfig(user_model={"class": "models.simulators.rnn:RNNConfig", "hidden": 16, "layers": [16]})


@cache
def weights() -> dict[str, torch.Tensor]:
    return fitted(MODELS[0]).state_dict()


class Fitted(Subject):
    """As a run folder gives it back: built from its settings, with the weights of the user model."""

    def build(self, seed: int = 11) -> Any:
        agent = self.config.build(self.task, seed)
        agent.load_state_dict(weights())  # type: ignore[attr-defined]
        return agent


@pytest.mark.parametrize("claim", contract.EVERY_AGENT, ids=lambda claim: str(claim.__name__))
def test_the_contract_of_agents(claim: Any) -> None:
    claim(Fitted("greedy_simulator", SMALL, TASK))


def test_its_weights_are_those_of_the_user_model_and_of_no_other() -> None:
    agent = Fitted("greedy_simulator", SMALL, TASK).build()
    state, candidates = make_state(6, TASK), make_candidates(6, TASK)
    assert agent.state_dict().keys() == weights().keys()
    assert torch.equal(agent.score(state, candidates), GreedySimulator(fitted(MODELS[0])).score(state, candidates))
    with pytest.raises(ModelError, match="do not fit"):
        agent.load_state_dict(fitted(MODELS[1]).state_dict())


def test_a_user_model_without_weights_is_refused() -> None:
    with pytest.raises(NotFittedError, match="no weights yet"):
        GreedySimulator(MODELS[0].build(TASK)).score(make_state(2, TASK), make_candidates(2, TASK))
