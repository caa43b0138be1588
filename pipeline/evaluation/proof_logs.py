"""Logs of the storefront with what no log tells: what other rankers would show, and what that is worth.

In one world a log is the first pages of 10 slots of n users; in the other, a smaller shop, it is their sessions of at
most 3 pages with one item each, which are single decisions as well. Shapes: n users, R candidates, K slots.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.feedback import FIRST_POSITIVE, Feedback
from models.simulators.storefront import ShopState, Storefront, StorefrontConfig, seeded
from models.simulators.storefront_policies import draw_buckets, plackett_luce, production_logits
from pipeline.evaluation.ope.logged import Floats, Ints, LoggedSlates, LoggedSteps, LoggedTrajectories
from pipeline.evaluation.ope.policies import (
    conditional_propensities,
    marginal_propensities,
    sample_slates,
    slot_distributions,
)
from pipeline.evaluation.ope.trajectories import fitted_q

FIRST_PAGES = StorefrontConfig(max_pages=1)
ONE_ITEM = StorefrontConfig(rows=1, cols=1, max_pages=3, n_items=120, recall_size=20)


@dataclass(frozen=True)
class Ranker:
    """The production ranker at another temperature, or with other weights on what the shop shows of an item."""

    name: str
    temperature: float = 1.0
    rating: float = 0.0
    badge: float = 0.0

    def logits(self, shop: Storefront, candidates: Tensor, production: Tensor) -> Tensor:
        """Its logits [n, R], given those of the production ranker."""
        shown = self.rating * shop.rating + self.badge * shop.badge  # [I]
        return (production + shown[candidates]) / self.temperature


LOGGING = Ranker("logging")


@dataclass(frozen=True)
class Pages:
    """A page each of n users: what the log shows of it, and the hidden state that made it."""

    shop: Storefront
    state: ShopState
    candidates: Tensor  # [n, R]
    production: Tensor  # [n, R] logits of the production ranker
    slates: Ints  # [n, K]
    propensities: Floats  # [n, K] as logged, of each item given those above it
    reward: Floats  # [n, K]
    here: Tensor  # [n] bool, whether the user has not left before
    leave: Floats  # [n] chance to leave now

    def __len__(self) -> int:
        return len(self.slates)

    def logits(self, ranker: Ranker) -> Floats:
        return ranker.logits(self.shop, self.candidates, self.production).double().numpy()

    def shown(self, values: Floats) -> Floats:
        """Of the ``values`` [n, R, ..] of all candidates, those of the page, [n, K, ..]."""
        return values[np.arange(len(values))[:, None], self.slates]

    def known(self) -> Floats:
        """What the shop shows of each candidate, and how near it lies to the user's taste as it is known, [n, R, 4]."""
        shop, items = self.shop, self.candidates
        near = (shop.x[items] * self.state.view[:, None]).sum(2)
        return torch.stack([near, shop.badge[items], shop.rating[items], shop.log_price[items]], 2).double().numpy()

    def worth(self, slates: Ints) -> Floats:
        """The expected reward of each slot of other pages, [n, K]."""
        items = self.candidates.gather(1, torch.from_numpy(slates))
        return self.shop.expected_reward(self.state, items).double().numpy()

    def value(self, ranker: Ranker, seed: int) -> float:
        """The expected reward of a page that ``ranker`` would show, from one page drawn for each user."""
        drawn = sample_slates(self.logits(ranker), self.slates.shape[1], np.random.default_rng(seed))
        return float(self.worth(drawn).sum(axis=1).mean())


@torch.no_grad()
def play(shop: Storefront, n: int, seed: int, ranker: Ranker = LOGGING) -> Iterator[Pages]:
    """The pages of one session of each of ``n`` new users under ``ranker``, also of those who have left by then."""
    luck: Callable[..., torch.Generator] = partial(seeded, seed)
    state = shop.start_session(shop.population(n, luck("users")), luck("start"))
    bucket, here = draw_buckets(n, luck("bucket")), torch.ones(n, dtype=torch.bool)
    for page in range(shop.config.max_pages):
        candidates = shop.recall(state, luck("recall", page))
        production = production_logits(shop, state, candidates, bucket)
        logits = ranker.logits(shop, candidates, production)
        slates, propensities = plackett_luce(logits, shop.config.slots, luck("ranking", page))
        feedback, leave, after = shop.step(state, candidates.gather(1, slates), luck("feedback", page))
        yield Pages(shop, state, candidates, production, slates.numpy(), propensities.double().numpy(),
                    _reward(shop, feedback), here, leave.double().numpy())  # fmt: skip
        here, state = here & (torch.rand(n, generator=luck("exit", page)) >= leave), after


def _reward(shop: Storefront, feedback: Tensor) -> Floats:
    c = shop.config
    bought = c.purchase_reward * (feedback == int(Feedback.PURCHASE))
    return (c.click_reward * (feedback >= int(FIRST_POSITIVE)) + bought).double().numpy()


def session_value(shop: Storefront, n: int, seed: int, ranker: Ranker) -> float:
    """V = Σ_t (Π_{τ<t} (1 − h_τ))·E[r_t] of ``n`` sessions under ``ranker``; h is the chance to leave."""
    value, survival = np.zeros(n), np.ones(n)
    for pages in play(shop, n, seed, ranker):
        value += survival * pages.worth(pages.slates).sum(axis=1)
        survival *= 1 - pages.leave
    return float(value.mean())


# ---- what a ranker is judged by


def judged_pages(pages: Pages, ranker: Ranker, marginals: bool = False) -> LoggedSlates:
    """The pages' log with the propensities of ``ranker``; those of a slot alone take most of the time."""
    logits, slates = pages.logits(ranker), pages.slates
    logged = LoggedSlates(pages.reward, pages.propensities, conditional_propensities(logits, slates),
                          np.ones(slates.shape, bool), np.arange(len(slates)))  # fmt: skip
    if not marginals:
        return logged
    behaviour, target = (marginal_propensities(x, slates) for x in (pages.logits(LOGGING), logits))
    return replace(logged, behaviour_marginal=behaviour, target_marginal=target)


def with_fitted_model(logged: LoggedSlates, pages: Pages, ranker: Ranker) -> LoggedSlates:
    """With cascade-DR's model as anybody could fit it: a linear FQE down the slots, from what the log shows."""
    n, slots = pages.slates.shape
    known, depth = pages.known(), np.linspace(0, 1, slots)[:, None]

    def features(items: Floats) -> Floats:
        """One row a slot, [n·K, K + 8], of what is known of its item, [n, K, 4]."""
        at = np.broadcast_to(np.eye(slots), (n, slots, slots))
        return np.concatenate([at, items, items * depth], axis=2).reshape(n * slots, -1)

    steps = LoggedTrajectories(
        np.repeat(np.arange(n), slots), np.tile(np.arange(slots), n), logged.reward.ravel(), logged.behaviour.ravel(),
        logged.target.ravel(), np.repeat(np.arange(n), slots), features=features(pages.shown(known)),
        target_features=features(slot_distributions(pages.logits(ranker), pages.slates) @ known),
    )  # fmt: skip
    q_logged, v_target = fitted_q(steps)
    return replace(logged, q_logged=q_logged.reshape(n, slots), v_target=v_target.reshape(n, slots))


def with_true_model(logged: LoggedSlates, pages: Pages, ranker: Ranker, seed: int) -> LoggedSlates:
    """With what ``ranker`` would truly get from each slot on: q_k given slots 1..k, v_k given slots 1..k−1.

    Below each prefix of the logged page one rest is drawn from ``ranker``, whose expected reward is known: noise of
    mean 0 in q and v, which leaves an estimate that is linear in both as unbiased as it was.
    """
    rng, logits, (n, slots) = np.random.default_rng(seed), pages.logits(ranker), pages.slates.shape
    onwards = np.empty((slots + 1, n, slots))  # [K + 1, n, K] reward from a slot on, below a prefix of 0..K slots
    for kept in range(slots + 1):
        above = pages.slates[:, :kept]
        left = logits.copy()
        np.put_along_axis(left, above, -np.inf, axis=1)
        slates = np.hstack([above, sample_slates(left, slots - kept, rng)])
        onwards[kept] = pages.worth(slates)[:, ::-1].cumsum(axis=1)[:, ::-1]
    here = np.arange(slots)
    return replace(logged, q_logged=onwards[here + 1, :, here].T, v_target=onwards[here, :, here].T)


def judged_steps(pages: Pages, ranker: Ranker) -> LoggedSteps:
    """Pages of one item as single decisions, with the model that is exactly right."""
    target = slot_distributions(pages.logits(ranker), pages.slates)[:, 0]  # [n, R]
    q = pages.shop.expected_reward(pages.state, pages.candidates).double().numpy()  # [n, R] each on a page of its own
    return LoggedSteps(pages.reward[:, 0], pages.propensities[:, 0], pages.shown(target)[:, 0], np.arange(len(q)),
                       pages.shown(q)[:, 0], (target * q).sum(axis=1))  # fmt: skip


def judged_sessions(played: list[Pages], ranker: Ranker) -> LoggedTrajectories:
    """Sessions of pages with one item, with a model that is fitted on what the log shows."""
    here = torch.stack([pages.here for pages in played], dim=1).numpy()  # [n, T]
    user, step = np.nonzero(here)

    def rows(values: list[Floats]) -> Floats:
        made: Floats = np.stack(values, axis=1)[here]  # [n, T, ..] to the steps that were made
        return made

    def features(items: list[Floats]) -> Floats:
        """One row a step, of what is known of its item [n, 4], apart for each step."""
        at = np.eye(len(played))[step]  # [steps, T]
        return np.hstack([at, (at[:, :, None] * rows(items)[:, None]).reshape(len(at), -1)])

    target = [slot_distributions(pages.logits(ranker), pages.slates) for pages in played]  # [n, 1, R] each
    known = [pages.known() for pages in played]
    logged = LoggedTrajectories(
        user, step, rows([pages.reward[:, 0] for pages in played]), rows([p.propensities[:, 0] for p in played]),
        rows([pages.shown(t[:, 0])[:, 0] for pages, t in zip(played, target, strict=True)]), user,
        features=features([pages.shown(k)[:, 0] for pages, k in zip(played, known, strict=True)]),
        target_features=features([(t @ k)[:, 0] for t, k in zip(target, known, strict=True)]),
    )  # fmt: skip
    q_logged, v_target = fitted_q(logged)
    return replace(logged, q_logged=q_logged, v_target=v_target)


# ---- logs of other sizes


def users(logged: LoggedSlates | LoggedSteps | LoggedTrajectories) -> int:
    """How many users a log has; each has one page, one decision or one session."""
    return len(np.unique(logged.user_key))


def resized(logs: Sequence[Any], n: int) -> list[Any]:
    """The same rows in logs of the same kind with ``n`` users each; a rest is left out."""
    columns: dict[str, Any] = {}
    for field in fields(logs[0]):
        parts = [getattr(log, field.name) for log in logs]
        columns[field.name] = None if parts[0] is None else np.concatenate(parts)
    before = np.cumsum([0, *map(users, logs)])
    of_user = columns["user_key"] + np.repeat(before[:-1], [len(log) for log in logs])  # numbered through
    columns |= {name: of_user for name in ("user_key", "session_id") if name in columns}
    edges = np.searchsorted(of_user, np.arange(0, before[-1] + 1, n))
    return [
        type(logs[0])(**{name: None if x is None else x[first:last] for name, x in columns.items()})
        for first, last in pairwise(edges)
    ]
