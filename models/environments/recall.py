"""Which items may be ranked next: candidate pools for B users at once, without a pass over the catalogue.

A pool is drawn, not enumerated: proposals come one after the other from the recall's distribution, with replacement,
and the first R different items not yet shown in the session stay (so they are a softmax sample without replacement,
Yellott 1977, up to the number of proposals). What is missing then is filled by popularity, then by a walk through the
catalogue, and only when every item was shown do items come again.

Sources: Zhao et al., "Deep Reinforcement Learning for Page-wise Recommendations", RecSys 2018, Algorithm 1 (similar
items of each positive; no size is given); Zhao et al., "MaHRL", SIGIR 2020, Eq. 9 (the 1,000 most related items).
Neither says what users are offered of whom nothing is known: popular items here.

Shapes: B users, R candidates, S items shown so far, N history, I known items (dense indices 1 to I), E dimensions.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Catalogue, StateBatch, Task
from models.hashing import uniforms
from pipeline.errors import ConfigError

PROPOSALS = 3  # for each candidate: few users then lack any
BLOCK = 2**24  # similarities at a time: bounds the memory
PERSONAL, POPULAR, WALK = range(3)  # purposes of draws


class Recall(Protocol):
    """Draws candidate pools."""

    n_items: int  # that can be recalled

    def __call__(self, state: StateBatch, shown: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Pools of ``size`` for users who were shown ``shown`` [B, S] in this session (0 pads).

        ``keys`` [B] int64 fix this page's luck. Returns dense indices [B, R], distinct in a row and in ascending
        order, and their mask [B, R]: False where the catalogue has fewer items, with item 0. Item 0 is never recalled.
        """
        ...


class _Recall:
    """What all recalls share. A subclass proposes items; the rest of a pool comes from the whole catalogue."""

    by_popularity = True  # the fill

    def __init__(self, task: Task) -> None:
        self.n_items = len(task.catalogue) - 1
        if self.n_items < 1:
            raise ConfigError("The catalogue has no known item, so no candidate can be recalled. "
                              "Move the cut-offs in `splits`, or give a longer log.")  # fmt: skip
        self.device = torch.device(task.device)
        weights = task.catalogue.popularity[1:].double()
        if not self.by_popularity or not weights.sum() > 0:
            weights = torch.ones_like(weights)
        self.shares = (weights.cumsum(0) / weights.sum()).to(self.device)  # [I] cumulative
        # A fixed shuffle, because neighbours in dense order may be alike.
        self.path = 1 + torch.randperm(self.n_items, generator=torch.Generator().manual_seed(0)).to(self.device)  # [I]

    def proposals(self, state: StateBatch, shown: Tensor, keys: Tensor, size: int) -> Tensor:
        """Items in the order of their draw, [B, any number], 0 = none. They may repeat and may have been shown."""
        return self.drawn(keys, PROPOSALS * size, PERSONAL)

    def __call__(self, state: StateBatch, shown: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
        picked = first_distinct(self.proposals(state, shown, keys, size), shown, size)  # [B, R]
        short = (picked == 0).any(dim=1).nonzero()[:, 0]
        if len(short):
            picked[short] = self._filled(picked[short], shown[short], keys[short], size)
        ordered = _ascending(picked.masked_fill(picked == 0, self.n_items + 1))
        mask = ordered <= self.n_items
        return ordered * mask, mask

    def _filled(self, picked: Tensor, shown: Tensor, keys: Tensor, size: int) -> Tensor:
        # Long enough to hold R items that are neither picked nor shown, or else all items.
        steps = torch.arange(min(self.n_items, 2 * size + shown.shape[1]), device=self.device)
        start = (uniforms(keys, WALK, width=1) * self.n_items).long()  # [B, 1]
        walk = self.path[(start + steps) % self.n_items]
        proposed = torch.cat([picked, self.drawn(keys, PROPOSALS * size, POPULAR), walk], dim=1)
        fresh, again = (first_distinct(proposed, shown, size, again) for again in (False, True))
        known = (fresh > 0).sum(dim=1, keepdim=True)  # [B, 1]
        rank = torch.arange(size, device=self.device)
        return torch.where(rank < known, fresh, again.gather(1, (rank - known).clamp(min=0)))

    def drawn(self, keys: Tensor, width: int, purpose: int) -> Tensor:
        """Items of the catalogue by their shares, with replacement, [B, width]."""
        found = torch.searchsorted(self.shares, uniforms(keys, purpose, width=width).double(), right=True)
        return 1 + found.clamp(max=self.n_items - 1)


class PopularRecall(_Recall):
    """Items by popularity in the training window, at random."""


class UniformRecall(_Recall):
    """Any known item, at random."""

    by_popularity = False


class SimilarRecall(_Recall):
    """DeepPage's: a random one of the user's last positives (this session's too), then a random neighbour of it.

    The neighbours of an item are the ``neighbours`` with the most similar embeddings (cosine), drawn with weights
    exp(cosine / ``temperature``); the newest ``cap`` / ``neighbours`` positives count, so a pool comes from at most
    ``cap`` items.
    """

    def __init__(self, task: Task, neighbours: int = 100, cap: int = 1000, temperature: float = 0.2) -> None:
        super().__init__(task)
        self.seeds = max(1, cap // neighbours)
        self.tickets = _tickets(task.catalogue, min(neighbours, cap), temperature).to(self.device)  # [I+1, T]

    def proposals(self, state: StateBatch, shown: Tensor, keys: Tensor, size: int) -> Tensor:
        recent = state.history_items[:, -self.seeds :]
        recent = recent.gather(1, (recent > 0).int().argsort(dim=1, stable=True))  # known ones to the right
        known = (recent > 0).sum(dim=1, keepdim=True)  # [B, 1]
        tickets = self.tickets.shape[1]
        draw = (uniforms(keys, PERSONAL, width=PROPOSALS * size) * (known * tickets)).long()  # [B, M]
        seed = draw // tickets  # 0 = the newest
        item = recent.gather(1, (recent.shape[1] - 1 - seed).clamp(min=0))
        # One flat look-up: three times as fast as two indices.
        flat = (item * tickets + draw - seed * tickets).flatten()
        return self.tickets.flatten().index_select(0, flat).view_as(draw).long()


class RelatedRecall(_Recall):
    """MaHRL's: the ``related`` items closest (cosine) to the mean of the user's last positives.

    R of them are drawn evenly, or the first R taken where R is no fewer. Scores the whole catalogue for each user.
    """

    def __init__(self, task: Task, related: int = 1000) -> None:
        super().__init__(task)
        self.related = min(related, self.n_items)
        self.directions = _directions(task.catalogue).to(self.device)  # [I+1, E]

    def proposals(self, state: StateBatch, shown: Tensor, keys: Tensor, size: int) -> Tensor:
        mean = self.directions[state.history_items].sum(dim=1)  # [B, E], its length does not matter
        scores = (mean @ self.directions.T).scatter(1, shown, -torch.inf)  # [B, I+1]
        scores[:, 0] = -torch.inf
        best = scores.topk(self.related, dim=1)
        cold = ~mean.any(dim=1, keepdim=True)  # [B, 1]
        items = best.indices.masked_fill(cold | best.values.isneginf(), 0)
        if size >= self.related:
            return items
        draw = (uniforms(keys, PERSONAL, width=PROPOSALS * size) * self.related).long()
        return items.gather(1, draw)


RECALLS = {"similar": SimilarRecall, "related": RelatedRecall, "popular": PopularRecall, "uniform": UniformRecall}


def first_distinct(proposals: Tensor, shown: Tensor, size: int, again: bool = False) -> Tensor:
    """The first ``size`` different items of ``proposals`` [B, M] not in ``shown`` [B, S]; ``again``: that are in it.

    [B, size], in the order of the proposals, 0 where there are no more.
    """
    offset = shown.shape[1]
    joined = F.pad(torch.cat([shown, proposals], dim=1), (0, 1))  # [B, S+M+1], the last column is none
    none = joined.shape[1] - 1
    # Item and place in one number: of equal items the shown ones come first, then the earliest proposal.
    bits = none.bit_length()
    keys = _ascending((joined[:, :-1] << bits) + torch.arange(none, device=joined.device))
    items, place = keys >> bits, keys & ((1 << bits) - 1)  # [B, S+M]
    proposed, repeated = place >= offset, F.pad(items[:, 1:] == items[:, :-1], (1, 0))
    wanted = repeated & F.pad(~proposed[:, :-1], (1, 0)) if again else ~repeated
    places = _ascending(place.where(proposed & (items > 0) & wanted, none))[:, :size]  # in the order of the proposals
    return F.pad(joined.gather(1, places), (0, size - places.shape[1]))


def _ascending(values: Tensor) -> Tensor:
    """The rows of ``values`` [B, M] sorted. On a CPU by numpy: at these widths thirty times as fast as torch."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))


def _directions(catalogue: Catalogue) -> Tensor:
    return F.normalize(catalogue.embeddings, dim=1)  # [I+1, E]


def _tickets(catalogue: Catalogue, neighbours: int, temperature: float) -> Tensor:
    """Each item's neighbours, repeated in proportion to their weights, [I+1, T] int32: a draw is one look-up."""
    directions = _directions(catalogue)
    count = len(directions) - 1
    width = max(1, min(neighbours, count - 1))
    quantiles = (torch.arange(4 * width) + 0.5) / (4 * width)  # [T]
    tickets = torch.zeros(count + 1, 4 * width, dtype=torch.int32)
    block = max(1, BLOCK // (count + 1))
    for first in range(1, count + 1, block):
        rows = torch.arange(first, min(first + block, count + 1))
        cosine = directions[rows] @ directions.T  # [b, I+1]
        cosine[:, 0] = -torch.inf
        if count > 1:
            cosine[torch.arange(len(rows)), rows] = -torch.inf
        best = cosine.topk(width, dim=1)
        shares = (best.values / temperature).softmax(dim=1).cumsum(dim=1)  # [b, n]
        drawn = torch.searchsorted(shares, quantiles.expand(len(rows), -1).contiguous()).clamp(max=width - 1)
        tickets[rows] = best.indices.gather(1, drawn).int()
    return tickets
