"""The storefront's truth behind the contract of a user model: what a fitted simulator would be if it made no error.

Feedback and exits follow the shop's own equations (``storefront.py``); a state of the log says nothing of a shopper's
hidden taste, so who is behind it is drawn from a population, or given.

Shapes: B users, K slots asked for, S slots of the shop's page, d taste dimensions.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import StateBatch
from models.environments.variants import normals
from models.feedback import Feedback
from models.simulators.base import EMPTY, check_page
from models.simulators.storefront import Shoppers, ShopState, Storefront
from pipeline.errors import ModelError


class StorefrontUsers:
    """Users of ``shop``, drawn from ``population``; where it is ``matched``, row b of a start is its row b.

    ``vocabulary`` [I] is the dense index of each of the shop's items, 0 = not seen in the training window. A page may
    have fewer slots than the shop's: the last ones then stay empty. Raises ModelError for an item that is not in the
    vocabulary, for a page with more slots than the shop's, and for a vocabulary or population that does not fit.
    """

    def __init__(self, shop: Storefront, population: Shoppers, vocabulary: Tensor, matched: bool = False) -> None:
        known = vocabulary[vocabulary > 0]
        different = len(set(known.tolist()))
        if len(vocabulary) != shop.config.n_items or not 0 < different == len(known):
            raise ModelError(f"A vocabulary of {len(vocabulary)} entries, {different} of them different items, was "
                             f"given for {shop.config.n_items} items. Give one dense index an item.")  # fmt: skip
        self.shop, self.blank = _with_blank(shop), shop.config.n_items
        self.population, self.matched = population.to(str(shop.device)), matched
        # What the shop calls each dense index; EMPTY where it has no such item.
        self.numbers = torch.full((int(known.max()) + 1,), EMPTY, device=shop.device)
        self.numbers[known.to(shop.device)] = (vocabulary > 0).nonzero()[:, 0].to(shop.device)

    def reset_width(self) -> int:
        return 1 + 2 * self.shop.config.dim  # who it is, the ranker's view, the drift

    def step_width(self, slots: int) -> int:
        return 3 * slots + 1  # click, cart and purchase of each slot, then whether to leave

    def reset(self, state: StateBatch, draws: Tensor) -> ShopState:
        """The hidden state of B users at the start of a session."""
        if self.matched and len(state) != len(self.population):
            raise ModelError(f"{len(state)} states for a matched population of {len(self.population)}. "
                             "Give one state a shopper, or set matched to false.")  # fmt: skip
        drawn = (draws[:, 0].double() * len(self.population)).long()
        shoppers = self.population if self.matched else self.population[drawn]
        noise = normals(draws[:, 1:]).view(len(draws), 2, -1).movedim(1, 0)  # [2, B, d]
        return self.shop.begin(shoppers, noise)

    def positive_probabilities(self, hidden: ShopState, items: Tensor) -> Tensor:
        """P(click) [B, K] of each of ``items`` [B, K] alone on a page, in its first slot."""
        numbers = self._numbers(items)
        return self.shop.examination[0] * self.shop.attraction(hidden, numbers).sigmoid()

    def step(
        self, hidden: ShopState, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, ShopState]:
        """Show a page ``items`` [B, K], EMPTY where a slot shows nothing: feedback [B, K], leave [B], the state after.

        Where a page is empty, the user leaves.
        """
        slots = items.shape[1]
        missing = self.shop.config.slots - slots
        if missing < 0:
            raise ModelError(f"A page of {slots} slots was shown in a storefront of {self.shop.config.slots}. "
                             "Set rows and cols of the sessions to the storefront's.")  # fmt: skip
        page = F.pad(self._numbers(items), (0, missing), value=self.blank)  # [B, S]
        empty = page == self.blank
        luck = F.pad(draws[:, :-1].reshape(len(items), slots, 3).movedim(2, 0), (0, missing))  # [3, B, S]
        feedback = self.shop.answer(hidden, page, luck, shift).masked_fill(empty, int(Feedback.NONE))
        after = self._rested(self.shop.respond(hidden, page, feedback))
        leave = (draws[:, -1] < self.shop.exit_probability(after, page)) | empty.all(dim=1)
        return feedback[:, :slots], leave, after

    def _numbers(self, items: Tensor) -> Tensor:
        """The shop's numbers of dense ``items``, the blank's where a slot is EMPTY."""
        check_page(items, len(self.numbers))
        numbers = self.numbers[items.clamp(min=0)]
        unknown = (numbers == EMPTY) & (items != EMPTY)
        if unknown.any():
            raise ModelError(f"Item {int(items[unknown][0])} is not in the storefront's vocabulary, so nobody knows "
                             "what it is. Recall known items only.")  # fmt: skip
        return numbers.masked_fill(items == EMPTY, self.blank)

    def _rested(self, after: ShopState) -> ShopState:
        """Nobody tires of the blank."""
        satiation = after.satiation.clone()
        satiation[:, -1] = 0
        return replace(after, satiation=satiation)


def _with_blank(shop: Storefront) -> Storefront:
    """The same shop with one more item, of a category of its own and without properties: what an empty slot shows."""
    larger = copy.copy(shop)
    more = {"n_items": shop.config.n_items + 1, "n_categories": shop.config.n_categories + 1}
    larger.config, larger.world = shop.config.model_copy(update=more), shop.world.model_copy(update=more)
    for name in ("x", "appeal", "quality", "log_price", "price", "badge", "rating", "ranker_error"):
        values = getattr(shop, name)
        setattr(larger, name, torch.cat([values, torch.zeros_like(values[:1])]))
    larger.category = F.pad(shop.category, (0, 1), value=shop.config.n_categories)
    return larger
