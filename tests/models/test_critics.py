"""Critics: what an agent predicts of a page, against small worlds whose returns can be solved by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models import AGENTS
from models.base import AgentConfig, CriticAgent, StateBatch, Task, TransitionBatch
from models.d3rlpy_baselines import CQLConfig, IQLConfig, TD3PlusBCConfig
from models.deeppage import DeepPageConfig
from models.feedback import Feedback
from models.goalrec import GoalRecConfig
from pipeline import hindsight
from pipeline.artifacts import agent_config
from pipeline.errors import ModelError
from tests.models.builders import empty_state, make_state, make_task

TASK = make_task(rows=2, cols=2, items=12)
WITH_CRITIC = {"goalrec_off", "deeppage_off", "td3_bc", "iql", "cql"}
SKIP, CLICK, PURCHASE = Feedback.SKIP, Feedback.CLICK, Feedback.PURCHASE


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ---- a world of two kinds of session, solved by hand: page A leads to page C and the end, page B to the end at once

A, B, C = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
ANSWERS = {
    "A": torch.tensor([SKIP, SKIP, CLICK, PURCHASE]),  # reward 6
    "B": torch.tensor([CLICK, CLICK, CLICK, CLICK]),  # 4
    "C": torch.tensor([CLICK, PURCHASE, CLICK, CLICK]),  # 8
}


def solved(discount: float) -> Tensor:
    """Returns of A and B at a session's start, and of C after A."""
    return torch.tensor([6 + discount * 8, 4.0, 8.0])


def judged() -> tuple[StateBatch, Tensor]:
    """The states and the pages of ``solved``."""
    return _stacked(empty_state(2, 4), _after_a(1)), torch.stack([A, B, C])


def sessions(copies: int) -> TransitionBatch:
    """The log: ``copies`` sessions of A and C, then as many of B, as original and as hindsight rows."""
    items = torch.cat([torch.stack([A, C]).repeat(copies, 1), B.repeat(copies, 1)])
    feedback = torch.cat([torch.stack([ANSWERS["A"], ANSWERS["C"]]).repeat(copies, 1), ANSWERS["B"].repeat(copies, 1)])
    rows = len(items)
    terminated = torch.tensor([False, True] * copies + [True] * copies)
    pages = hindsight.Pages(
        offsets=np.r_[0 : 2 * copies : 2, 2 * copies : rows + 1],
        items=items.numpy(),
        feedback=feedback.numpy(),
        terminated=terminated.numpy(),
        embeddings=hindsight.fit_pca(TASK.catalogue.embeddings.numpy(), 2),
    )
    measured = hindsight.measurements(pages, hindsight.horizons(pages.offsets, "final", np.random.default_rng(0)))
    deviation = TASK.measurement_scale.numpy()
    reached, goal = hindsight.goals(measured, deviation)[0], hindsight.session_goals(pages, deviation)[0]
    start, later = empty_state(copies, 4), _after_a(copies)
    order = torch.arange(2 * copies).view(2, copies).T.flatten()  # start, later, start, later …
    original = TransitionBatch(
        state=_stacked(_stacked(start, later)[order], start),
        items=items,
        feedback=feedback,
        rewards=torch.tensor(TASK.rewards)[feedback],
        measurement=torch.from_numpy(measured),
        goal=torch.from_numpy(np.repeat(goal[:, None], 4, axis=1)),
        hindsight=torch.zeros(rows, dtype=torch.bool),
        terminated=terminated,
        truncated=torch.zeros(rows, dtype=torch.bool),
        propensity=torch.full(items.shape, torch.nan),
        counters=TASK.catalogue.counters[items],
    )
    return _joined(original, replace(original, goal=torch.from_numpy(reached), hindsight=~original.hindsight))


def _after_a(rows: int) -> StateBatch:
    return empty_state(rows, 4).advance(A.repeat(rows, 1), ANSWERS["A"].repeat(rows, 1))


def _stacked(one: StateBatch, other: StateBatch) -> StateBatch:
    return StateBatch(**{name: torch.cat([value, getattr(other, name)]) for name, value in vars(one).items()})


def _joined(one: TransitionBatch, other: TransitionBatch) -> TransitionBatch:
    tensors = {name: value for name, value in vars(one).items() if isinstance(value, Tensor)}
    columns = {name: torch.cat([value, getattr(other, name)]) for name, value in tensors.items()}
    return TransitionBatch(state=_stacked(one.state, other.state), **columns)


FAST: dict[str, Any] = {
    "hidden": (32,),
    "actor_learning_rate": 1e-2,
    "critic_learning_rate": 1e-2,
    "target_rate": 0.1,
}
SMALL: dict[str, Any] = {"item_width": 8, "category_width": 4, "feedback_width": 4, "channels": 8, "hidden": 16}
# What biases a prediction by design is off: IQL's optimism, TD3+BC's climbing, GoalRec's prior on the advantage and its
# goals that give the outcome away. CQL's bootstrap climbs its own critic where a log is this small: near-sighted only.
NARROW: dict[str, Any] = {"gru": 8, "state_width": 32, "goal_mix": 1.0, "advantage_penalty": 0.0}
TRAINED = {
    "iql": (IQLConfig(discount=0.9, expectile=0.5, **FAST), 300),
    "iql, pages": (IQLConfig(discount=0.9, expectile=0.5, action="slate_mean", **FAST), 150),
    "td3_bc, pages": (TD3PlusBCConfig(discount=0.9, alpha=0.01, action="slate_mean", **FAST), 150),
    "cql, near": (CQLConfig(discount=0.0, items_per_page=4, **FAST), 100),
    "deeppage": (DeepPageConfig(discount=0.9, supervised_lr=1e-2, critic_lr=1e-2, target_rate=0.2, **SMALL), 80),
    "goalrec": (GoalRecConfig(**NARROW), 150),
    "goalrec, not split": (GoalRecConfig(split_page=False, **NARROW), 100),
    "goalrec, near": (GoalRecConfig(discount=0, **NARROW), 80),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_critic_predicts_the_return(name: str) -> None:
    config, steps = TRAINED[name]
    agent: Any = config.build(TASK, 11)
    log = sessions(copies=2)
    for _ in range(steps):
        agent.update(log)
    predicted = agent.predicted_return(*judged())
    assert predicted.shape == (3,)
    assert not predicted.requires_grad
    assert_close(predicted, solved(agent.discount), rtol=0.1, atol=0.2)


# ---- how the values of items add up to that of a page, without any training


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_the_item_values_of_the_wrappers_own_transitions_add_up_to_the_return(
    discount: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q(s, i) is solved exactly from the rewards and next states that the algorithm is given, by value iteration."""
    agent = IQLConfig(hidden=(8,), items_per_page=64, discount=discount).build(TASK, 11)
    torch.manual_seed(0)  # 64 draws from 4 items: every one comes up
    log = sessions(copies=1)
    given = agent._transitions(log[~log.hindsight])
    rows = torch.cat([given.observations, given.actions, given.rewards, given.next_observations, given.terminals], 1)
    rows = rows.unique(dim=0)  # each item of each page once
    assert len(rows) == 12
    width, taken = given.observations.shape[1], given.actions.shape[1]
    observation, action, reward, after, ends = rows.split([width, taken, 1, width, 1], dim=1)
    follows = (after[:, None] == observation).all(dim=2).float() * (1 - ends)  # [12, 12] s′ is the state of row j
    follows = follows / follows.sum(dim=1, keepdim=True).clamp(min=1)  # the log shows each item there as often
    q = torch.zeros(12, 1)
    for _ in range(3):  # no session is longer
        q = reward + discount * follows @ q

    def looked_up(states: Tensor, items: Tensor) -> Tensor:
        same = (states[:, None, None] == observation).all(dim=3) & (items[:, :, None] == action).all(
            dim=3
        )  # [B, K, 12]
        assert (same.sum(dim=2) == 1).all()
        return (same.float() @ q)[..., 0]

    monkeypatch.setattr(agent, "_q_values", looked_up)
    assert_close(agent.predicted_return(*judged()), solved(discount))


def test_what_comes_after_a_page_counts_once_in_goalrecs_prediction() -> None:
    """Known measurements: 10 items with a click each, 2 with a purchase, and 7 clicks and 3 purchases later."""
    task = make_task()
    feedback = torch.tensor([[CLICK] * 8 + [PURCHASE] * 2])
    for split in (True, False):
        for discount, expected in ((1.0, 10 + 4 * 2 + 7 + 4 * 3), (0.0, 10 + 4 * 2)):
            agent = GoalRecConfig(split_page=split, discount=discount).build(task, 11)
            measured = torch.zeros(1, 10, len(task.measurement_names))
            index = agent.parts.index
            measured[..., index["click"]] = 1
            measured[..., index["clicks"]] = 1 + 7
            measured[..., index["purchases"]] = 3 + (feedback == PURCHASE).float()
            parts = agent.parts.of(measured, feedback)  # [1, 10, P]
            agent.model = _Known(parts, agent.parts.after)  # type: ignore[assignment]
            predicted = agent.predicted_return(empty_state(1), torch.arange(1, 11)[None])
            assert_close(predicted, torch.tensor([float(expected)]))


class _Known:
    """A world model that knows the parts [1, K, P]: V has what comes after the page, A the items' own."""

    def __init__(self, parts: Tensor, after: Tensor) -> None:
        self.parts, self.after = parts, after

    def encode(self, state: StateBatch) -> Tensor:
        return torch.zeros(len(state), 1)

    def value(self, encoded: Tensor, goal: Tensor) -> Tensor:
        return self.parts[:, :1] * self.after

    def advantage(self, encoded: Tensor, goal: Tensor, items: Tensor) -> Tensor:
        return self.parts * ~self.after


# ---- every agent of the registry


def small(name: str, **settings: Any) -> AgentConfig:
    sizes = {"deeppage_off": SMALL, "goalrec_off": {"gru": 8, "state_width": 16}}.get(name, {"hidden": (16,)})
    return agent_config(name, AGENTS[name], {**sizes, **settings})


def built(name: str, task: Task = TASK, **settings: Any) -> Any:
    return small(name, **settings).build(task, 11)


@pytest.mark.parametrize("name", AGENTS)
def test_agents_with_a_critic_or_a_world_model_predict_and_no_others(name: str) -> None:
    sizes = {} if name not in WITH_CRITIC | {"bc"} else small(name).model_dump()
    agent = agent_config(name, AGENTS[name], sizes).build(TASK, 11)
    assert isinstance(agent, CriticAgent) == (name in WITH_CRITIC)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_with_a_discount_runs_at_zero_by_a_name_of_its_own(name: str) -> None:
    fields = agent_config(name, AGENTS[name], {}).model_fields
    assert ("discount" in fields) == (name in WITH_CRITIC)
    if "discount" in fields:
        settings = {"class": AGENTS[name], "discount": 0}
        config = agent_config(f"{name}_discount_0", settings["class"], settings)
        assert config.model_dump() == {**agent_config(name, AGENTS[name], {}).model_dump(), "discount": 0.0}
        assert config.build(TASK, 11).discount == 0


@pytest.mark.parametrize("name", sorted(WITH_CRITIC))
def test_a_prediction_depends_on_its_own_page_alone_and_not_on_what_an_empty_slot_would_hold(name: str) -> None:
    agent, state = built(name), make_state(3, TASK)
    items = torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1], [0, 0, 9, 10]])
    together = agent.predicted_return(state, items)
    alone = torch.cat([agent.predicted_return(state[at : at + 1], items[at : at + 1]) for at in range(3)])
    assert_close(together, alone)
    assert together.isfinite().all()
    assert len(together.unique()) == 3
    other = agent.predicted_return(state, items.flip(0))
    assert not torch.isclose(other[0], together[0])


def test_deeppage_judges_pages_of_its_own_size_only() -> None:
    with pytest.raises(ModelError, match=r"pages of 4 slots and was given 3\. Mark empty slots with -1"):
        built("deeppage_off").predicted_return(empty_state(1, 4), torch.tensor([[1, 2, 3]]))
