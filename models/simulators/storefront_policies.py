"""The rankers that belong to the storefront: the one that makes its log, and two oracles that see its truth.

Shapes: B users, R candidates, K slots in row-major order. A page is given as indices [B, K] into the candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from models.simulators.storefront import ShopState, Storefront

BUCKETS = (-0.6, 0.0, 0.6)  # weights of the rating in the production ranker: three arms of an experiment


def draw_buckets(n_sessions: int, generator: Generator) -> Tensor:
    """The arm of the experiment that each session falls into, [B]."""
    arms = torch.tensor(BUCKETS, device=generator.device)
    return arms[torch.randint(len(arms), (n_sessions,), generator=generator, device=generator.device)]


def production_logits(shop: Storefront, state: ShopState, items: Tensor, bucket: Tensor) -> Tensor:
    """Logits [B, R] of the production ranker: its stale view, the appeal, its fixed error, and bucket · rating."""
    c = shop.config
    known = torch.einsum("bd,brd->br", state.view, shop.x[items])
    fixed = c.ranker_appeal * shop.appeal + shop.ranker_error  # [I]
    return c.ranker_view * known + fixed[items] + bucket[:, None] * shop.rating[items]


def production_page(
    shop: Storefront, state: ShopState, candidates: Tensor, bucket: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """A page of the production ranker, [B, K], and the propensity of each item in its slot given those above it."""
    return plackett_luce(production_logits(shop, state, candidates, bucket), shop.config.slots, generator)


def plackett_luce(logits: Tensor, slots: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Softmax without replacement over ``logits`` [B, R]: indices [B, slots] and the conditional propensity of each.

    Sampled by sorting logits + Gumbel noise (Yellott, 1977); propensity_k = exp(l_k) / Σ_{j not above k} exp(l_j).
    """
    order = (logits + gumbel(logits.shape, generator)).argsort(dim=1, descending=True)  # [B, R]
    ranked = logits.gather(1, order)
    left = ranked.flip(1).logcumsumexp(1).flip(1)  # [B, R] log of the mass not yet placed
    return order[:, :slots], (ranked - left)[:, :slots].exp()


def gumbel(shape: torch.Size, generator: Generator) -> Tensor:
    """Standard Gumbel noise: minus the log of an exponential variable."""
    noise = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    return noise.log_().neg_()


def oracle_page(shop: Storefront, state: ShopState, candidates: Tensor, farsighted: bool) -> Tensor:
    """Each slot in turn takes the candidate that raises the page's value most, [B, K].

    The value is the page's expected reward, with what neighbours cost each other (a slot already filled loses too).
    ``farsighted`` adds ē_k·(quality_weight·q + satiation_weight·s_c): worth for the pages to come.
    """
    category = shop.category[candidates]  # [B, R]
    logits, worth = shop.attraction(state, candidates), shop.click_worth(state, candidates)
    later = _later_worth(shop, state, candidates) if farsighted else torch.zeros_like(logits)
    rows = torch.arange(len(candidates), device=candidates.device)
    taken = torch.zeros_like(candidates, dtype=torch.bool)
    crowding = torch.zeros(
        shop.config.slots, len(candidates), device=candidates.device
    )  # [K, B] by slots filled so far
    page: list[Tensor] = []
    for slot in range(shop.config.slots):
        adjacent = [j for j in range(slot) if shop.neighbours[slot, j] > 0]
        same = {j: category == category[rows, page[j]][:, None] for j in adjacent}  # [B, R] each
        own = sum((shop.neighbours[slot, j] * same[j] for j in adjacent), torch.zeros_like(logits))
        gain = _reward(shop, slot, logits, worth, own) + shop.attention[slot] * later
        for j in adjacent:
            placed = logits[rows, page[j]], worth[rows, page[j]]
            crowded = _reward(shop, j, *placed, crowding[j] + shop.neighbours[j, slot])
            gain += same[j] * (crowded - _reward(shop, j, *placed, crowding[j]))[:, None]
        best = gain.masked_fill(taken, -torch.inf).argmax(1)  # [B]
        for j in adjacent:
            crowding[j] += shop.neighbours[j, slot] * same[j][rows, best]
        crowding[slot] = own[rows, best]
        taken[rows, best] = True
        page.append(best)
    return torch.stack(page, dim=1)


def _later_worth(shop: Storefront, state: ShopState, items: Tensor) -> Tensor:
    tired = state.satiation.gather(1, shop.category[items])
    return shop.config.farsighted_quality * shop.quality[items] + shop.config.farsighted_satiation * tired


def _reward(shop: Storefront, slot: int, logits: Tensor, worth: Tensor, crowding: Tensor) -> Tensor:
    """Expected reward of items in ``slot`` when the share ``crowding`` of its neighbours is of their category."""
    return shop.examination[slot] * torch.sigmoid(logits + shop.world.click_neighbours * crowding) * worth
