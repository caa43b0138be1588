"""Sessions of many users with a user model, a page at a time: what roll-outs and the gym environments run on.

    state --recall--> candidates --ranker--> page --user model--> feedback, leave --advance--> state

Each user's luck is drawn from (key, seed, page, purpose) alone, so neither the batch nor what happened to others bears
on it, and two rankers that show a user the same pages get the same answers.

Shapes: A users who are still there, K slots of a page, R candidates, S items shown so far.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.base import Candidates, StateBatch, Task, TensorBatch
from models.environments.recall import Recall
from models.environments.variants import DelayedRewards, TrendMode, TrendNoise, normals
from models.hashing import mix64, uniforms
from models.simulators.base import EMPTY, UserModel
from pipeline.errors import ConfigError, ModelError

START, RECALL, ANSWER, TREND = range(4)  # purposes of a user's luck
# length → pages of several items (DeepPage), pages of one item (MaHRL §4.2.3)
FIXED_PAGES = {"short": (10, 50), "long": (50, 200)}


class SessionSettings(BaseModel):
    """What a session is. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(5, ge=1)  # of a page
    cols: int = Field(2, ge=1)
    pool: int = Field(50, ge=1)  # R, candidates of a page
    length: Literal["natural", "short", "long"] = "natural"  # until the user leaves, or a fixed number of pages
    max_pages: int = Field(50, ge=1)  # where a natural session is cut
    high_variance: bool = False  # GoalRec's variant: a trend on the click's logit, and rewards that come late
    trend: TrendMode = "stationary"  # of that variant
    delay: int = Field(3, ge=1)  # pages that its rewards come late

    @property
    def page_size(self) -> int:
        return self.rows * self.cols

    @property
    def pages(self) -> int:
        """Where a session is cut: 10 (short) or 50 (long) pages, 50 or 200 with one item a page."""
        if self.length == "natural":
            return self.max_pages
        return FIXED_PAGES[self.length][self.page_size == 1]


@dataclass(frozen=True)
class Running(TensorBatch):
    """Users in the middle of a session."""

    users: Tensor  # [A] int64, row number in the start batch
    keys: Tensor  # [A] int64
    luck: Tensor  # [A] int64, hash of the key and the seed
    page: Tensor  # [A] int64, pages seen
    state: StateBatch  # what a ranker knows
    hidden: Any  # what the user model knows
    shown: Tensor  # [A, S] int64, 0 pads
    trend: Tensor  # [A, 2] float32, the last two values of the trend
    owed: Tensor  # [A, delay] float32, rewards to be delivered, the next one first

    def __len__(self) -> int:
        return len(self.users)

    def draws(self, purpose: int, width: int) -> Tensor:
        """This page's uniform numbers for one purpose, [A, width]."""
        return uniforms(mix64(self.luck, self.page), purpose, width=width)


@dataclass(frozen=True)
class Outcome(TensorBatch):
    """What came of a page, of each user to whom one was shown."""

    users: Tensor  # [A] int64, row number in the start batch
    items: Tensor  # [A, K] int64, dense index, EMPTY where the slot was empty
    feedback: Tensor  # [A, K] int64, Feedback codes, NONE where the slot was empty
    rewards: Tensor  # [A] float32, of this page
    delivered: Tensor  # [A] float32, what the agent is told now: the rewards, unless they come late
    terminated: Tensor  # [A] bool, the user left
    truncated: Tensor  # [A] bool, the session was cut
    after: Running  # A users after the page, those whose session ended too


class Sessions:
    """The users who are still there (``running``) and what may be shown to them next (``candidates``).

    Raises ConfigError when a page has more slots than there are candidates.
    """

    running: Running
    candidates: Candidates

    def __init__(self, model: UserModel, task: Task, recall: Recall, settings: SessionSettings) -> None:
        self.model, self.task, self.recall, self.settings = model, task, recall, settings
        if settings.page_size > min(settings.pool, recall.n_items):
            raise ConfigError(
                f"A page of {settings.rows} × {settings.cols} needs {settings.page_size} candidates, but the pool has "
                f"{settings.pool} and the catalogue {recall.n_items} items. Raise `pool`, or make the page smaller."
            )
        self.rewards = torch.tensor(task.rewards, device=task.device)  # of each Feedback code
        self.trend = TrendNoise(settings.trend) if settings.high_variance else None
        self.delay = DelayedRewards(settings.delay) if settings.high_variance else None

    # ---- what a ranker sees

    @property
    def state(self) -> StateBatch:
        return self.running.state

    @property
    def users(self) -> Tensor:
        """Row numbers [A] in the start batch."""
        return self.running.users

    @property
    def page(self) -> Tensor:
        """Pages that each user has seen, [A]; equal unless users entered later."""
        return self.running.page

    @property
    def hidden(self) -> Any:
        return self.running.hidden

    @property
    def done(self) -> bool:
        return not len(self.running)

    # ---- what happens

    def start(self, state: StateBatch, keys: Tensor, seed: int) -> None:
        """Begin a session of each of B users from ``state``; ``keys`` [B] int64 and ``seed`` fix their luck."""
        self.running = self._begun(state, keys, seed, torch.arange(len(state)))
        self.candidates = self.offer(self.running)

    def enter(self, state: StateBatch, keys: Tensor, seed: int, users: Tensor) -> None:
        """More users begin while others are under way; they come last. ``users`` [n] are their row numbers."""
        newcomers = self._begun(state, keys, seed, users)
        self.candidates = _joined(self.candidates, self.offer(newcomers))
        self.running = _joined(*_same_width(self.running, newcomers))

    @torch.no_grad()
    def step(self, chosen: Tensor) -> Outcome:
        """Show each user the page ``chosen`` [A, K] of indices into the candidates, -1 = an empty slot.

        Afterwards only those who stay are kept, with candidates for their next page. Raises ModelError for a page that
        is no choice of different candidates.
        """
        chosen = checked(chosen.to(self.task.device), self.candidates.mask, self.settings.page_size)
        items = self.candidates.items.gather(1, chosen.clamp(min=0)).masked_fill(chosen < 0, EMPTY)  # [A, K]
        outcome = self._answered(items)
        staying = ~(outcome.terminated | outcome.truncated)
        self.running = outcome.after if staying.all() else outcome.after[staying]
        self.candidates = self.offer(self.running)
        return outcome

    def offer(self, running: Running) -> Candidates:
        """The candidates of the next page of each user."""
        luck = mix64(mix64(running.luck, running.page), torch.full_like(running.luck, RECALL))
        items, mask = self.recall(running.state, running.shown, luck, self.settings.pool)  # [A, R]
        return Candidates(items, mask, tie=mix64(mix64(running.keys, running.page)[:, None], items))

    def _begun(self, state: StateBatch, keys: Tensor, seed: int, users: Tensor) -> Running:
        size, slots = len(state), state.page_items.shape[2]
        if not size or len(keys) != size or slots != self.settings.page_size:
            raise ModelError(
                f"Sessions were to begin with {size} states of pages of {slots} slots and {len(keys)} keys. Give one "
                f"key a user, at least one user, and states with pages of {self.settings.page_size} slots."
            )
        state, keys = state.to(self.task.device), keys.to(self.task.device)
        luck = mix64(keys, torch.full_like(keys, seed))
        page = torch.zeros_like(keys)
        draws = uniforms(mix64(luck, page), START, width=self.model.reset_width())
        return Running(
            users=users.to(self.task.device),
            keys=keys,
            luck=luck,
            page=page,
            state=state,
            hidden=self.model.reset(state, draws),
            shown=keys.new_zeros(size, 0),
            trend=draws.new_zeros(size, 2),
            owed=draws.new_zeros(size, self.settings.delay),
        )

    def _answered(self, items: Tensor) -> Outcome:
        now = self.running
        trend, shift = now.trend, None
        if self.trend is not None:
            trend = self.trend(now.trend, normals(now.draws(TREND, 1))[:, 0])
            shift = trend[:, 0]  # [A]
        draws = now.draws(ANSWER, self.model.step_width(items.shape[1]))
        feedback, leave, hidden = self.model.step(now.hidden, items, draws, shift)
        rewards = self.rewards[feedback].sum(dim=1)
        last = now.page + 1 >= self.settings.pages
        terminated = leave if self.settings.length == "natural" else torch.zeros_like(leave)
        truncated = last & ~terminated
        delivered, owed = rewards, now.owed
        if self.delay is not None:
            delivered, owed = self.delay(now.owed, rewards, terminated | truncated)
        shown = items.clamp(min=0)  # item 0 pads
        after = replace(
            now,
            page=now.page + 1,
            state=now.state.advance(shown, feedback),
            hidden=hidden,
            shown=torch.cat([now.shown, shown], dim=1),
            trend=trend,
            owed=owed,
        )
        return Outcome(now.users, items, feedback, rewards, delivered, terminated, truncated, after)


def checked(chosen: Tensor, mask: Tensor, slots: int) -> Tensor:
    """``chosen`` [A, K], if each row names different candidates of ``mask`` [A, R], or -1 for an empty slot."""
    users, width = mask.shape
    if chosen.shape != (users, slots):
        raise ModelError(f"A page of shape {tuple(chosen.shape)} was chosen for {users} users. "
                         f"Give [{users}, {slots}] indices into the candidates, -1 for an empty slot.")  # fmt: skip
    ordered = chosen.sort(dim=1).values
    twice = bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())
    outside = bool(((chosen < -1) | (chosen >= width)).any())
    if twice or outside or bool((~mask.gather(1, chosen.clamp(min=0)) & (chosen >= 0)).any()):
        wrong = "one of them twice" if twice else "one outside of the pool" if outside else "one that is padding"
        raise ModelError(f"A page has candidates {int(chosen.min())} to {int(chosen.max())}, {wrong}. "
                         f"Choose {slots} different ones of 0 to {width - 1} that are not masked, or -1.")  # fmt: skip
    return chosen


def _same_width(one: Running, other: Running) -> tuple[Running, Running]:
    width = max(one.shown.shape[1], other.shown.shape[1])
    padded = (replace(side, shown=F.pad(side.shown, (width - side.shown.shape[1], 0))) for side in (one, other))
    return next(padded), next(padded)


def _joined(one: Any, other: Any) -> Any:
    """The rows of two batches of one type, one after the other."""
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    if not isinstance(one, TensorBatch):
        return one
    names = [f.name for f in fields(one)]  # type: ignore[arg-type]
    return replace(one, **{name: _joined(getattr(one, name), getattr(other, name)) for name in names})  # type: ignore[type-var]
