"""Sessions with a user model as gymnasium environments: one user, or many at once; the same seeds, the same sessions.

An action names candidates by their index in the pool. A candidate that is on the page already, or is padding, leaves
its slot empty (``info["empty_slots"]`` counts them), so every action of the space is legal. Rewards are those
delivered; ``info["true_reward"]`` is the page's own. The observation after a session's last page has candidates only
where the session was cut (truncated), so that its value can be bootstrapped; zeros where the user left.

Shapes: n environments, A of them with a page to answer, K slots, R candidates, V item vector, W observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from models.base import Candidates, StateBatch, Task
from models.environments.recall import Recall, SimilarRecall
from models.environments.sessions import Outcome, Running, Sessions, SessionSettings
from models.environments.variants import ITEM_WIDTH, STATE_WIDTH, CrossedFeatures
from models.hashing import mix64, uniforms
from models.observation import CLIP, ObservationEncoder, item_vectors
from models.simulators.base import UserModel
from pipeline.errors import ConfigError, ModelError

Arrays = dict[str, NDArray[Any]]
ActionKind = Literal["item", "list", "page"]  # one index, K of them, or rows × columns of them
START_ROW = 0  # purpose of a draw


class HindsightEnv(gymnasium.Env):  # type: ignore[misc]
    """One user a session, drawn from ``start`` by seed and episode.

    Observations are dictionaries: "state" [W] (``ObservationEncoder``), "candidates" [R, V] (their standardised
    vectors) and "candidate_ids" [R] (dense indices, 0 = none). With ``high_dimensional`` the first two hold the indices
    of ``CrossedFeatures`` instead, whose quantiles are those of ``quantiles`` (else of ``start``) and the catalogue.
    ``recall`` is ``SimilarRecall(task)`` unless given. Raises ConfigError for a page and actions that do not fit.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        model: UserModel,
        task: Task,
        start: StateBatch,
        settings: SessionSettings | None = None,
        *,
        recall: Recall | None = None,
        actions: ActionKind = "page",
        high_dimensional: bool = False,
        quantiles: StateBatch | None = None,
        render_mode: str | None = None,
    ) -> None:
        view = _View(task, (quantiles or start) if high_dimensional else None)
        self.desk = _Desk(1, _sessions(model, task, recall, settings), start, view)
        self.observation_space = self.desk.space
        self.action_space = _action_space(actions, self.desk.sessions.settings)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self.desk.seeded:
            self.desk.seed(np.array([self.np_random.integers(2**62)]))
        rows = self.desk.begin(np.zeros(1, dtype=np.int64))
        return _first(self.desk.observe()), {"start_row": int(rows[0])}

    def step(self, action: Any) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        if not self.desk.seeded or self.desk.sessions.done:
            raise ModelError("This session has ended, or none has begun. Call reset() first.")
        outcome, empty = self.desk.show(np.asarray(action, dtype=np.int64).reshape(1, -1))
        info = {"true_reward": float(outcome.rewards[0]), "empty_slots": int(empty[0])}
        reward, ended = float(outcome.delivered[0]), (bool(outcome.terminated[0]), bool(outcome.truncated[0]))
        return _first(self.desk.observe(outcome)), reward, *ended, info


class HindsightVectorEnv(gymnasium.vector.VectorEnv):  # type: ignore[misc]
    """``num_envs`` users at once, each as in ``HindsightEnv`` with the same seed.

    Autoreset is NEXT_STEP: where a session has ended, the next step ignores the action and begins another one, with
    reward 0. ``reset(seed=s)`` seeds the environments with s, s + 1, …; a list gives one seed each.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": "NextStep"}

    def __init__(
        self,
        num_envs: int,
        model: UserModel,
        task: Task,
        start: StateBatch,
        settings: SessionSettings | None = None,
        *,
        recall: Recall | None = None,
        actions: ActionKind = "page",
        high_dimensional: bool = False,
        quantiles: StateBatch | None = None,
        render_mode: str | None = None,
    ) -> None:
        view = _View(task, (quantiles or start) if high_dimensional else None)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.desk = _Desk(num_envs, _sessions(model, task, recall, settings), start, view)
        self.single_observation_space = self.desk.space
        self.single_action_space = _action_space(actions, self.desk.sessions.settings)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        if seed is None and not self.desk.seeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            if len(seeds) != self.num_envs:
                raise ModelError(f"reset: {len(seeds)} seeds for {self.num_envs} environments. Give one each, or one.")
            # The number that a single environment of this seed draws.
            self.desk.seed(np.array([gymnasium.utils.seeding.np_random(s)[0].integers(2**62) for s in seeds]))
        self.ended[:] = False
        rows = self.desk.begin(np.arange(self.num_envs))
        return self.desk.observe(), {"start_row": rows, "_start_row": np.ones(self.num_envs, dtype=np.bool_)}

    def step(
        self, actions: Any
    ) -> tuple[Arrays, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        if not self.desk.seeded:
            raise ModelError("No session has begun. Call reset() first.")
        n, newcomers, outcome = self.num_envs, self.ended, None
        rewards, true_rewards = np.zeros(n), np.zeros(n)
        terminated, truncated = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        empty_slots, rows = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        if not newcomers.all():
            outcome, empty = self.desk.show(np.asarray(actions, dtype=np.int64).reshape(n, -1))
            users = outcome.users.cpu().numpy()
            for array, values in ((rewards, outcome.delivered), (true_rewards, outcome.rewards), (empty_slots, empty),
                                  (terminated, outcome.terminated), (truncated, outcome.truncated)):  # fmt: skip
                array[users] = values.cpu().numpy()
        if newcomers.any():
            rows[newcomers] = self.desk.begin(newcomers.nonzero()[0])
        self.ended = terminated | truncated
        info = {"true_reward": true_rewards, "_true_reward": ~newcomers, "empty_slots": empty_slots,
                "_empty_slots": ~newcomers, "start_row": rows, "_start_row": newcomers}  # fmt: skip
        return self.desk.observe(outcome), rewards, terminated, truncated, info


class _Desk:
    """What both environments share: who comes next, and the way from arrays to sessions and back."""

    def __init__(self, size: int, sessions: Sessions, start: StateBatch, view: _View) -> None:
        self.size, self.sessions, self.start, self.view = size, sessions, start, view
        self.space = view.space(sessions.settings.pool)
        self.seeds = self.episodes = np.zeros(0, dtype=np.int64)  # [n] once seeded

    @property
    def seeded(self) -> bool:
        return len(self.seeds) > 0

    def seed(self, seeds: NDArray[np.int64]) -> None:
        self.seeds, self.episodes = seeds, np.zeros(len(seeds), dtype=np.int64)

    def begin(self, envs: NDArray[np.int64]) -> NDArray[np.int64]:
        """A session in each of the environments ``envs``; returns the rows of ``start`` of their users."""
        keys = mix64(torch.from_numpy(self.seeds[envs]), torch.from_numpy(self.episodes[envs]))
        self.episodes[envs] += 1
        rows = (uniforms(keys, START_ROW, width=1)[:, 0].double() * len(self.start)).long()
        states = self.start[rows.to(self.start.pages_seen.device)]
        if len(envs) == self.size:
            self.sessions.start(states, keys, 0)
        else:
            self.sessions.enter(states, keys, 0, torch.from_numpy(envs))
        return rows.numpy()

    def show(self, actions: NDArray[np.int64]) -> tuple[Outcome, Tensor]:
        """Show the pages that ``actions`` [n, K] name; also how many slots were left empty, [A]."""
        candidates = self.sessions.candidates
        chosen = torch.from_numpy(actions).to(candidates.items.device)[self.sessions.users]  # [A, K]
        twice = (chosen[:, :, None] == chosen[:, None, :]).tril(-1).any(dim=2)  # on an earlier slot
        inside = (chosen >= 0) & (chosen < candidates.mask.shape[1])
        padding = inside & ~candidates.mask.gather(1, chosen * inside)
        chosen = chosen.masked_fill(twice | padding, -1)
        return self.sessions.step(chosen), (chosen < 0).sum(dim=1)

    def observe(self, outcome: Outcome | None = None) -> Arrays:
        """What each environment shows after ``outcome``, [n, ...]."""
        seen = {name: np.zeros((self.size, *box.shape), box.dtype) for name, box in self.space.items()}
        if outcome is not None and (outcome.terminated | outcome.truncated).any():
            ended = outcome.terminated | outcome.truncated
            gone, cut = outcome.after[ended], outcome.truncated[ended, None]
            offered = self.sessions.offer(gone)
            self._write(seen, gone, Candidates(offered.items * cut, offered.mask & cut, offered.tie))
        if not self.sessions.done:
            self._write(seen, self.sessions.running, self.sessions.candidates)
        return seen

    def _write(self, seen: Arrays, running: Running, candidates: Candidates) -> None:
        users = running.users.cpu().numpy()
        for name, values in self.view(running.state, candidates).items():
            seen[name][users] = values.cpu().numpy()


class _View:
    """What an agent sees; in the high-dimensional variant through crosses with the quantiles of ``fitted_on``."""

    def __init__(self, task: Task, fitted_on: StateBatch | None) -> None:
        self.encoder = ObservationEncoder(task)
        self.items = item_vectors(task.catalogue).to(task.device)  # [I+1, V]
        self.crossed: CrossedFeatures | None = None
        if fitted_on is not None:
            self.crossed = CrossedFeatures(self.encoder(fitted_on.to(task.device)), STATE_WIDTH)
            self.items = CrossedFeatures(self.items[1:], ITEM_WIDTH)(self.items).int()  # [I+1, indices], once for all

    def space(self, pool: int) -> Dict:
        items, item_width = self.items.shape
        if self.crossed is None:
            state = Box(-np.inf, np.inf, (self.encoder.width,), np.float32)
            candidates = Box(-CLIP, CLIP, (pool, item_width), np.float32)
        else:
            state = Box(0, STATE_WIDTH - 1, (self.crossed.active,), np.int64)
            candidates = Box(0, ITEM_WIDTH - 1, (pool, item_width), np.int64)
        ids = Box(0, items - 1, (pool,), np.int64)
        return Dict({"state": state, "candidates": candidates, "candidate_ids": ids})

    def __call__(self, state: StateBatch, candidates: Candidates) -> dict[str, Tensor]:
        encoded = self.encoder(state)
        return {
            "state": encoded if self.crossed is None else self.crossed(encoded),  # [A, W]
            "candidates": self.items[candidates.items] * candidates.mask[:, :, None],  # [A, R, V]
            "candidate_ids": candidates.items,  # [A, R]
        }


def _sessions(model: UserModel, task: Task, recall: Recall | None, settings: SessionSettings | None) -> Sessions:
    settings = settings or SessionSettings(rows=task.rows, cols=task.cols)
    return Sessions(model, task, recall or SimilarRecall(task), settings)


def _action_space(kind: ActionKind, settings: SessionSettings) -> Discrete | MultiDiscrete:
    if kind == "page":
        return MultiDiscrete(np.full((settings.rows, settings.cols), settings.pool))
    if kind == "list":
        return MultiDiscrete(np.full(settings.page_size, settings.pool))
    if kind == "item" and settings.page_size == 1:
        return Discrete(settings.pool)
    raise ConfigError(f"actions={kind!r} with pages of {settings.rows} × {settings.cols}: give 'page', 'list', or "
                      "'item' with pages of 1 × 1.")  # fmt: skip


def _first(arrays: Arrays) -> Arrays:
    return {name: values[0] for name, values in arrays.items()}
