"""Virtual Taobao as gymnasium environments: one user at a time, and many at once.

An action is a vector of 27 weights, an observation 91 numbers (the user, what they last did, the pages seen), a reward
the clicks of a page, 0 to 10. A session is terminated when the user leaves, and truncated after ``max_pages``.
Luck is fixed by the seed of an environment, its count of sessions since, and the page: with the same seeds and actions
the two classes see the same users, who answer the same.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from models.hashing import mix64, uniforms
from models.simulators.virtual_taobao import (
    ACTION,
    ATTRIBUTES,
    SLOTS,
    USER,
    VirtualTaobao,
    VirtualTaobaoConfig,
    Visit,
)
from pipeline.errors import ConfigError


class VirtualTaobaoEnv(gymnasium.Env):  # type: ignore[misc]
    """One user. ``info["CTR"]`` is the session's clicks / pages / 10 so far."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, weights: str, max_pages: int = 100, device: str = "cpu") -> None:
        self.model = VirtualTaobaoConfig(weights=weights, max_pages=max_pages).load(device)
        self.observation_space, self.action_space = _spaces(max_pages)
        self._seed: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed, self._session = self.np_random_seed % 2**62, 0
        else:
            self._session += 1
        seeds, sessions = torch.tensor([[self._seed], [self._session]], device=self.model.device)
        self._keys = mix64(seeds, sessions)  # [1]
        self._visit = _new_users(self.model, self._keys)
        self._clicks = 0
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._visit = _show_pages(self.model, self._visit, np.asarray(action)[None], self._keys)
        leave = bool(self._visit.over)
        clicks, pages = int(self._visit.clicks), int(self._visit.page)
        self._clicks += clicks
        truncated = not leave and pages >= self.model.max_pages
        return self._observation(), float(clicks), leave, truncated, {"CTR": self._clicks / pages / SLOTS}

    def _observation(self) -> NDArray[np.float32]:
        return _numpy(self.model.observation(self._visit)[0])


class VirtualTaobaoVectorEnv(gymnasium.vector.VectorEnv):  # type: ignore[misc]
    """Many users at once. On the step after a session's last one the next user comes, as in gymnasium 1.0's own.

    That step ignores the action and gives reward 0. ``reset(seed=s)`` seeds the environments with s, s + 1, …
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": "next_step"}

    def __init__(self, num_envs: int, weights: str, max_pages: int = 100, device: str = "cpu") -> None:
        self.model = VirtualTaobaoConfig(weights=weights, max_pages=max_pages).load(device)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = _spaces(max_pages)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seeds = torch.empty(0, dtype=torch.int64)  # [B] from the first reset on

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        if seed is not None or not len(self._seeds):
            super().reset(seed=seed[0] if isinstance(seed, list) else seed)
            first = self.np_random_seed % 2**62
            seeds = seed if isinstance(seed, list) else range(first, first + self.num_envs)
            if len(seeds) != self.num_envs:
                raise ConfigError(f"{len(seeds)} seeds for {self.num_envs} environments: give one, or one for each.")
            self._seeds = torch.tensor(seeds, device=self.model.device)
            self._sessions = torch.zeros_like(self._seeds)  # [B]
        else:
            self._sessions += 1
        self._keys = mix64(self._seeds, self._sessions)  # [B]
        self._visit = _new_users(self.model, self._keys)
        self._clicks = torch.zeros_like(self._keys)  # [B]
        self._over = torch.zeros_like(self._keys, dtype=torch.bool)  # [B]
        return _numpy(self.model.observation(self._visit)), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        started = self._over  # whoever ended on the last step: the next user comes instead
        self._visit = _show_pages(self.model, self._visit, actions, self._keys)
        leave = self._visit.over
        self._start(started.nonzero()[:, 0])
        rewards = self._visit.clicks.double()  # 0 for who has just come
        self._clicks += self._visit.clicks
        pages = self._visit.page
        terminated, truncated = leave & ~started, ~leave & ~started & (pages >= self.model.max_pages)
        self._over = terminated | truncated
        ctr = self._clicks.double() / pages.clamp(min=1) / SLOTS
        infos = {"CTR": _numpy(ctr), "_CTR": _numpy(~started)}
        observation = _numpy(self.model.observation(self._visit))
        return observation, _numpy(rewards), _numpy(terminated), _numpy(truncated), infos

    def _start(self, rows: Tensor) -> None:
        """Give the next user to each of ``rows``."""
        self._sessions[rows] += 1
        self._keys[rows] = mix64(self._seeds[rows], self._sessions[rows])
        self._clicks[rows] = 0
        new = _new_users(self.model, self._keys[rows])
        for field in fields(Visit):
            getattr(self._visit, field.name)[rows] = getattr(new, field.name)


def _spaces(max_pages: int) -> tuple[Box, Box]:
    """Of observations, with the true bounds, and of actions."""
    high = np.array([1] * USER + [SLOTS, ATTRIBUTES - 1, max_pages], dtype=np.float32)
    return Box(np.zeros_like(high), high), Box(-1, 1, (ACTION,), np.float32)


def _new_users(model: VirtualTaobao, keys: Tensor) -> Visit:
    return model.reset(len(keys), uniforms(mix64(keys, torch.zeros_like(keys)), width=model.reset_width()))


def _show_pages(model: VirtualTaobao, visit: Visit, actions: NDArray[np.float32], keys: Tensor) -> Visit:
    draws = uniforms(mix64(keys, visit.page + 1), width=model.step_width())
    weights = torch.as_tensor(actions, dtype=torch.float32, device=model.device)
    return model.after(visit, weights, draws)


def _numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array
