"""Leg 2 in the storefront: the true value of a ranker, because the shop itself can be rolled out.

V = Σ_t (Π_{τ<t} (1 − h_τ))·E[r_t] over the pages of the session that each user would have next; h is the exit
probability. No exit is sampled and rewards are expectations, so the variance is far below that of realised returns.
Recalls, clicks and tastes come from generators seeded by (seed, page, purpose): every ranker meets the same luck.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from models.base import Agent, AgentConfig, Candidates, CriticAgent, StateBatch, Task, TensorBatch, rank_page
from models.hashing import mix64
from models.simulators.storefront import Shoppers, ShopState, Storefront, seeded
from models.simulators.storefront_policies import draw_buckets, production_page
from pipeline.errors import ConfigError, ModelError
from pipeline.schemas import ROLLOUT_METRICS

CHUNK = 4096  # users at a time: bounds memory; random numbers are drawn for a whole chunk

Values = dict[str, NDArray[np.float64]]  # one value a user for each of ROLLOUT_METRICS


@dataclass(frozen=True)
class ShopView(TensorBatch):
    """What a ranker with the privilege "truth" is shown: the shop, its users' hidden state, and the shop's items."""

    shop: Storefront
    state: ShopState
    shop_items: Tensor  # [B, R] numbers of the candidates in the shop


class _Policy(Protocol):
    """One session of B users: a page is asked for, then its outcome is told."""

    discount: float  # of the policy's own critic; nan without one
    predicted: Tensor | None  # [B] the return that the critic expects of the first page and those after it

    def choose(self, state: ShopState, candidates: Tensor, page: int) -> Tensor: ...  # [B, K] indices

    def observe(self, items: Tensor, feedback: Tensor) -> None: ...


def true_value(
    agent: Agent,
    config: AgentConfig,
    task: Task,
    shop: Storefront,
    population: Shoppers,
    start: StateBatch,
    users: Tensor,
    vocabulary: Tensor,
    seed: int,
) -> Values:
    """The value of ``agent`` for each user of ``population``.

    Row n of ``population``, ``start`` (what the log tells of the user) and ``users`` (int64 keys, for ties) is one
    user; ``vocabulary`` [I] is the dense index of each of the shop's items, 0 = not seen in the training window.
    Raises ConfigError when the task's page is not the shop's, ModelError for rows that do not match or a bad page.
    """
    layout = shop.config.rows, shop.config.cols
    if (task.rows, task.cols) != layout:
        raise ConfigError(
            f"sessions: pages of {task.rows} × {task.cols} cannot be rolled out in a storefront of "
            f"{layout[0]} × {layout[1]}. Set sessions.rows and sessions.cols to the storefront's."
        )
    if not (len(population) == len(start) == len(users)) or len(vocabulary) != shop.config.n_items:
        raise ModelError(
            f"true_value: {len(population)} users, {len(start)} states and {len(users)} keys, a vocabulary of "
            f"{len(vocabulary)} for {shop.config.n_items} items. Give one row a user and one entry an item."
        )

    def begin(rows: slice, luck: "_Luck") -> _Policy:
        return _AgentPolicy(agent, config, task, shop, start[rows], users[rows], vocabulary)

    return _roll_out(shop, population, seed, begin)


def logging_value(shop: Storefront, population: Shoppers, seed: int) -> Values:
    """The value of the production ranker that made the log, its bucket drawn for each session."""

    def begin(rows: slice, luck: "_Luck") -> _Policy:
        return _ProductionPolicy(shop, draw_buckets(rows.stop - rows.start, luck("bucket")), luck)

    return _roll_out(shop, population, seed, begin)


@dataclass(frozen=True)
class _Luck:
    """The chunk's generators, by purpose."""

    seed: int
    chunk: int
    device: torch.device

    def __call__(self, purpose: str, page: int = 0) -> Generator:
        return seeded(self.seed, purpose, self.chunk, page, device=self.device)


@torch.no_grad()
def _roll_out(shop: Storefront, population: Shoppers, seed: int, begin: Callable[[slice, _Luck], _Policy]) -> Values:
    chunks = []
    for chunk, first in enumerate(range(0, len(population), CHUNK)):
        rows = slice(first, min(first + CHUNK, len(population)))
        luck = _Luck(seed, chunk, shop.device)
        chunks.append(_session(shop, population[rows], luck, begin(rows, luck)))
    totals = torch.cat(chunks, dim=1).cpu().double().numpy()  # [6, U]
    returns, depth, clicks, purchases, discounted, predicted = totals
    known = {
        "return": returns,
        "depth": depth,
        "clicks": clicks,
        "purchases": purchases,
        "ctr": clicks / (depth * shop.config.slots),
        "discounted_return": discounted,
        "predicted_return": predicted,
        "overestimation": predicted - discounted,
    }
    unknown = np.full_like(returns, np.nan)  # what is asked of fitted user models only
    return {name: known.get(name, unknown) for name in ROLLOUT_METRICS}


def _session(shop: Storefront, shoppers: Shoppers, luck: _Luck, policy: _Policy) -> Tensor:
    """Of one session of each user, [6, B]: expected return, pages, clicks, purchases, the return at the discount of
    the policy's critic, and what that critic had predicted (both nan without a critic)."""
    state = shop.start_session(shoppers.to(str(shop.device)), luck("start"))
    survival = torch.ones(len(state), device=shop.device)  # [B] P(the user is still there)
    totals = torch.zeros(4, len(state), device=shop.device)
    discounted = torch.zeros(len(state), device=shop.device)
    for page in range(shop.config.max_pages):
        candidates = shop.recall(state, luck("recall", page))  # [B, R]
        chosen = policy.choose(state, candidates, page).to(shop.device)  # [B, K]
        chosen = _checked(chosen, candidates.shape[1], shop.config.slots)
        items = candidates.gather(1, chosen)  # [B, K]
        expected = survival * _expected(shop, state, items)
        totals += expected
        discounted += policy.discount**page * expected[0]
        feedback, leave, state = shop.step(state, items, luck("feedback", page))
        policy.observe(items, feedback)
        survival = survival * (1 - leave)
    predicted = torch.full_like(discounted, torch.nan) if policy.predicted is None else policy.predicted
    return torch.cat([totals, discounted[None], predicted.to(discounted)[None]])


def _expected(shop: Storefront, state: ShopState, items: Tensor) -> Tensor:
    """Expected reward, pages (1), clicks and purchases of one page, [4, B]."""
    click = shop.click_probability(state, items)  # [B, K]
    purchase = click * shop.cart_probability(state, items) * shop.purchase_probability(state, items)
    reward = click * shop.click_worth(state, items)
    return torch.stack([reward.sum(1), torch.ones_like(state.mood), click.sum(1), purchase.sum(1)])


def _checked(chosen: Tensor, width: int, slots: int) -> Tensor:
    """``chosen`` [B, K], if it names K distinct candidates."""
    ordered = chosen.sort(dim=1).values
    distinct = bool((ordered[:, 1:] != ordered[:, :-1]).all())
    if chosen.shape[1] != slots or not distinct or ordered.min() < 0 or ordered.max() >= width:
        raise ModelError(
            f"rank_page gave {chosen.shape[1]} slots with candidates {ordered.min()} to {ordered.max()}"
            f"{'' if distinct else ', one of them twice'}. A page needs {slots} distinct ones of 0 to {width - 1}."
        )
    return chosen


class _AgentPolicy:
    """An agent, told of a session what any ranker is told: dense items and their feedback."""

    def __init__(
        self,
        agent: Agent,
        config: AgentConfig,
        task: Task,
        shop: Storefront,
        state: StateBatch,
        users: Tensor,
        vocabulary: Tensor,
    ) -> None:
        self.agent, self.task, self.shop = agent, task, shop
        self.sees_truth = "truth" in config.privileges
        self.state = state.to(task.device)
        self.users, self.vocabulary = users.to(shop.device), vocabulary.to(shop.device)
        self.discount = agent.discount if isinstance(agent, CriticAgent) else float("nan")
        self.predicted: Tensor | None = None

    def choose(self, state: ShopState, candidates: Tensor, page: int) -> Tensor:
        tie = mix64(mix64(self.users, torch.full_like(self.users, page))[:, None], candidates)  # [B, R]
        offered = Candidates(
            items=self.vocabulary[candidates].to(self.task.device),
            mask=torch.ones_like(candidates, dtype=torch.bool, device=self.task.device),
            tie=tie.to(self.task.device),
            truth=ShopView(self.shop, state, candidates) if self.sees_truth else None,
        )
        chosen = rank_page(self.agent, self.state, offered, self.task.rows, self.task.cols)
        if page == 0 and isinstance(self.agent, CriticAgent):
            self.predicted = self.agent.predicted_return(self.state, offered.items.gather(1, chosen))
        return chosen

    def observe(self, items: Tensor, feedback: Tensor) -> None:
        dense = self.vocabulary[items].to(self.task.device)
        self.state = self.state.advance(dense, feedback.to(self.task.device))


class _ProductionPolicy:
    """The shop's own ranker. It has no critic."""

    discount = float("nan")
    predicted: Tensor | None = None

    def __init__(self, shop: Storefront, bucket: Tensor, luck: _Luck) -> None:
        self.shop, self.bucket, self.luck = shop, bucket, luck

    def choose(self, state: ShopState, candidates: Tensor, page: int) -> Tensor:
        return production_page(self.shop, state, candidates, self.bucket, self.luck("ranking", page))[0]

    def observe(self, items: Tensor, feedback: Tensor) -> None:
        pass
