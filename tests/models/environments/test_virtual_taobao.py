"""Virtual Taobao's environments: the many against gymnasium's own vector of single ones, on random weights."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from models.environments import register
from models.environments.virtual_taobao import VirtualTaobaoEnv, VirtualTaobaoVectorEnv
from pipeline.errors import ConfigError, ModelError
from tests.models.simulators.taobao_weights import save_weights

ENVS, STEPS, MAX_PAGES = 6, 50, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return save_weights(tmp_path_factory.mktemp("virtual_taobao"))


def actions(step: int) -> NDArray[np.float32]:
    return np.random.default_rng(step).uniform(-1, 1, (ENVS, 27)).astype(np.float32)


def test_the_environment_passes_gymnasiums_checks(folder: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(VirtualTaobaoEnv(folder), skip_render_check=True)


@pytest.mark.parametrize("seed", [5, [3, 1, 4, 1, 5, 9]])
def test_many_environments_do_what_as_many_single_ones_do(folder: str, seed: Any) -> None:
    single = SyncVectorEnv([lambda: VirtualTaobaoEnv(folder, MAX_PAGES) for _ in range(ENVS)])
    many = VirtualTaobaoVectorEnv(ENVS, folder, MAX_PAGES)
    assert (many.observation_space, many.action_space) == (single.observation_space, single.action_space)
    assert (many.reset(seed=seed)[0] == single.reset(seed=seed)[0]).all()
    ends = np.zeros(2, dtype=np.int64)
    for step in range(STEPS):
        if step == STEPS // 2:
            assert (many.reset()[0] == single.reset()[0]).all()  # the next users
        ours, theirs = many.step(actions(step)), single.step(actions(step))
        for found, expected in zip(ours[:4], theirs[:4], strict=True):
            assert found.dtype == expected.dtype
            assert (found == expected).all()
        known = theirs[4].get("_CTR", np.zeros(ENVS, dtype=np.bool_))  # which of them have played on this step
        assert (ours[4]["_CTR"] == known).all()
        assert (ours[4]["CTR"][known] == theirs[4].get("CTR", known)[known]).all()
        assert many.observation_space.contains(ours[0])
        ends += [ours[2].sum(), ours[3].sum()]
    assert (ends > 3).all()  # sessions that the users ended, and others that were cut


def test_a_session_is_paid_by_the_click_and_ends_when_the_user_leaves_or_is_cut(folder: str) -> None:
    env = VirtualTaobaoEnv(folder, MAX_PAGES)
    ends = set()
    for seed in range(30):
        observation, info = env.reset(seed=seed)
        user, total, over, page = observation[:88], 0.0, False, 0
        assert (observation[88:] == 0).all()
        assert info == {}
        while not over:
            page += 1
            observation, reward, terminated, truncated, info = env.step(actions(page)[0])
            total, over = total + reward, terminated or truncated
            assert (observation[:88] == user).all()  # to the end: the next user comes with the next reset
            assert (observation[88], observation[90]) == (reward, page)
            assert info["CTR"] == pytest.approx(total / page / 10)
        assert not (terminated and truncated)
        assert page == MAX_PAGES or terminated
        ends.add((page, terminated))
    assert {(1, True), (MAX_PAGES, False)} <= ends


def test_a_seed_fixes_the_users_and_another_gives_others(folder: str) -> None:
    env = VirtualTaobaoEnv(folder)
    first, second = env.reset(seed=1)[0], env.reset()[0]
    assert (first != second).any()
    assert (env.reset(seed=2)[0] != first).any()
    assert (env.reset(seed=1)[0] == first).all()
    assert (env.reset()[0] == second).all()
    many = VirtualTaobaoVectorEnv(3, folder)
    assert len(np.unique(many.reset()[0], axis=0)) == 3  # without a seed, too


def test_the_vector_says_when_it_resets(folder: str) -> None:
    assert VirtualTaobaoVectorEnv.metadata["autoreset_mode"] == "next_step"


def test_gymnasium_makes_both_by_name(folder: str) -> None:
    register()
    env = gymnasium.make("Hindsight/VirtualTaobao-v0", weights=folder, max_pages=1)
    many = gymnasium.make_vec(
        "Hindsight/VirtualTaobao-v0", num_envs=2, vectorization_mode="vector_entry_point", weights=folder, max_pages=1
    )
    assert (env.reset(seed=0)[0] == many.reset(seed=0)[0][0]).all()
    assert isinstance(env.unwrapped, VirtualTaobaoEnv)
    assert isinstance(many.unwrapped, VirtualTaobaoVectorEnv)


def test_what_cannot_be_used_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no folder"):
        VirtualTaobaoEnv(str(tmp_path / "nowhere"))
    many = VirtualTaobaoVectorEnv(3, folder)
    with pytest.raises(ConfigError, match="2 seeds for 3 environments"):
        many.reset(seed=[1, 2])
    many.reset(seed=0)
    with pytest.raises(ModelError, match=r"actions have shape \(2, 27\), but 3 users need \(3, 27\)"):
        many.step(np.zeros((2, 27), dtype=np.float32))
