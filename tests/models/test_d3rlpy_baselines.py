"""What is d3rlpy's own about the four baselines; what every learner owes is claimed in test_contract.py."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from models.base import Candidates, TransitionBatch
from models.d3rlpy_baselines import (
    BCConfig,
    CQLConfig,
    IQLConfig,
    ItemActions,
    TD3PlusBCConfig,
    import_d3rlpy,
    to_mdp_dataset,
)
from models.feedback import Feedback
from models.observation import ObservationEncoder
from pipeline.errors import ConfigError, DataError, ModelError
from tests.models.builders import make_candidates, make_state, make_task, make_transitions, random_page

TASK = make_task()
CONFIGS = (BCConfig, TD3PlusBCConfig, IQLConfig, CQLConfig)
CRITICS = CONFIGS[1:]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


PAYS = ItemActions(TASK).vectors[:, 0] > 0  # the items that are always bought; shown as often as the others


def preference_batch(rows: int, seed: int) -> TransitionBatch:
    """One page a session; what is bought depends on the item alone."""
    batch = make_transitions(rows, TASK, hindsight=False, empty_slots=False, seed=seed)
    feedback = torch.where(PAYS[batch.items], int(Feedback.PURCHASE), int(Feedback.SKIP))
    rewards = torch.tensor(TASK.rewards)[feedback]
    return replace(batch, feedback=feedback, rewards=rewards, terminated=torch.ones(rows, dtype=torch.bool))


# ---- scoring


@pytest.mark.parametrize("config", CONFIGS)
def test_the_actor_scores_by_the_cosine_to_its_action(config: Any) -> None:
    settings = {} if config is BCConfig else {"decode": "actor"}
    agent = config(hidden=(16,), **settings).build(TASK, 11)
    state, candidates = make_state(5, TASK), make_candidates(5, TASK, padded=False)
    proto_action = torch.from_numpy(agent._algorithm.predict(agent.encode(state).numpy()))
    expected = cosine_similarity(proto_action[:, None], ItemActions(TASK).vectors[candidates.items], dim=2)
    assert_close(agent.score(state, candidates), expected)


@pytest.mark.parametrize("config", CRITICS)
def test_the_critic_scores_each_candidate_by_d3rlpys_value(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.d3rlpy_baselines.SCORED_ROWS", 70)  # two states of 30 candidates at a time
    agent = config(hidden=(16,), decode="critic").build(TASK, 11)
    state, candidates = make_state(5, TASK), make_candidates(5, TASK, padded=False)
    observation, vectors = agent.encode(state), ItemActions(TASK).vectors
    columns = [
        agent._algorithm.predict_value(observation.numpy(), vectors[candidates.items[:, k]].numpy()) for k in range(30)
    ]
    assert_close(agent.score(state, candidates), torch.from_numpy(np.stack(columns, axis=1)))


def test_iql_learns_to_rank_the_items_that_pay() -> None:
    agent = IQLConfig(hidden=(64,), critic_learning_rate=3e-3).build(TASK, 11)
    for step in range(100):
        agent.update(preference_batch(32, step))
    every = torch.arange(1, len(TASK.catalogue)).expand(8, -1)
    scores = agent.score(make_state(8, TASK), Candidates(every, every > 0, every))
    pays = PAYS[every[0]]
    auc = (scores[:, pays][:, :, None] > scores[:, ~pays][:, None]).float().mean()
    assert auc > 0.9


# ---- transitions


def test_a_page_becomes_its_mean_item_and_its_summed_reward() -> None:
    agent, batch = BCConfig(hidden=(8,), action="slate_mean").build(TASK, 11), make_transitions(16, TASK)
    transitions = agent._transitions(batch)
    vectors = ItemActions(TASK).vectors
    for row in range(len(batch)):
        shown = batch.feedback[row] > 0
        assert_close(transitions.actions[row], vectors[batch.items[row][shown]].mean(dim=0))
        assert_close(transitions.rewards[row, 0], batch.rewards[row][shown].sum())
    _assert_states(transitions, batch, torch.arange(16))


def test_items_become_transitions_with_their_own_reward_and_the_state_after_their_page() -> None:
    agent = BCConfig(hidden=(8,), action="item", items_per_page=3).build(TASK, 11)
    batch = make_transitions(16, TASK)
    transitions = agent._transitions(batch)
    rows = torch.arange(16).repeat_interleave(3)
    same = (transitions.actions[:, None] == ItemActions(TASK).vectors[batch.items[rows]]).all(dim=2)  # [48, K]
    match = same & batch.mask[rows] & (transitions.rewards == batch.rewards[rows])
    assert match.any(dim=1).all()  # each is one of the shown items of its page, never an empty slot
    _assert_states(transitions, batch, rows)


def _assert_states(transitions: Any, batch: TransitionBatch, rows: Tensor) -> None:
    encode = ObservationEncoder(TASK)
    assert_close(transitions.observations, encode(batch.state)[rows])
    assert_close(transitions.next_observations, encode(batch.state.advance(batch.items, batch.feedback))[rows])
    assert torch.equal(transitions.terminals[:, 0], batch.terminated.float()[rows])
    assert not transitions.terminals[batch.truncated[rows]].any()  # a length cap is no end: it bootstraps


def test_actions_lie_in_the_unit_cube_and_unknown_items_at_its_centre() -> None:
    vectors = ItemActions(TASK).vectors
    assert vectors.abs().max() <= 1
    assert vectors[1:].std() > 0.2  # and fill it
    assert not vectors[0].any()


# ---- the MDP dataset


def trajectories() -> tuple[TransitionBatch, Tensor, list[list[int]]]:
    """Sessions of 3, 1 and 2 original rows (the last one capped) among hindsight rows; the original ones of each."""
    batch = make_transitions(9, TASK)
    sessions = torch.tensor([4, 4, 4, 4, 7, 7, 2, 2, 2])
    hindsight = torch.tensor([0, 1, 0, 0, 0, 1, 0, 0, 1]).bool()
    ends = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0]).bool()
    capped = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1]).bool()
    return replace(batch, hindsight=hindsight, terminated=ends, truncated=capped), sessions, [[0, 2, 3], [4], [6, 7]]


@pytest.mark.parametrize("size", [9, 2])
def test_the_dataset_holds_the_original_rows_as_episodes(size: int, capfd: pytest.CaptureFixture[str]) -> None:
    batch, sessions, expected = trajectories()
    encode, actions = ObservationEncoder(TASK), ItemActions(TASK)
    parts = (batch[slice(i, i + size)] for i in range(0, 9, size))
    dataset = to_mdp_dataset(parts, sessions, encode, actions)
    assert len(dataset.episodes) == 3
    for episode, rows in zip(dataset.episodes, expected, strict=True):
        original = batch[torch.tensor(rows)]
        np.testing.assert_allclose(episode.observations, encode(original.state).numpy(), rtol=1e-6)
        np.testing.assert_allclose(
            episode.actions, actions.slate_mean(original.items, original.mask).numpy(), rtol=1e-6
        )
        np.testing.assert_allclose(episode.rewards[:, 0], (original.rewards * original.mask).sum(dim=1).numpy())
    assert [episode.terminated for episode in dataset.episodes] == [True, True, False]
    # d3rlpy drops the last transition of a capped session, and of no other.
    assert [episode.transition_count for episode in dataset.episodes] == [3, 1, 1]
    assert dataset.transition_count == 5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("sessions", "terminated", "message"),
    [
        ([4, 4, 7, 4], [0, 0, 0, 1], "do not lie together"),
        ([4, 4, 4, 7], [0, 1, 0, 1], "Session 4 goes on after its terminated row"),
        ([4, 4, 4], [0, 0, 0, 1], "numbers 3 rows, but the batches hold more"),
        ([4, 4, 4, 4, 7], [0, 0, 0, 1], "numbers 5 rows, but the batches hold 4"),
    ],
)
def test_the_dataset_refuses_rows_out_of_order(sessions: list[int], terminated: list[int], message: str) -> None:
    batch = replace(make_transitions(4, TASK, hindsight=False), terminated=torch.tensor(terminated).bool())
    with pytest.raises(DataError, match=message):
        to_mdp_dataset([batch], torch.tensor(sessions), ObservationEncoder(TASK), ItemActions(TASK))


# ---- quiet, reproducible, and strict about what it is given


def test_neither_importing_nor_training_prints_or_writes_anything(tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    script = (
        "from models.d3rlpy_baselines import CQLConfig\n"
        "from tests.models.builders import make_task, make_transitions\n"
        "agent = CQLConfig(hidden=(8,)).build(make_task(), 11)\n"
        "agent.update(make_transitions(8, make_task()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(project)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_d3rlpy_is_an_error_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(ConfigError, match=r"d3rlpy cannot be imported \(.*\)\. Install d3rlpy>=2\.8\.1,<2\.9"):
        import_d3rlpy()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_weights_are_the_networks_that_score_and_the_rest_is_training_state(config: Any) -> None:
    agent = config(hidden=(8,)).build(TASK, 11)
    assert {name.split(".")[0] for name in agent.state_dict()} <= {"imitator", "policy", "q_funcs"}
    agent.update(make_transitions(8, TASK))
    assert agent.training_state()["grad_step"] == 1
    with pytest.raises(ModelError, match="checkpoint does not fit"):
        agent.load_training_state({"modules": {}, "grad_step": 3})


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    agent = CQLConfig(hidden=(8,)).build(TASK, 11)
    agent.update(make_transitions(8, TASK))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (BCConfig, {"decode": "critic"}, "decode"),
        (IQLConfig, {"expectile": 1.0}, "less than 1"),
        (TD3PlusBCConfig, {"action": "slate"}, "slate_mean"),
        (CQLConfig, {"discount": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)


def test_a_page_without_items_is_no_transition() -> None:
    agent, batch = IQLConfig(hidden=(8,)).build(TASK, 11), make_transitions(4, TASK, hindsight=False)
    items, feedback = (torch.zeros_like(column) for column in random_page(4, TASK, torch.Generator()))
    with pytest.raises(DataError, match="original rows"):
        agent.update(replace(batch, items=items, feedback=feedback))
