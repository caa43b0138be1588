"""HAC's user response model: what a user liked before, read by attention, says what they like next, and their temper
when they leave.

interest = W [cross(u; self(E)); u],   u = MLP(user features),   E = item layer of the last H positive items
P(positive answer to i) = σ(<item layer(i), interest>), independent for the slots of a page
r = mean over the slots of a page of (+1 positive, -c negative),   temper ← temper - (K(1 - r) + 1)

Paper: Liu et al., "Exploration and Regularization of the Latent Action Space in Recommendation", WWW 2023, appendix
A.2; the wiring that it leaves open is that of its released code. Deviations and choices:
- `masked`: attention ignores padding, and an empty history reads as zeros; the code attends to padding as to items.
- `unknown items` never enter a history; a log without user features has one user vector for everybody.
- `kinds`: a linear softmax head on [interest; item] says which positive answer it was: purchases can be rolled out.
- `hazard`: a linear head on [interest; log(1 + page); share of positives on the page] says who leaves after it, because
  logs know when users left. ``leave="temper"`` is HAC's rule. Neither head trains the interest that it reads, and both
  learn ten times as fast, without which 400 steps of the paper's rate leave them close to where they started.
- `bce`: the paper's loss. ``response_loss="double_sigmoid"`` is the code's, BCE with logits of σ(logit), which pushes
  what is liked less than half of the time towards 0 and the rest towards 1; it stays uncalibrated, being chosen for it.
- `schedule`: the learning rate falls linearly to zero, gradients are clipped at norm 1; the code has two epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    embedding,
    scaled_dot_product_attention,
)

from models.base import StateBatch, Task, TensorBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.linear import Linear
from models.simulators.base import (
    EMPTY,
    KINDS,
    FittedUserModel,
    SessionBatch,
    UserModelConfig,
    check_features,
    check_page,
    exit_labels,
    sample_feedback,
)
from models.simulators.histories import LoggedPages, logged_pages, newest, positives_before

BLOCK = 128  # users whose histories are read at a time
LANES = 16  # torch's attention is slow on what is left over: 1,000 users take 5 ms with 16 items, 12 ms with 12
OWN_HEADS, OWN_RATE = ("kind.", "exit."), 10  # the heads that HAC lacks; times the learning rate, being linear


class AttentionConfig(UserModelConfig):
    """Settings of HAC's user model. Defaults are its ML-1M's and KuaiRand's; RL4RS: dim 16, heads 2, hidden 256."""

    dim: int = Field(32, ge=1)  # f, of users, items and interests
    heads: int = Field(4, ge=1)  # of both attentions; must divide dim
    hidden: int = Field(128, ge=1)  # units of the user MLP
    dropout: float = Field(0.2, ge=0, lt=1)  # in the user MLP, in training only
    learning_rate: float = Field(1e-3, gt=0)  # Adam's, at the first step; falls linearly to zero
    l2: float = Field(3e-4, ge=0)  # times the sum over tensors of mean(p²), added to the loss
    response_loss: Literal["bce", "double_sigmoid"] = "bce"  # the latter is the released code's
    history: int = Field(50, ge=1)  # H: positive items kept
    leave: Literal["hazard", "temper"] = "hazard"  # a learnt exit, or HAC's rule
    temper: float = Field(20.0, ge=1)  # at the start of a session; users leave below 1
    negative_cost: float = Field(0.2, ge=0)  # c of HAC's reward; the code's is 0.1
    sweet_point: float | None = None  # 0.9: r ← 1 - |r - 0.9|, as the code has for RL4RS

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        return self

    def build(self, task: Task) -> AttentionUserModel:
        return AttentionUserModel(self, task)


@dataclass(frozen=True)
class AttentionState(TensorBatch):
    """What the model knows of B users between two pages."""

    user: Tensor  # [B, f]
    history: Tensor  # [B, H] int64, the last positive items, padded on the left
    interest: Tensor  # [B, f], of the two above
    pages: Tensor  # [B] int64, seen in this session
    temper: Tensor  # [B] float32


class _Attention(nn.Module):
    """Multi-head attention without dropout; ``bias`` [B, 1, 1, H] is added to the scores.

    1,000 users on one core: 5 ms with histories of 16 and 23 ms with 48; nn.MultiheadAttention takes 7 and 40.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.out = Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        """Of ``queries`` [B, Q, f] to ``keys`` [B, H, f]: [B, Q, f]."""
        query, key, value = (
            x.view(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)  # [B, heads, Q or H, f/heads]
            for x in (self.query(queries), *self.key_value(keys).chunk(2, dim=-1))
        )
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))  # [B, Q, f]
        return mixed


class _Network(nn.Module):
    def __init__(self, config: AttentionConfig, user_width: int, item_width: int) -> None:
        super().__init__()
        dim = config.dim
        self.user = nn.Sequential(
            Linear(max(1, user_width), config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            Linear(config.hidden, dim),
        )
        self.item = Linear(item_width, dim)
        self.self_attention = _Attention(dim, config.heads)
        self.cross_attention = _Attention(dim, config.heads)
        self.merge = Linear(2 * dim, dim)
        self.kind = Linear(2 * dim, KINDS)
        self.exit = Linear(dim + 2, 1) if config.leave == "hazard" else None

    def users(self, features: Tensor) -> Tensor:
        if features.shape[1] == 0:  # a log without user features: everybody is the same user
            features = features.new_ones(len(features), 1)
        users: Tensor = self.user(features)  # [B, f]
        return users

    def interest(self, user: Tensor, vectors: Tensor, known: Tensor) -> Tensor:
        """Of ``user`` [B, f], given the ``vectors`` [B, H, V] of their history, and which of these are ``known``."""
        history = self.item(vectors)  # [B, H, f]
        bias = user.new_zeros(known.shape).masked_fill(~known, -1e9)[:, None, None]  # finite: softmax must not be NaN
        encoded = self.self_attention(history, history, bias)  # [B, H, f]
        read = self.cross_attention(user[:, None], encoded, bias)[:, 0]  # [B, f]
        read = read * known.any(dim=1, keepdim=True)
        interest: Tensor = self.merge(torch.cat([read, user], dim=1))  # [B, f]
        return interest

    def exit_logits(self, interest: Tensor, page: Tensor, share: Tensor) -> Tensor:
        seen = torch.stack([page.float().log1p(), share], dim=1)  # [B, 2]
        logits: Tensor = self.exit(torch.cat([interest.detach(), seen], dim=1))[:, 0]  # type: ignore[misc]
        return logits


class AttentionUserModel(FittedUserModel):
    """HAC's user model of B users at once; ``fit`` or ``load_state_dict`` before anything else."""

    def __init__(self, config: AttentionConfig, task: Task) -> None:
        super().__init__(task)
        self.config = config

    def new_network(self) -> _Network:
        return _Network(self.config, self.task.user_width, self.vectors.shape[1])

    def optimizer(self, network: _Network) -> torch.optim.Optimizer:
        rate, named = self.config.learning_rate, list(network.named_parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named if not name.startswith(OWN_HEADS)], "lr": rate},
            {"params": [p for name, p in named if name.startswith(OWN_HEADS)], "lr": OWN_RATE * rate},
        ]
        return torch.optim.Adam(groups)

    # ---- simulation

    @torch.no_grad()
    def reset(self, state: StateBatch, draws: Tensor | None = None) -> AttentionState:
        """The hidden state of B users at the start of a session."""
        check_features(state)
        user = self.network.users(state.user_features)  # [B, f]
        none = user.new_zeros(len(user), self.config.history, dtype=torch.int64)
        items = state.initial_items  # [B, N]
        history = newest(none, items, items > 0)  # [B, H]
        pages = torch.zeros_like(state.pages_seen)
        temper = torch.full_like(user[:, 0], self.config.temper)
        return AttentionState(user, history, self._interests(user, history), pages, temper)

    @torch.no_grad()
    def positive_probabilities(self, hidden: AttentionState, items: Tensor) -> Tensor:
        """P(positive answer) of each of ``items`` [B, K], [B, K]: the same whatever else the page shows."""
        check_page(items, len(self.vectors))
        return self.corrected("click", _scores(self._pair(hidden, items))).sigmoid()

    @torch.no_grad()
    def step(
        self, hidden: AttentionState, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, AttentionState]:
        """Show a page ``items`` [B, K], EMPTY where a slot shows nothing: feedback [B, K], leave [B], hidden state."""
        check_page(items, len(self.vectors))
        shown = items != EMPTY  # [B, K]
        pair = self._pair(hidden, items)  # [B, K, 2f]
        logits = self.corrected("click", _scores(pair)) + (0 if shift is None else shift[:, None])  # [B, K]
        kinds = self.network.kind(pair).softmax(dim=2)  # [B, K, KINDS]
        answers = sample_feedback(logits.sigmoid(), kinds, draws[:, :-1].view(*items.shape, 2))
        feedback = answers.where(shown, int(Feedback.NONE))  # [B, K]
        after = self._after(hidden, items, feedback)
        return feedback, self._leave(hidden, after, feedback, draws[:, -1]) | ~shown.any(dim=1), after

    def _pair(self, hidden: AttentionState, items: Tensor) -> Tensor:
        """[interest; item] of each slot, [B, K, 2f]."""
        item = self.network.item(embedding(items.clamp(min=0), self.vectors))  # [B, K, f]
        return torch.cat([hidden.interest[:, None].expand_as(item), item], dim=2)

    def _after(self, hidden: AttentionState, items: Tensor, feedback: Tensor) -> AttentionState:
        liked = (feedback >= FIRST_POSITIVE) & (items > 0)  # [B, K]
        history = newest(hidden.history, items, liked)  # [B, H]
        interest, changed = hidden.interest.clone(), liked.any(dim=1)
        interest[changed] = self._interests(hidden.user[changed], history[changed])
        reward = hac_reward(feedback, self.config.negative_cost, self.config.sweet_point)  # [B]
        drop = (feedback > 0).sum(dim=1) * (1 - reward) + 1  # [B]
        return AttentionState(hidden.user, history, interest, hidden.pages + 1, hidden.temper - drop)

    def _leave(self, before: AttentionState, after: AttentionState, feedback: Tensor, draw: Tensor) -> Tensor:
        if self.config.leave == "temper":
            return after.temper < 1
        shown, positive = feedback > 0, feedback >= FIRST_POSITIVE  # [B, K]
        share = positive.sum(dim=1) / shown.sum(dim=1).clamp(min=1)  # [B]
        logits = self.network.exit_logits(before.interest, before.pages, share)
        return draw < self.corrected("exit", logits).sigmoid()

    # ---- fitting

    def loss(self, network: _Network, batch: SessionBatch) -> Tensor:
        ends, leaves = exit_labels(batch)
        pages, interest, pair = self._read(network, batch)
        answers = batch.feedback[batch.feedback > 0]  # [S]
        positive = answers >= FIRST_POSITIVE
        logits = _scores(pair)  # [S]
        if self.config.response_loss == "double_sigmoid":
            logits = logits.sigmoid()
        loss = binary_cross_entropy_with_logits(logits, positive.float())
        kinds = answers[positive] - FIRST_POSITIVE
        loss = loss + cross_entropy(network.kind(pair[positive].detach()), kinds, reduction="sum") / max(1, len(kinds))
        if network.exit is not None:
            exits = network.exit_logits(interest, pages.number, pages.positives / pages.shown)
            loss = loss + binary_cross_entropy_with_logits(exits, leaves[ends].float())
        return loss + self.config.l2 * torch.stack([p.square().mean() for p in network.parameters()]).sum()

    def logits(self, batch: SessionBatch) -> dict[str, tuple[Tensor, Tensor]]:
        ends, leaves = exit_labels(batch)
        pages, interest, pair = self._read(self.network, batch)
        heads = {"click": (batch.feedback[batch.feedback > 0] >= FIRST_POSITIVE, _scores(pair))}
        if self.network.exit is not None:
            heads["exit"] = (
                leaves[ends],
                self.network.exit_logits(interest, pages.number, pages.positives / pages.shown),
            )
        return heads

    def calibrate(self, sessions: SessionBatch) -> Self:
        """As in the base, but for the answers of a double sigmoid: what it does to them is what it is chosen for."""
        super().calibrate(sessions)
        if self.config.response_loss == "double_sigmoid":
            self.calibration.pop("click", None)
        return self

    def _read(self, network: _Network, batch: SessionBatch) -> tuple[LoggedPages, Tensor, Tensor]:
        """The pages, the interest at each [G, f], and [interest; item] of each shown item [S, 2f]."""
        pages = logged_pages(batch)
        user = network.users(batch.user_features[pages.session])  # [G, f]
        interest = self._interest(network, user, positives_before(batch, pages, self.config.history))  # [G, f]
        item = network.item(embedding(batch.items[batch.feedback > 0], self.vectors))  # [S, f]
        return pages, interest, torch.cat([interest[pages.of_item], item], dim=1)

    def _interests(self, user: Tensor, history: Tensor) -> Tensor:
        """``_interest`` in blocks that fit in a cache, of users whose histories are about as long. No gradients."""
        if len(user) <= BLOCK:
            return self._interest(self.network, user, history)
        interest = torch.empty_like(user)
        for rows in torch.split((history > 0).sum(dim=1).argsort(), BLOCK):
            interest[rows] = self._interest(self.network, user[rows], history[rows])
        return interest

    def _interest(self, network: _Network, user: Tensor, history: Tensor) -> Tensor:
        """Of ``user`` [B, f] with ``history`` [B, H], [B, f]; only the columns that somebody fills are read."""
        known = history > 0
        width = LANES * max(1, -(-int(known.any(dim=0).sum()) // LANES))
        history, known = history[:, -width:], known[:, -width:]
        return network.interest(user, embedding(history, self.vectors), known)


def hac_reward(feedback: Tensor, negative_cost: float = 0.2, sweet_point: float | None = None) -> Tensor:
    """HAC's reward of each page ``feedback`` [B, K], [B]: mean over shown items of +1, or of minus the cost.

    With a ``sweet_point`` s it becomes 1 - |r - s|. A page that shows nothing has a mean of 0.
    """
    points = (feedback >= FIRST_POSITIVE).float() - negative_cost * (feedback == Feedback.SKIP)  # [B, K]
    reward = points.sum(dim=1) / (feedback > 0).sum(dim=1).clamp(min=1)
    return reward if sweet_point is None else 1 - (reward - sweet_point).abs()


def _scores(pair: Tensor) -> Tensor:
    """<interest, item> of [interest; item] [..., 2f]: [...]"""
    interest, item = pair.chunk(2, dim=-1)
    return (interest * item).sum(dim=-1)
