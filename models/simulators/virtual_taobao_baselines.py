"""What a policy that learns nothing reaches in Virtual Taobao: the rows that every table about it must carry.

CTR = Σ clicks / Σ pages / 10 over users, with the standard error of a ratio of sums, on sessions of one page and on
full ones. The best constant action is found by a cross-entropy search over constants alone, on other users than it is
judged on: it knows nothing of the user and comes near a CTR of 1, so whatever stays below it has learnt little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from models.hashing import mix64, uniforms
from models.simulators.virtual_taobao import ACTION, SLOTS, VirtualTaobao, Visit
from pipeline.errors import ConfigError

SEARCH_USERS, RESTARTS, ITERATIONS, SAMPLES, ELITES = 256, 6, 30, 64, 8
RESET, POLICY = 0, -1  # counters of the draws of users and of random actions; those of a page's answers are 1, 2, …
Policy = Callable[[Tensor, Tensor, int], Tensor]  # observations [B, 91], the users' keys [B], the page → [B, 27]


@dataclass(frozen=True)
class Row:
    policy: str
    one_page: bool
    ctr: float
    standard_error: float


def baseline_rows(model: VirtualTaobao, users: int, seed: int) -> list[Row]:
    """Random actions, zeros, ones and the best constant on the same users, on one page and on full sessions."""
    zeros = torch.zeros(ACTION, device=model.device)
    policies = {
        "random actions": random_policy,
        "constant: zeros": constant_policy(zeros),
        "constant: ones": constant_policy(zeros + 1),
        "constant: best found": constant_policy(best_constant(model, seed)),
    }
    return [
        Row(name, pages == 1, *click_through_rate(model, policy, users, seed, pages))
        for pages in (1, model.max_pages)
        for name, policy in policies.items()
    ]


def baseline_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = "| policy | sessions | CTR | standard error |\n| --- | --- | ---: | ---: |"
    lines = [
        f"| {row.policy} | {'one page' if row.one_page else 'full'} | {row.ctr:.4f} | {row.standard_error:.4f} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def random_policy(observations: Tensor, keys: Tensor, page: int) -> Tensor:
    """Uniform actions in [-1, 1)."""
    return 2 * uniforms(keys, POLICY, page, width=ACTION) - 1


def constant_policy(action: Tensor) -> Policy:
    """The same ``action`` [27] for all users and pages."""
    return lambda observations, keys, page: action.expand(len(keys), -1)


def click_through_rate(
    model: VirtualTaobao, policy: Policy, users: int, seed: int, max_pages: int
) -> tuple[float, float]:
    """The CTR of a policy over whole sessions, cut at ``max_pages``, and its standard error."""
    if users < 2:
        raise ConfigError(f"A standard error needs at least 2 users, not {users}. Give some thousands.")
    keys = mix64(torch.full((users,), seed), torch.arange(users)).to(model.device)  # [B]
    visit = model.reset(users, uniforms(keys, RESET, width=model.reset_width()))
    clicks, pages = torch.zeros(2, users, dtype=torch.float64, device=model.device)
    rows = torch.arange(users, device=model.device)
    for page in range(max_pages):
        actions = policy(model.observation(visit), keys[rows], page)
        _, leave, visit = model.step(visit, actions, uniforms(keys[rows], page + 1, width=model.step_width()))
        clicks[rows] += visit.clicks
        pages[rows] += 1
        rows, visit = rows[~leave], visit[~leave]
        if not len(rows):
            break
    ratio = clicks.sum() / pages.sum()
    error = (clicks - ratio * pages).std() * sqrt(users) / pages.sum()  # the delta method
    return float(ratio) / SLOTS, float(error) / SLOTS


def best_constant(model: VirtualTaobao, seed: int) -> Tensor:
    """The constant action [27] with the highest expected CTR that a cross-entropy search found, over some restarts.

    It is judged on users at a page of their session each, as likely an early as a late one.
    """
    random = torch.Generator().manual_seed(seed)
    draws = torch.rand(SEARCH_USERS, model.reset_width() + 1, generator=random).to(model.device)
    visit = model.reset(SEARCH_USERS, draws[:, 1:])
    visit = replace(visit, page=(draws[:, 0] * visit.length).long())
    found = [_search(model, visit, random) for _ in range(RESTARTS)]
    return max(found, key=lambda pair: pair[0])[1]


def _search(model: VirtualTaobao, visit: Visit, random: torch.Generator) -> tuple[float, Tensor]:
    """The best expected CTR over all samples, and its action. Each iteration draws around the last one's elites."""
    mean, spread = torch.zeros(ACTION), torch.ones(ACTION)
    best = (-1.0, mean)
    for _ in range(ITERATIONS):
        samples = (mean + spread * torch.randn(SAMPLES, ACTION, generator=random)).clamp(-1, 1)  # [S, 27]
        actions = samples.to(model.device).expand(len(visit), -1, -1)  # [B, S, 27]
        expected = model.positive_probabilities(visit, actions).mean(dim=0).cpu()  # [S]
        elites = samples[expected.topk(ELITES).indices]  # best first
        best = max(best, (float(expected.max()), elites[0]), key=lambda pair: pair[0])
        mean, spread = elites.mean(dim=0), elites.std(dim=0) + 0.02  # which never stops to look around
    return best[0], best[1].to(model.device)
