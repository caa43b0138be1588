"""MaHRL's user model: two recurrent memories, of skips and of positives, and a softmax over skip, click and order.

s = W₁·GRU₋(last N skipped) + W₂·GRU₊(last N positive) + b,      v = ReLU(W₃ s + W₄ e(i) + b + p(slot))
P(skip, click, order | i) = softmax(W₅ v + b), trained by cross-entropy on the logs; feedback is drawn from it

Paper: Zhao D. et al., "MaHRL: Multi-goals Abstraction Based Deep Hierarchical Reinforcement Learning for
Recommendations", SIGIR 2020, section 4.2.3: the low-level critic (eqs. 6 and 8) with a softmax for a last layer, after
the simulator of DEERS (Zhao X. et al., KDD 2018). As there, nothing is known of a user but the two histories.
It names N = 10, but neither layer widths nor the simulator's optimiser; its agents learn at 1e-6. Ours is AdamW at 5e-3
with a decay of 0.5: after 400 steps on the demo's shop a held-out log-loss of clicks of 0.2592, where 1e-3 and a decay
of 0.01 gave 0.2617.

Deviations and choices where the paper is silent:
- `page_at_once`: all slots of a page are answered given the state before it; pages of one item give the paper's loop.
- `position`: an embedding of the slot, as in DeepPage's simulator (RecSys 2018); False is the paper.
- `hazard`: a linear head on [s; log(1 + page); log(1 + positives on the page)] says who leaves after it. It is trained
  beside the answers and takes s as it is: where it could bend s, the log-loss on held-out sessions of the demo's shop
  was 0.2605 instead of 0.2596 for clicks after 400 steps, and 0.4980 instead of 0.4862 for exits after 1,500.
  "never" is the paper: the environment cuts sessions at a length.
- `three_answers`: favourites and carts train as clicks; a simulated answer is a skip, a click or a purchase.
- `earlier_sessions`: positives of earlier sessions fill the history at a session's start.
- `padding`: a short history is filled up with zero vectors, which the GRU reads; unknown items never enter a history.
- `user_noise`: `probability_noise` draws one number a user and page for all its slots, because noise of each slot on
  its own changes no rate. It moves P by up to that share of min(P, 1 − P), so that rates stay right on average.
- `calibration`: the logit that base.py corrects is the positive one, logsumexp(click, order) − skip.

The paper's "overall precision" of 90 % is the rate of skips in its logs. ``precision`` gives both, and what tells more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.stats import entropy
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from models.base import StateBatch, Task, TensorBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.linear import GRU, Linear
from models.simulators.base import (
    EMPTY,
    EVALUATED_SESSIONS,
    FittedUserModel,
    SessionBatch,
    UserModelConfig,
    check_features,
    check_page,
    exit_labels,
    sample_feedback,
)
from models.simulators.histories import logged_pages, newest, positives_before, skips_before
from pipeline.errors import DataError

CLASSES = ("skip", "click", "order")
CLASS_OF = (0, 0, 1, 1, 1, 2)  # of each Feedback code


class FeedbackConfig(UserModelConfig):
    """Settings of the feedback user model; see the module's docstring for what they do."""

    hidden: int = Field(64, ge=1)  # units of each GRU and of s
    width: int = Field(64, ge=1)  # of v
    history: int = Field(10, ge=1)  # N of each history
    learning_rate: float = Field(5e-3, gt=0)  # at the first step; falls linearly to zero
    weight_decay: float = Field(0.5, ge=0)  # AdamW's: a step shrinks each weight by learning rate × this
    position: bool = True  # the slot bears on the answer; False = the paper
    probability_noise: float = Field(0.0, ge=0, le=1)  # of P(positive), relative to min(P, 1 − P)
    leave: Literal["hazard", "never"] = "hazard"  # "never" = the paper: sessions end where the environment cuts them

    def build(self, task: Task) -> FeedbackUserModel:
        return FeedbackUserModel(self, task)


@dataclass(frozen=True)
class FeedbackState(TensorBatch):
    """What bears on the next page of B users. Histories run from oldest to newest and are padded on the left."""

    skipped: Tensor  # [B, N] int64, of this session
    positive: Tensor  # [B, N] int64, of this and earlier sessions
    page: Tensor  # [B] int64, pages of this session so far
    encoding: Tensor  # [B, H] float32, s: once a page, however many items are asked about


class _Network(nn.Module):
    def __init__(self, config: FeedbackConfig, slots: int, item_width: int) -> None:
        super().__init__()
        self.skipped = GRU(item_width, config.hidden)
        self.positive = GRU(item_width, config.hidden)
        self.merge = Linear(2 * config.hidden, config.hidden)
        self.state = Linear(config.hidden, config.width)
        self.item = Linear(item_width, config.width, bias=False)
        self.slot = nn.Parameter(torch.zeros(slots, config.width)) if config.position else None
        self.answer = Linear(config.width, len(CLASSES))
        self.exit = nn.Linear(config.hidden + 2, 1) if config.leave == "hazard" else None

    def encode(self, skipped: Tensor, positive: Tensor) -> Tensor:
        """s of two histories [B, N, V]: [B, H]."""
        last = [gru.last(items) for gru, items in ((self.skipped, skipped), (self.positive, positive))]
        encoding: Tensor = self.merge(torch.cat(last, dim=1))
        return encoding

    def answers(self, state: Tensor, items: Tensor, slots: Tensor) -> Tensor:
        """Logits [..., 3] of the answers to ``items`` [..., V] in ``slots`` [...], from W₃ s [..., v]."""
        v = state + self.item(items)  # [..., v]
        if self.slot is not None:
            v = v + self.slot[slots.clamp(max=len(self.slot) - 1)]
        logits: Tensor = self.answer(v.relu())
        return logits

    def exits(self, encoding: Tensor, page: Tensor, positives: Tensor) -> Tensor:
        """Logits [B] of leaving after a page, from s before it, its number and how many positive answers it got."""
        assert self.exit is not None
        counts = torch.stack([page, positives], dim=1).float().log1p()  # [B, 2]
        inputs = torch.cat([encoding.detach(), counts], dim=1)  # [B, H+2]
        logits: Tensor = self.exit(inputs)[:, 0]
        return logits


class FeedbackUserModel(FittedUserModel):
    """A user model of B users at once; ``fit`` or ``load_state_dict`` before anything else."""

    def __init__(self, config: FeedbackConfig, task: Task) -> None:
        super().__init__(task)
        self.config = config

    def step_width(self, slots: int) -> int:
        return super().step_width(slots) + (self.config.probability_noise > 0)

    def new_network(self) -> _Network:
        return _Network(self.config, self.task.page_size, self.vectors.shape[1])

    def optimizer(self, network: _Network) -> torch.optim.Optimizer:
        # Biases are base rates, and two counts need weights of their own size to say who leaves: neither decays.
        free = [v for name, v in network.named_parameters() if v.dim() == 1 or name.startswith("exit.")]
        rest = [v for name, v in network.named_parameters() if v.dim() > 1 and not name.startswith("exit.")]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": free, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, weight_decay=self.config.weight_decay)

    @torch.no_grad()
    def reset(self, state: StateBatch, draws: Tensor | None = None) -> FeedbackState:
        """The state of B users at the start of a session: what they liked in earlier ones."""
        check_features(state)
        none = state.initial_items.new_zeros(len(state), self.config.history)
        return self._state(none, newest(none, state.initial_items, state.initial_items > 0), none[:, 0])

    @torch.no_grad()
    def positive_probabilities(self, hidden: FeedbackState, items: Tensor) -> Tensor:
        """P(click or order) of each of ``items`` [B, K] if it were shown next, in the first slot: [B, K]."""
        check_page(items, len(self.vectors))
        logits = self._answers(hidden, items, torch.zeros_like(items))  # [B, K, 3]
        return self.corrected("click", positive_logits(logits)).sigmoid()

    @torch.no_grad()
    def step(
        self, hidden: FeedbackState, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, FeedbackState]:
        """Show a page ``items`` [B, K], EMPTY where a slot shows nothing: feedback [B, K], leave [B], the next state.

        No slot's answer bears on another's. A slot's number counts shown items, as in the logs. Where a page is empty,
        the user leaves.
        """
        check_page(items, len(self.vectors))
        shown = items != EMPTY  # [B, K]
        count = shown.sum(dim=1)  # [B]
        logits = self._answers(hidden, items, (shown.cumsum(dim=1) - 1).clamp(min=0))  # [B, K, 3]
        positive = self.corrected("click", positive_logits(logits)) + (0 if shift is None else shift[:, None])  # [B, K]
        answer_draws, leave_draw = draws[:, : 2 * items.shape[1]].view(*items.shape, 2), draws[:, 2 * items.shape[1]]
        feedback = sample_feedback(self._noisy(positive.sigmoid(), draws), _kinds(logits), answer_draws)
        feedback = feedback.where(shown, Feedback.NONE)
        clicked = feedback >= FIRST_POSITIVE  # [B, K]
        leave = count == 0
        if self.config.leave == "hazard":
            exits = self.corrected("exit", self.network.exits(hidden.encoding, hidden.page, clicked.sum(dim=1)))  # [B]
            leave = leave | (leave_draw < exits.sigmoid())
        after = self._state(
            newest(hidden.skipped, items, (feedback == Feedback.SKIP) & (items > 0)),
            newest(hidden.positive, items, clicked & (items > 0)),
            hidden.page + (count > 0),
        )
        return feedback, leave, after

    def loss(self, network: _Network, batch: SessionBatch) -> Tensor:
        ends, leaves = exit_labels(batch)
        logits, exits = self._logged(network, batch)
        loss = cross_entropy(logits, _classes(batch))
        return loss if exits is None else loss + binary_cross_entropy_with_logits(exits, leaves[ends].float())

    def logits(self, batch: SessionBatch) -> dict[str, tuple[Tensor, Tensor]]:
        ends, leaves = exit_labels(batch)
        logits, exits = self._logged(self.network, batch)
        click = {"click": (_classes(batch) > 0, positive_logits(logits))}
        return click if exits is None else click | {"exit": (leaves[ends], exits)}

    def precision(self, sessions: SessionBatch) -> dict[str, float]:
        """``class_metrics`` of the answers to every shown item of logged sessions, after calibration."""
        return class_metrics(*self.classes(sessions))

    @torch.no_grad()
    def classes(self, sessions: SessionBatch) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The class of each of n logged answers, [n], and the calibrated probabilities of all three, [n, 3]."""
        if not len(sessions):
            raise DataError("There are no sessions to evaluate the simulator on. Check the split's cut-offs.")
        labels, probabilities = [], []
        for row in range(0, len(sessions), EVALUATED_SESSIONS):
            batch = sessions[slice(row, row + EVALUATED_SESSIONS)].to(self.task.device)
            exit_labels(batch)  # checks the layout
            logits = self._logged(self.network, batch)[0]
            positive = self.corrected("click", positive_logits(logits)).sigmoid()[:, None]  # [n, 1]
            probabilities.append(torch.cat([1 - positive, positive * logits[:, 1:].softmax(dim=1)], dim=1).cpu())
            labels.append(_classes(batch).cpu())
        return torch.cat(labels).numpy(), torch.cat(probabilities).double().numpy()

    def _state(self, skipped: Tensor, positive: Tensor, page: Tensor) -> FeedbackState:
        encoding = self.network.encode(self.vectors[skipped], self.vectors[positive])
        return FeedbackState(skipped, positive, page, encoding)

    def _answers(self, hidden: FeedbackState, items: Tensor, slots: Tensor) -> Tensor:
        state = self.network.state(hidden.encoding)[:, None]  # [B, 1, v]
        logits: Tensor = self.network.answers(state, self.vectors[items.clamp(min=0)], slots)  # [B, K, 3]
        return logits

    def _noisy(self, positive: Tensor, draws: Tensor) -> Tensor:
        if self.config.probability_noise == 0:
            return positive
        noise = self.config.probability_noise * (2 * draws[:, -1:] - 1)  # [B, 1]
        return positive + noise * torch.minimum(positive, 1 - positive)

    def _logged(self, network: _Network, batch: SessionBatch) -> tuple[Tensor, Tensor | None]:
        """Logits of the answers to each of n shown items, [n, 3], and of leaving after each of P pages, [P] or None."""
        pages, width = logged_pages(batch), self.config.history
        histories = (self.vectors[before(batch, pages, width)] for before in (skips_before, positives_before))
        encoding = network.encode(*histories)  # [P, H]: once a page, not once an item
        items = self.vectors[batch.items[batch.feedback > 0]]  # [n, V]
        logits = network.answers(network.state(encoding)[pages.of_item], items, pages.slot)
        return logits, None if network.exit is None else network.exits(encoding, pages.number, pages.positives)


def class_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """How well ``probabilities`` [n, 3] of skip, click and order fit the classes ``labels`` [n].

    precision: the share of items whose most probable class is right, MaHRL's "overall precision"; majority_rate: the
    share of the commonest class, which always guessing it scores; log_loss of the three classes beside that of their
    own rates, the best constant; auc_skip, auc_click, auc_order: each against the rest, NaN where all or none are it.
    """
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    rates = np.bincount(y, minlength=len(CLASSES)) / len(y)
    auc = {
        f"auc_{name}": float(roc_auc_score(y == code, p[:, code])) if 0 < rates[code] < 1 else float("nan")
        for code, name in enumerate(CLASSES)
    }
    return {
        "precision": float((p.argmax(axis=1) == y).mean()),
        "majority_rate": float(rates.max()),
        "log_loss": float(log_loss(y, p / p.sum(axis=1, keepdims=True), labels=range(len(CLASSES)))),
        "base_rate_log_loss": float(entropy(rates)),
        **auc,
        "n": float(len(y)),
    }


def positive_logits(logits: Tensor) -> Tensor:
    """The logit of click or order against skip, from logits [..., 3]."""
    return logits[..., 1:].logsumexp(dim=-1) - logits[..., 0]


def _classes(batch: SessionBatch) -> Tensor:
    feedback = batch.feedback[batch.feedback > 0]  # [n]
    return torch.tensor(CLASS_OF, device=feedback.device)[feedback]


def _kinds(logits: Tensor) -> Tensor:
    """P(kind | positive) [..., KINDS] from logits [..., 3]: only clicks and purchases."""
    click, order = logits[..., 1:].softmax(dim=-1).unbind(dim=-1)
    none = torch.zeros_like(click)
    return torch.stack([click, none, none, order], dim=-1)
