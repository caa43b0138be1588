"""One user or many, the gymnasium way: the same sessions, and what gymnasium asks of an environment."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from models.base import StateBatch
from models.environments import register
from models.environments.gym import HindsightEnv, HindsightVectorEnv
from models.environments.recall import UniformRecall
from models.environments.sessions import SessionSettings
from models.environments.variants import ITEM_WIDTH, STATE_WIDTH
from models.observation import ObservationEncoder, item_vectors
from pipeline.errors import ConfigError, ModelError
from tests.models.builders import ITEMS, make_task
from tests.models.environments.users import PlainUsers

TASK = make_task(rows=2, cols=2)
POOL = 12


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def starts(slots: int = 4, users: int = 30) -> StateBatch:
    random = torch.Generator().manual_seed(0)
    items = torch.randint(1, ITEMS + 1, (users, 6), generator=random)
    return StateBatch.at_start(torch.randn(users, 4, generator=random), items, torch.full_like(items, 2), 3, slots)


def arguments(**changes: Any) -> dict[str, Any]:
    settings = {"rows": 2, "cols": 2, "pool": POOL, "max_pages": 6} | changes.pop("settings", {})
    slots = settings["rows"] * settings["cols"]
    model = PlainUsers(ITEMS + 1, exit_rate=changes.pop("exit_rate", 0.15))
    return {"model": model, "task": TASK, "start": starts(slots), "settings": SessionSettings(**settings)} | changes


ITEM_WISE = {"actions": "item", "settings": {"rows": 1, "cols": 1}}
KINDS: list[dict[str, Any]] = [
    {},
    {"actions": "list"},
    ITEM_WISE,
    {"settings": {"high_variance": True}},
    {"high_dimensional": True},
    {"settings": {"pool": ITEMS + 5}},  # there is padding
]


def play(env: Any, actions: list[Any], seed: int) -> list[Any]:
    """What a single environment shows, begun again where a session ends: as NEXT_STEP autoreset does."""
    seen: list[Any] = [(env.reset(seed=seed)[0], 0.0, False, False)]
    for action in actions:
        if seen[-1][2] or seen[-1][3]:
            seen.append((env.reset()[0], 0.0, False, False))
        else:
            seen.append(env.step(action)[:4])
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_many_environments_are_as_many_single_ones(kind: dict[str, Any]) -> None:
    many = HindsightVectorEnv(5, **arguments(**kind))
    many.action_space.seed(3)
    actions = [many.action_space.sample() for _ in range(25)]
    singles = [play(HindsightEnv(**arguments(**kind)), [a[i] for a in actions], seed=50 + i) for i in range(5)]
    observations = [many.reset(seed=50)[0]]
    steps = [many.step(action) for action in actions]
    observations += [step[0] for step in steps]
    ends = 0
    for i, single in enumerate(singles):
        for page, (observation, reward, terminated, truncated) in enumerate(single):
            for name, values in observation.items():
                np.testing.assert_array_equal(observations[page][name][i], values)
                assert observations[page][name].dtype == values.dtype
            if page:
                assert tuple(array[i] for array in steps[page - 1][1:4]) == (reward, terminated, truncated)
            ends += terminated or truncated
    assert ends > 10
    assert all(many.observation_space.contains(seen) for seen in observations)


@pytest.mark.parametrize("kind", KINDS)
def test_gymnasiums_own_check_finds_nothing(kind: dict[str, Any]) -> None:
    register()
    env = gymnasium.make("Hindsight/Session-v0", disable_env_checker=True, **arguments(**kind))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    # Users' features have no bounds.
    assert not [str(one.message) for one in found if "infinity" not in str(one.message)]


def test_both_environments_can_be_made_by_their_name() -> None:
    register()
    env = gymnasium.make("Hindsight/Session-v0", **arguments())
    assert isinstance(env.unwrapped, HindsightEnv)
    many = gymnasium.make_vec("Hindsight/Session-v0", 3, **arguments())
    assert isinstance(many, HindsightVectorEnv)
    assert many.metadata["autoreset_mode"] == "NextStep"
    np.testing.assert_array_equal(many.reset(seed=4)[0]["state"][0], env.reset(seed=4)[0]["state"])


def test_an_observation_is_the_state_and_the_candidates() -> None:
    env = HindsightEnv(**arguments(recall=UniformRecall(TASK)))
    seen, info = env.reset(seed=1)
    row = info["start_row"]
    np.testing.assert_array_equal(seen["state"], ObservationEncoder(TASK)(starts()[row : row + 1])[0])
    ids = seen["candidate_ids"]
    np.testing.assert_array_equal(seen["candidates"], item_vectors(TASK.catalogue)[torch.from_numpy(ids)])
    after, reward, *_, info = env.step(np.array([[3, 1], [0, 2]]))
    assert not set(ids[:4].tolist()) & set(after["candidate_ids"].tolist())  # what was shown does not come at once
    assert reward == info["true_reward"]


def test_a_repeated_candidate_leaves_its_later_slot_empty() -> None:
    env = HindsightEnv(**arguments())
    env.reset(seed=1)
    assert env.step(np.array([[3, 3], [0, 3]]))[4]["empty_slots"] == 2
    assert env.desk.sessions.state.page_feedback[0, -1].sign().tolist() == [1, 0, 1, 0]


def test_padding_leaves_its_slot_empty() -> None:
    env = HindsightEnv(**arguments(settings={"pool": ITEMS + 5}, exit_rate=0.0))
    env.reset(seed=1)
    *_, terminated, truncated, info = env.step(np.array([[ITEMS, ITEMS + 1], [0, ITEMS + 4]]))
    assert (terminated, truncated, info["empty_slots"]) == (False, False, 3)


def test_seeds_decide_the_user_and_the_luck() -> None:
    env, twin = (HindsightEnv(**arguments()) for _ in range(2))
    rows = [env.reset(seed=seed)[1]["start_row"] for seed in range(40)]
    assert rows == [twin.reset(seed=seed)[1]["start_row"] for seed in range(40)]
    assert len(set(rows)) > 15
    later = [env.reset()[1]["start_row"] for _ in range(20)]
    assert later == [twin.reset()[1]["start_row"] for _ in range(20)]
    assert len(set(later)) > 8
    assert HindsightEnv(**arguments()).reset()[0]["state"].shape == env.observation_space["state"].shape


def test_where_a_session_is_cut_the_last_observation_still_has_candidates() -> None:
    for exit_rate, cut in ((0.0, True), (1.0, False)):
        env = HindsightEnv(**arguments(exit_rate=exit_rate, settings={"max_pages": 1}))
        env.reset(seed=1)
        seen, _, terminated, truncated, _ = env.step(np.array([[3, 1], [0, 2]]))
        assert (terminated, truncated) == (not cut, cut)
        assert seen["candidate_ids"].all() == seen["candidates"].any() == cut
        assert seen["state"].any()


def test_high_dimensional_eyes_change_nothing_in_the_world() -> None:
    plain, wide = HindsightEnv(**arguments()), HindsightEnv(**arguments(high_dimensional=True))
    actions = [plain.action_space.sample() for _ in range(30)]
    for one, other in zip(play(plain, actions, 7), play(wide, actions, 7), strict=True):
        assert one[1:] == other[1:]
        np.testing.assert_array_equal(one[0]["candidate_ids"], other[0]["candidate_ids"])
        for name, width in (("state", STATE_WIDTH), ("candidates", ITEM_WIDTH)):
            assert other[0][name].dtype == np.int64
            assert 0 <= other[0][name].min() <= other[0][name].max() < width


def test_a_vector_reset_takes_one_seed_each() -> None:
    one, other = (HindsightVectorEnv(3, **arguments()) for _ in range(2))
    first, second = one.reset(seed=[9, 10, 11])[0], other.reset(seed=9)[0]
    np.testing.assert_array_equal(first["state"], second["state"])
    again = one.reset()[0]
    assert not np.array_equal(again["candidate_ids"], first["candidate_ids"])


def test_a_vector_reset_forgets_which_sessions_had_ended() -> None:
    env = HindsightVectorEnv(8, **arguments(exit_rate=0.5))
    env.reset(seed=1)
    assert env.step(env.action_space.sample())[2].any()
    env.reset(seed=1)
    assert env.step(env.action_space.sample())[4]["_true_reward"].all()


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: HindsightEnv(**arguments(actions="item")), ConfigError, "'item' with pages of 2 × 2"),
        (lambda: HindsightEnv(**arguments(actions="slate")), ConfigError, "actions='slate'"),
        (lambda: HindsightEnv(**arguments()).step(np.zeros((2, 2))), ModelError, r"Call reset\(\) first"),
        (lambda: HindsightVectorEnv(2, **arguments()).step(np.zeros((2, 2, 2))), ModelError, r"Call reset\(\) first"),
        (lambda: HindsightVectorEnv(2, **arguments()).reset(seed=[1]), ModelError, "1 seeds for 2 environments"),
        (lambda: play(HindsightEnv(**arguments()), [np.full((2, 2), POOL)], 1), ModelError, "outside of the pool"),
    ],
)
def test_what_cannot_be_played_is_refused(action: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        action()


def test_a_session_that_has_ended_takes_no_more_pages() -> None:
    env = HindsightEnv(**arguments(exit_rate=1.0))
    env.reset(seed=1)
    env.step(env.action_space.sample())
    with pytest.raises(ModelError, match="has ended"):
        env.step(env.action_space.sample())
