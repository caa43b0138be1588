"""The contracts between data, agents and evaluation: typed batches of tensors and a few small Protocols.

Shapes: B batch, K items of a page or of a candidate set, N history length, P earlier pages of the session,
U user features, D measurement components, I items of the vocabulary. Item 0 is both padding and "not seen in the
training window"; feedback 0 (``Feedback.NONE``) marks padding, so the two never mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from models.feedback import FIRST_POSITIVE, Feedback


@dataclass(frozen=True)
class Catalogue:
    """The items as known at the end of the training window. Row 0, the unknown item, is zeros, and of no age (NaN)."""

    embeddings: Tensor  # [I+1, E] float32, SVD of the shifted PPMI matrix over training sessions, unit-scaled
    features: Tensor  # [I+1, F] float32, the log's free item features, standardised on the training window
    category: Tensor  # [I+1] int64, 0 = unknown
    popularity: Tensor  # [I+1] float32, clicks and purchases in the training window
    impressions: Tensor  # [I+1] float32, how often it was shown in the training window
    counters: Tensor  # [I+1, C] float32: showings and positives so far, then in windows of hours; age in hours or NaN
    n_categories: int  # codes run from 0 to n_categories - 1

    @property
    def vectors(self) -> Tensor:
        """What agents see of an item: embedding and free features side by side, [I+1, E+F]."""
        return torch.cat([self.embeddings, self.features], dim=1)

    def __len__(self) -> int:
        return len(self.category)


@dataclass(frozen=True)
class Task:
    """What every agent is told before it trains. Nothing here comes from after the training window."""

    catalogue: Catalogue
    rows: int  # of a page
    cols: int
    user_width: int  # U
    rewards: tuple[float, ...]  # reward of each Feedback code, 6 values
    measurement_names: tuple[str, ...]  # D names: click, exit, clicks, click_ratio, steps, purchases, embedding_0 …
    measurement_scale: Tensor  # [D] float32, standard deviation of each component on the training rows, > 0
    device: str = "cpu"

    @property
    def page_size(self) -> int:
        return self.rows * self.cols


class TensorBatch:
    """Row selection and device moves for frozen dataclasses whose fields are tensors with B rows (or None)."""

    def _map(self, function: Any) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = {name: function(v) for name, v in values.items() if isinstance(v, (Tensor, TensorBatch))}
        return replace(self, **changed)  # type: ignore[type-var]

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return self._map(lambda value: value[rows])

    def to(self, device: str) -> Self:
        return self._map(lambda value: value.to(device))


@dataclass(frozen=True)
class StateBatch(TensorBatch):
    """What a ranker knows of B users just before a page. Lists run from oldest to newest and are padded on the left."""

    user_features: Tensor  # [B, U] float32
    initial_items: Tensor  # [B, N] int64, last clicked and purchased items before the session
    initial_feedback: Tensor  # [B, N] int64, Feedback codes
    history_items: Tensor  # [B, N] int64, the same, with those of this session so far
    history_feedback: Tensor  # [B, N] int64
    skipped_items: Tensor  # [B, N] int64, last skipped items of this session; feedback is known, so 0 only pads
    page_items: Tensor  # [B, P, K] int64, the last P pages of this session, slots in row-major order
    page_feedback: Tensor  # [B, P, K] int64
    pages_seen: Tensor  # [B] int64, pages of this session so far (may exceed P)

    @classmethod
    def at_start(cls, user_features: Tensor, items: Tensor, feedback: Tensor, pages: int, page_size: int) -> StateBatch:
        """The state when a session starts: ``items`` and ``feedback`` [B, N] are all that is known of earlier ones."""
        earlier = torch.zeros(len(items), pages, page_size, dtype=torch.int64, device=items.device)
        return cls(
            user_features=user_features,
            initial_items=items,
            initial_feedback=feedback,
            history_items=items,
            history_feedback=feedback,
            skipped_items=torch.zeros_like(items),
            page_items=earlier,
            page_feedback=earlier,
            pages_seen=torch.zeros_like(items[:, 0]),
        )

    def __len__(self) -> int:
        return len(self.pages_seen)

    def advance(self, items: Tensor, feedback: Tensor) -> StateBatch:
        """The state after a page ``items`` [B, K] came back with ``feedback`` [B, K] (NONE where a slot was empty)."""
        positive = feedback >= FIRST_POSITIVE
        history_items, history_feedback = appended(
            (self.history_items, self.history_feedback), (items, feedback), positive, self.history_feedback > 0
        )
        (skipped_items,) = appended((self.skipped_items,), (items,), feedback == Feedback.SKIP, self.skipped_items > 0)
        return replace(
            self,
            history_items=history_items,
            history_feedback=history_feedback,
            skipped_items=skipped_items,
            page_items=torch.cat([self.page_items[:, 1:], items[:, None]], dim=1),
            page_feedback=torch.cat([self.page_feedback[:, 1:], feedback[:, None]], dim=1),
            pages_seen=self.pages_seen + 1,
        )


def appended(old: tuple[Tensor, ...], new: tuple[Tensor, ...], keep: Tensor, valid: Tensor) -> list[Tensor]:
    """Append the kept entries of ``new`` [B, K] to the left-padded lists ``old`` [B, N]; the newest N stay."""
    width = old[0].shape[1]
    kept = torch.cat([valid, keep], dim=1)
    # A stable sort by "kept" moves the kept entries to the right end and leaves their order alone.
    order = kept.int().argsort(dim=1, stable=True)[:, -width:]
    kept = kept.gather(1, order)
    joined = (torch.cat(pair, dim=1).gather(1, order) for pair in zip(old, new, strict=True))
    return [torch.where(kept, values, 0) for values in joined]


@dataclass(frozen=True)
class Candidates(TensorBatch):
    """The items that may be ranked. Three fields are filled only for rankers that declare the privilege."""

    items: Tensor  # [B, K] int64, dense index; 0 = not seen in the training window (a real candidate all the same)
    mask: Tensor  # [B, K] bool, False = padding
    tie: Tensor  # [B, K] int64, fixed hash of (session, item): breaks ties, seeds the random ranker
    logged_position: Tensor | None = None  # [B, K] int64, privilege "logged_position"
    rewards: Tensor | None = None  # [B, K] float32, privilege "labels"
    truth: Any = None  # the storefront's hidden state, privilege "truth"
    counters: Tensor | None = None  # [B, K, C] float32, as they stand now; None: as the catalogue has them


@dataclass(frozen=True)
class TransitionBatch(TensorBatch):
    """One page transition a row. The next state is ``state.advance(items, feedback)``; original rows only for TD."""

    state: StateBatch
    items: Tensor  # [B, K] int64, the shown page in row-major order
    feedback: Tensor  # [B, K] int64, Feedback codes; NONE = empty slot
    rewards: Tensor  # [B, K] float32
    measurement: Tensor  # [B, K, D] float32, raw units, of the item and of what came after its page
    goal: Tensor  # [B, K, D] float32, unit length
    hindsight: Tensor  # [B] bool, False = original row
    terminated: Tensor  # [B] bool, the session ended after this page
    truncated: Tensor  # [B] bool, it was cut there by a length cap
    propensity: Tensor  # [B, K] float32, of each shown item given those above it; NaN where not logged
    counters: Tensor  # [B, K, C] float32, those of the catalogue as they stood just before the item was shown

    def __len__(self) -> int:
        return len(self.terminated)

    @property
    def mask(self) -> Tensor:
        return self.feedback > 0


class AgentConfig(BaseModel):
    """Settings of one agent; every field has a default and one line of meaning. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    privileges: ClassVar[frozenset[str]] = frozenset()  # of "logged_position", "labels", "truth"
    legs: ClassVar[frozenset[str]] = frozenset({"rerank", "rollout"})  # where the agent can be evaluated
    stochastic: ClassVar[bool] = True  # False: the seed changes nothing, so one seed is run

    def build(self, task: Task, seed: int) -> Agent:
        raise TypeError(f"{type(self).__name__} must define build(task, seed)")


@runtime_checkable
class Agent(Protocol):
    """A ranker. Higher scores are better; scores of masked candidates are ignored."""

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor: ...  # [B, K] float32


@runtime_checkable
class PagewiseAgent(Agent, Protocol):
    """A ranker that composes a page as a whole."""

    def rank_page(self, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
        """Indices into the candidates, [B, rows·cols] in row-major slots; -1 where candidates ran out."""
        ...


@runtime_checkable
class CriticAgent(Agent, Protocol):
    """A ranker that says what return it expects; what it expects beyond what is realised is its over-estimation."""

    @property
    def discount(self) -> float: ...  # of the reward of each next page

    def predicted_return(self, state: StateBatch, items: Tensor) -> Tensor:
        """The discounted return, [B] in units of reward, of showing a page now and following itself afterwards.

        ``items`` [B, K] are dense indices in row-major slots, -1 in empty ones.
        """
        ...


@runtime_checkable
class GradientAgent(Agent, Protocol):
    """An agent trained by gradient steps. The loop, the budget and early stopping are training.py's."""

    def update(self, batch: TransitionBatch) -> Mapping[str, float]: ...  # one gradient step → losses by name

    def state_dict(self) -> dict[str, Tensor]: ...  # weights: all that ranking needs

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...

    def training_state(self) -> dict[str, Any]: ...  # optimisers, targets, counters: what a resume needs besides

    def load_training_state(self, state: Mapping[str, Any]) -> None: ...


def rank(scores: Tensor, candidates: Candidates) -> Tensor:
    """Candidate indices from best to worst, [B, K]; padding last; ties by the fixed hash, never by logged order."""
    scores = scores.masked_fill(~candidates.mask, -torch.inf)
    by_tie = candidates.tie.argsort(dim=1, stable=True)
    # Padding must stay behind real candidates that score -inf, hence the last, stable sort by the mask.
    order = by_tie.gather(1, scores.gather(1, by_tie).argsort(dim=1, descending=True, stable=True))
    padded = (~candidates.mask).gather(1, order)
    return order.gather(1, padded.int().argsort(dim=1, stable=True))


def rank_page(agent: Agent, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
    """A page from any agent, [B, rows·cols]: its own ``rank_page``, or its best items; -1 where there are too few."""
    if isinstance(agent, PagewiseAgent):
        return agent.rank_page(state, candidates, rows, cols)
    order = rank(agent.score(state, candidates), candidates)[:, : rows * cols]
    order = torch.where(candidates.mask.gather(1, order), order, -1)
    return torch.nn.functional.pad(order, (0, rows * cols - order.shape[1]), value=-1)
