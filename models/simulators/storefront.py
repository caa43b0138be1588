"""The embedded shop whose truth is known: users, items, pages, clicks and exits, batched over users.

Users have a drifting taste, are tired by repeated categories (satiation) and kept by good items (mood), so a ranker
that acts for the whole session beats the one that takes the best page. With e_k the chance that slot k is looked at:

    P(click)  = e_k·σ(−3 + 2.2·θ·x + 0.7·a − 0.35·κ·ρ − 1.2·s_c + 0.1·μ − 0.6·same-category share of the neighbours)
    P(cart | click)    = σ(−1.15 + 0.7·q − 0.5·κ·ρ + 0.8·θ·x)
    P(purchase | cart) = σ(−0.9 + 0.5·q + 0.1·μ)
    P(exit)   = σ(−1.6 − 0.5·μ + 0.9·(s·shares of the page − 0.5) − π), after the page

for taste θ, price sense κ, patience π, satiation s, mood μ; item vector x, appeal a, quality q, log-price ρ. The
equations are this project's own; the click is a position-based model (Craswell et al., WSDM 2008, §3).

Shapes: B users, I items, C categories, d taste dimensions, R recalled candidates, K = rows·cols slots, row by row.
All randomness comes from explicit generators, so two policies can meet the same users, recalls and click uniforms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Generator, Tensor

from models.base import TensorBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.simulators import storefront_policies as policies


class StorefrontConfig(BaseModel):
    """Every coefficient of the shop. The defaults are the measured recipe; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 7  # of the catalogue
    myopic_world: bool = False  # the negative control: nothing that is shown changes tastes, clicks or exits later

    n_items: int = Field(600, ge=1)
    n_categories: int = Field(12, ge=3)  # balanced over the items
    dim: int = Field(8, ge=1)  # d of tastes and item vectors
    item_spread: float = 0.24  # of item vectors around their category's centre
    clickbait: float = Field(0.5, ge=0, le=1)  # minus the correlation of quality with appeal
    price_item: float = 0.7  # spread of the standardised log-price within a category
    price_category: float = 0.3  # and between categories
    price_median: float = 20.0  # in the shop's currency
    price_scale: float = 0.8  # log-price of one standard unit
    badge_noise: float = 0.5  # badge = appeal + noise
    rating_noise: float = 0.35  # rating = quality + noise

    rows: int = Field(5, ge=1)  # of a page
    cols: int = Field(2, ge=1)
    examine_row: float = 0.20  # loss of log-examination a row
    examine_col: float = 0.12  # and a column

    home_noise: float = 0.12  # of the home taste around its three categories
    price_sense_spread: float = 0.4  # of log price sense between users
    patience_spread: float = 0.4  # of patience between users
    view_noise: float = 0.5  # of the ranker's stale view of a taste, times 1/√d
    drift_keep: float = 0.9  # of the taste from session to session; the rest goes back home
    drift_noise: float = 0.25  # of that drift, times 1/√d
    taste_step: float = 0.06  # how far a click moves the taste

    recall_size: int = Field(50, ge=1)  # candidates a page
    recall_view: float = 1.5  # weight of the stale view in recall, beside Gumbel noise

    click_bias: float = -3.0
    click_taste: float = 2.2
    click_appeal: float = 0.7
    click_price: float = -0.35  # times the user's price sense
    click_satiation: float = -1.2
    click_mood: float = 0.1
    click_neighbours: float = -0.6  # share of the adjacent slots with the same category
    cart_bias: float = -1.15
    cart_quality: float = 0.7
    cart_price: float = -0.5  # times the user's price sense
    cart_taste: float = 0.8
    purchase_bias: float = -0.9
    purchase_quality: float = 0.5
    purchase_mood: float = 0.1
    click_reward: float = 1.0
    purchase_reward: float = 4.0  # on top of the click's

    satiation_keep: float = 0.85  # from page to page
    satiation_click: float = 0.15  # for each click, beside the share of the page
    mood_keep: float = 0.7  # from page to page
    mood_shown: float = 0.4  # examination-weighted quality of the page
    mood_clicked: float = 0.15  # quality of what was clicked
    mood_no_click: float = -0.06
    mood_limit: float = 3.0
    exit_bias: float = -1.6
    exit_mood: float = -0.5
    exit_satiation: float = 0.9  # times (satiation in what was shown − exit_ease)
    exit_ease: float = 0.5
    exit_patience: float = -1.0
    max_pages: int = Field(25, ge=1)  # of a session

    ranker_view: float = 1.6  # production ranker: weight of its stale view
    ranker_appeal: float = 0.7
    ranker_error: float = 0.5  # spread of its fixed error on each item
    farsighted_quality: float = 1.0  # oracle_farsighted: worth of quality in an examined slot
    farsighted_satiation: float = -0.8  # and of a category that already tires

    @model_validator(mode="after")
    def _enough_items(self) -> Self:
        needed = self.recall_size + (self.max_pages - 1) * self.slots
        if self.recall_size < self.slots or self.n_items < max(needed, self.n_categories):
            raise ValueError(
                f"n_items={self.n_items}, recall_size={self.recall_size}: a session of {self.max_pages} pages of "
                f"{self.slots} new items needs recall_size >= {self.slots} and n_items >= {needed}"
            )
        return self

    @property
    def slots(self) -> int:
        return self.rows * self.cols

    def without_future(self) -> StorefrontConfig:
        """The same shop where no page changes a later one (only that an item is not shown twice remains)."""
        names = ("click_satiation", "click_mood", "purchase_mood", "exit_mood", "exit_satiation", "taste_step")
        return self.model_copy(update=dict.fromkeys(names, 0.0))


@dataclass(frozen=True)
class Shoppers(TensorBatch):
    """What stays of B users between sessions."""

    home: Tensor  # [B, d] unit length
    taste: Tensor  # [B, d] unit length
    price_sense: Tensor  # [B] > 0
    patience: Tensor  # [B]

    def __len__(self) -> int:
        return len(self.patience)


@dataclass(frozen=True)
class ShopState(TensorBatch):
    """B users just before a page of a session."""

    shoppers: Shoppers
    view: Tensor  # [B, d] the ranker's stale view of the taste: all that recall and production ranker know
    mood: Tensor  # [B]
    satiation: Tensor  # [B, C]
    shown: Tensor  # [B, I] bool, in this session

    def __len__(self) -> int:
        return len(self.mood)


class Storefront:
    """The shop. Its items show category, price, x, badge and rating; their appeal and quality are hidden."""

    def __init__(self, config: StorefrontConfig, device: str = "cpu") -> None:
        self.config = config
        self.world = config.without_future() if config.myopic_world else config
        self.device = torch.device(device)
        self._draw_catalogue()
        self._lay_out_page()

    def _draw_catalogue(self) -> None:
        c = self.config
        generator = seeded(c.seed, "catalogue")  # on the CPU, so that every device has the same items

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        centres = F.normalize(normal(c.n_categories, c.dim), dim=1)  # [C, d]
        category = torch.arange(c.n_items) % c.n_categories  # [I]
        x = F.normalize(centres[category] + c.item_spread * normal(c.n_items, c.dim), dim=1)  # [I, d]
        appeal = normal(c.n_items)
        quality = -c.clickbait * appeal + math.sqrt(1 - c.clickbait**2) * normal(c.n_items)
        log_price = c.price_item * normal(c.n_items) + c.price_category * normal(c.n_categories)[category]
        self.centres = centres.to(self.device)
        self.category = category.to(self.device)
        self.x = x.to(self.device)
        self.appeal = appeal.to(self.device)
        self.quality = quality.to(self.device)
        self.log_price = log_price.to(self.device)  # [I] standardised
        self.price = c.price_median * torch.exp(c.price_scale * self.log_price)
        self.badge = self.appeal + c.badge_noise * normal(c.n_items).to(self.device)
        self.rating = self.quality + c.rating_noise * normal(c.n_items).to(self.device)
        self.ranker_error = c.ranker_error * normal(c.n_items).to(self.device)

    def _lay_out_page(self) -> None:
        c = self.config
        slot = torch.arange(c.slots)
        row, col = slot // c.cols, slot % c.cols
        distance = (row[:, None] - row).abs() + (col[:, None] - col).abs()
        adjacent = (distance == 1).float()
        neighbours = adjacent / adjacent.sum(1, keepdim=True).clamp(min=1)
        self.neighbours = neighbours.to(self.device)  # [K, K] rows sum to 1
        self.examination = torch.exp(-c.examine_row * row - c.examine_col * col).to(self.device)  # [K]
        self.attention = self.examination / self.examination.sum()  # [K] ē

    # ---- users

    def population(self, n_users: int, generator: Generator) -> Shoppers:
        """New users at home: a mix of three categories, a price sense and a patience each."""
        c = self.config
        three = torch.rand(n_users, c.n_categories, generator=generator, device=self.device).topk(3).indices  # [B, 3]
        weights = 0.3 + torch.rand(n_users, 3, generator=generator, device=self.device)
        mix = (self.centres[three] * weights[:, :, None]).sum(1)  # [B, d]
        home = F.normalize(mix + c.home_noise * self._normal(n_users, c.dim, generator=generator), dim=1)
        price_sense = torch.exp(c.price_sense_spread * self._normal(n_users, generator=generator))
        patience = c.patience_spread * self._normal(n_users, generator=generator)
        return Shoppers(home, home.clone(), price_sense, patience)

    def start_session(self, shoppers: Shoppers, generator: Generator) -> ShopState:
        """The ranker's view is taken, then the taste drifts; mood and satiation start at 0."""
        return self.begin(shoppers, self._normal(2, len(shoppers), self.config.dim, generator=generator))

    def begin(self, shoppers: Shoppers, noise: Tensor) -> ShopState:
        """``start_session`` with standard normal ``noise`` [2, B, d] of the view and of the drift."""
        c = self.config
        noise = noise / math.sqrt(c.dim)
        view = F.normalize(shoppers.taste + c.view_noise * noise[0], dim=1)
        drifted = c.drift_keep * shoppers.taste + (1 - c.drift_keep) * shoppers.home + c.drift_noise * noise[1]
        return ShopState(
            shoppers=replace(shoppers, taste=F.normalize(drifted, dim=1)),
            view=view,
            mood=torch.zeros(len(shoppers), device=self.device),
            satiation=torch.zeros(len(shoppers), c.n_categories, device=self.device),
            shown=torch.zeros(len(shoppers), c.n_items, dtype=torch.bool, device=self.device),
        )

    # ---- one page

    def recall(self, state: ShopState, generator: Generator) -> Tensor:
        """Candidates [B, R], a softmax sample of the items not yet shown in the session (Gumbel top-R).

        They come in the order of their numbers, which tells a ranker nothing.
        """
        noise = policies.gumbel(state.shown.shape, generator)
        scores = torch.addmm(noise, state.view, self.x.T, alpha=self.world.recall_view)  # [B, I]
        drawn = scores.masked_fill_(state.shown, -torch.inf).topk(self.world.recall_size, sorted=False).indices
        return drawn.sort(dim=1).values

    def attraction(self, state: ShopState, items: Tensor) -> Tensor:
        """The click's logit [B, K] of examined items, before the neighbours' effect."""
        c = self.world
        affordable = state.shoppers.price_sense[:, None] * self.log_price[items]
        return (
            c.click_bias
            + c.click_taste * self._affinity(state, items)
            + c.click_appeal * self.appeal[items]
            + c.click_price * affordable
            + c.click_satiation * state.satiation.gather(1, self.category[items])
            + c.click_mood * state.mood[:, None]
        )

    def click_probability(self, state: ShopState, items: Tensor, shift: Tensor | None = None) -> Tensor:
        """P(click) [B, K] of a full page ``items`` [B, K], laid out row by row; the logits move by ``shift`` [B]."""
        category = self.category[items]
        same = (category[:, :, None] == category[:, None, :]).float()  # [B, K, K]
        crowding = (same * self.neighbours).sum(2)  # [B, K] share of the neighbours
        logits = self.attraction(state, items) + self.world.click_neighbours * crowding
        if shift is not None:
            logits = logits + shift[:, None]
        return self.examination * torch.sigmoid(logits)

    def cart_probability(self, state: ShopState, items: Tensor) -> Tensor:
        """P(cart | click) [B, K]."""
        c = self.world
        affordable = state.shoppers.price_sense[:, None] * self.log_price[items]
        quality = c.cart_quality * self.quality[items]
        return torch.sigmoid(
            c.cart_bias + quality + c.cart_price * affordable + c.cart_taste * self._affinity(state, items)
        )

    def purchase_probability(self, state: ShopState, items: Tensor) -> Tensor:
        """P(purchase | cart) [B, K]."""
        c = self.world
        return torch.sigmoid(
            c.purchase_bias + c.purchase_quality * self.quality[items] + c.purchase_mood * state.mood[:, None]
        )

    def click_worth(self, state: ShopState, items: Tensor) -> Tensor:
        """E[reward | click] [B, K]."""
        bought = self.cart_probability(state, items) * self.purchase_probability(state, items)
        return self.world.click_reward + self.world.purchase_reward * bought

    def expected_reward(self, state: ShopState, items: Tensor) -> Tensor:
        """E[reward] of each slot of a full page, [B, K]."""
        return self.click_probability(state, items) * self.click_worth(state, items)

    def step(self, state: ShopState, items: Tensor, generator: Generator) -> tuple[Tensor, Tensor, ShopState]:
        """Show a page [B, K]: sampled Feedback codes [B, K], the probability of leaving now [B], the state after it."""
        luck = torch.rand(3, *items.shape, generator=generator, device=self.device)
        feedback = self.answer(state, items, luck)
        after = self.respond(state, items, feedback)
        return feedback, self.exit_probability(after, items), after

    def answer(self, state: ShopState, items: Tensor, luck: Tensor, shift: Tensor | None = None) -> Tensor:
        """Feedback codes [B, K] to a page [B, K] from uniform ``luck`` [3, B, K] of clicks, carts and purchases."""
        clicked = luck[0] < self.click_probability(state, items, shift)
        carted = clicked & (luck[1] < self.cart_probability(state, items))
        bought = carted & (luck[2] < self.purchase_probability(state, items))
        feedback = torch.where(clicked, int(Feedback.CLICK), int(Feedback.SKIP))
        return feedback.masked_fill(carted, int(Feedback.CART)).masked_fill(bought, int(Feedback.PURCHASE))

    def respond(self, state: ShopState, items: Tensor, feedback: Tensor) -> ShopState:
        """The state after the page ``items`` [B, K] came back with ``feedback`` [B, K]: deterministic."""
        c = self.world
        clicked = (feedback >= FIRST_POSITIVE).float()  # [B, K]
        quality = self.quality[items]
        tired = (1 / c.slots + c.satiation_click * clicked).type_as(state.satiation)
        satiation = (c.satiation_keep * state.satiation).scatter_add(1, self.category[items], tired)
        mood = (
            c.mood_keep * state.mood
            + c.mood_shown * (quality * self.attention).sum(1)
            + c.mood_clicked * (quality * clicked).sum(1)
            + c.mood_no_click * (clicked.sum(1) == 0)
        )
        moved = state.shoppers.taste + c.taste_step * (self.x[items] * clicked[:, :, None]).sum(1)
        return ShopState(
            shoppers=replace(state.shoppers, taste=F.normalize(moved, dim=1)),
            view=state.view,
            mood=mood.clamp(-c.mood_limit, c.mood_limit),
            satiation=satiation,
            shown=state.shown.scatter(1, items, True),
        )

    def exit_probability(self, after: ShopState, items: Tensor) -> Tensor:
        """P(leave) [B] after the page ``items``, from the state ``after`` it. The length cap is the caller's."""
        c = self.world
        boredom = after.satiation.gather(1, self.category[items]).mean(1)  # satiation · shares of the page
        return torch.sigmoid(
            c.exit_bias
            + c.exit_mood * after.mood
            + c.exit_satiation * (boredom - c.exit_ease)
            + c.exit_patience * after.shoppers.patience
        )

    def oracle_page(self, state: ShopState, candidates: Tensor, farsighted: bool) -> Tensor:
        """The page of an oracle that knows this state, as indices [B, K] into ``candidates`` [B, R]."""
        return policies.oracle_page(self, state, candidates, farsighted)

    def _affinity(self, state: ShopState, items: Tensor) -> Tensor:
        return _dot(state.shoppers.taste, self.x[items])

    def _normal(self, *shape: int, generator: Generator) -> Tensor:
        return torch.randn(*shape, generator=generator, device=self.device)


def seeded(seed: int, *purpose: int | str, device: torch.device | str = "cpu") -> Generator:
    """A generator fixed by (seed, purpose): common random numbers for every policy that asks for the same purpose."""
    words = [part if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in purpose]
    state = np.random.SeedSequence([seed % 2**64, *words]).generate_state(1, np.uint64)[0]
    return Generator(device).manual_seed(int(state) >> 1)


def _dot(users: Tensor, vectors: Tensor) -> Tensor:
    """Inner products [B, K] of users [B, d] with their items' vectors [B, K, d]."""
    return torch.einsum("bd,bkd->bk", users, vectors)
