"""GoalRec, offline: a world model that predicts what comes of an item, and a goal that says what of it one wants.

M predicts measurements of the rest of the session (clicks, purchases, length, …) instead of one reward; the value of
an item is linear in them, so another goal is another weight vector at ranking time and no training.

    M(s, a, g) = V(s, g) + A(s, g, a),   Q(s, a, g) = gᵀM                                        (eqs. 7 and 8)
    L = Σ_j [exp(−s_j)·‖M_j − m_j‖² + s_j] + the same with V alone in the place of M             (eq. 9)
    ranking: gᵀA, since V is the same for every item

Wang et al., "RL with a Disentangled Universal Value Function for Item Recommendation", AAAI 2021, sections "Model" and
"Training"; goals and measurements are those of pipeline/hindsight.py. This is its GoalRec-off: no interaction.

Deviations and choices where the paper is silent:
- `scaled_measurements`: m and g are in units of the training deviation of each component, not centred.
- `last_click_attention`: DIEN's attention asks with the last clicked item, never with the candidate: S is made once.
- `crossed_features`: the user-item cross features are the product of a projection of S with one of the item; an item's
  training click rate is among its features.
- `first_batch_start`: V starts at the mean of the first batch's targets and s_j at their log variance, not at 0.
- `split_page`: the page shows its items at once, so what comes after it is predicted as V + Σ of its items' A, one
  target for all of them, and an item's own click and purchase apart. False: one M for each item, as printed.
- `advantage_penalty`: one item changes little of what comes after a page, and the session's noise is large beside it:
  exp(−s)·K·A² of those parts is added to the loss (a normal prior on the advantage, around 0).
- `goal_mix`: a share of the pages gets a random goal of the reward's signs instead of the logged one. A hindsight goal
  is a function of the outcome: M could read the outcome off it and leave nothing for the item to explain.
- `page_alone`: at discount 0 every measurement ends with its own page, as if nothing followed, and every goal is that
  of such a measurement; all else is as it is. Of sessions of one page the discount changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from models.base import AgentConfig, Candidates, StateBatch, Task, TransitionBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.observation import CLIP, item_vectors
from pipeline.errors import ConfigError, ModelError, nearest

SCORED_PAIRS = 131_072  # (state, candidate) pairs scored at a time: bounds the memory of a large pool
LOG_VARIANCE = 6.0  # bound of |s_j|
DECAY = 0.85  # weight of a shown page relative to the next newer one
REPORTED = ("click", "steps")  # parts whose explained variance is logged: the item's own response, what came after
PRIOR_IMPRESSIONS = 20.0  # shown this often, an item's click rate is half its own and half the catalogue's


class GoalRecConfig(AgentConfig):
    """Sizes and rates; see the module's docstring for the deviations."""

    goal: dict[str, float] | None = None  # raw weight of each measurement; None: clicks and purchases by their rewards
    discount: float = 1.0  # 1, or 0 = the same agent with the future removed: measurements over the page alone
    split_page: bool = True  # predict what comes after the page from all its items together
    goal_mix: float = Field(0.5, ge=0, le=1)  # share of pages that train under a random goal
    id_width: int = Field(0, ge=0)  # of a learnt embedding of the item's id; 0 = none
    gru: int = Field(36, ge=1)  # hidden units of the history's GRU
    state_width: int = Field(128, ge=1)  # of S, and of the hidden layers of V and A
    item_width: int = Field(64, ge=1)  # of E
    goal_width: int = Field(32, ge=1)  # of G
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)  # of the networks; never of the log-variances
    advantage_penalty: float = Field(5.0, ge=0)  # of what an item is said to change after its page
    value_weight: float = Field(1.0, ge=0)  # w_V of the auxiliary loss that trains V alone

    @field_validator("discount")
    @classmethod
    def _all_or_nothing(cls, value: float) -> float:
        if value not in (0.0, 1.0):
            raise ValueError(f"discount: {value} is neither 1 nor 0; measurements are stored undiscounted")
        return value

    def build(self, task: Task, seed: int) -> GoalRec:
        return GoalRec(self, task, seed)


class GoalRec:
    """An item-wise agent trained by gradient steps on original and hindsight rows."""

    def __init__(self, config: GoalRecConfig, task: Task, seed: int) -> None:
        self.config, self.task, self.discount = config, task, config.discount
        self.parts = Parts(task, config.split_page)
        # Initialised on the CPU from a generator of its own: the same weights on every device, and no global seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = WorldModel(config, task, self.parts)
        self.model = model.to(task.device)
        networks = [p for name, p in self.model.named_parameters() if name != "log_variance"]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": networks, "weight_decay": config.weight_decay},
                {"params": [self.model.log_variance], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        self.random = torch.Generator().manual_seed(seed)  # of the mixed-in goals
        self.steps = 0
        self._aim(config.goal if config.goal is not None else reward_goal(task.rewards))

    def with_goal(self, goal: Mapping[str, float]) -> GoalRec:
        """A ranker with this one's weights, which stay shared, and another goal: raw weights of measurements by name.

        Raises ConfigError for a name that is no measurement, or where all weights are zero.
        """
        other = copy.copy(self)
        other._aim(goal)
        return other

    def _aim(self, goal: Mapping[str, float]) -> None:
        names = self.task.measurement_names
        for name in goal:
            if name not in names:
                raise ConfigError(f"goal: {name!r} is not a measurement; {nearest(name, names)}")
        if not any(goal.values()):
            raise ConfigError(f"goal: {dict(goal)} has no direction; give a measurement a weight that is not 0.")
        weights = torch.tensor([float(goal.get(name, 0)) for name in names], device=self.task.device)  # [D]
        # wᵀm in raw units is (w·σ)ᵀ(m/σ) in those that the model knows.
        self.goal = normalize(weights * self.parts.scale, dim=0)  # [D]

    @torch.no_grad()
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        """gᵀA(s, g, a) of each candidate, [B, K]."""
        rows = max(1, SCORED_PAIRS // max(1, candidates.items.shape[1]))
        weights = self.parts.decompose(self.goal)  # [P]
        scores = [
            self.model.advantage(
                self.model.encode(state[at : at + rows]), self.goal.view(1, 1, -1), candidates.items[at : at + rows]
            )
            @ weights
            for at in range(0, len(state), rows)
        ]
        return torch.cat(scores) if scores else candidates.items.float()

    @torch.no_grad()
    def predicted_return(self, state: StateBatch, items: Tensor) -> Tensor:
        """What the clicks and purchases of a page [B, K] and of all after it are worth, [B]; -1 is an empty slot.

        Each item's own, and once for the page what comes after it, as M(s, a, g) has both for the goal that ranks.
        """
        shown = (items >= 0).float()  # [B, K]
        goal = self.goal.view(1, 1, -1)
        encoded = self.model.encode(state)
        advantage = self.model.advantage(encoded, goal, items.clamp(min=0))  # [B, K, P]
        predicted = self.model.value(encoded, goal.expand(len(items), 1, -1)) + self.parts.pooled(advantage, shown)
        own, later = (shown * (predicted @ worth) for worth in self.parts.worth(self.task.rewards))  # [B, K] both
        return own.sum(dim=1) + self.discount * later.sum(dim=1) / shown.sum(dim=1).clamp(min=1)

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One gradient step on all shown items of the batch that have a goal. Raises ModelError if none has."""
        measured, goal = self._relabelled(batch)
        goal = self._mixed(goal)
        valid = batch.mask & (goal.abs().amax(dim=2) > 0)  # [B, K]
        if not valid.any():
            raise ModelError("GoalRec.update: no shown item of the batch has a goal. Sample more, or other, rows.")
        target = self.parts.of(measured, batch.feedback)  # [B, K, P]
        if self.steps == 0:
            self.model.start_at(target[valid])
        encoded = self.model.encode(batch.state)  # [B, S]
        value = self.model.value(encoded, goal)  # [B, K, P]
        advantage = self.model.advantage(encoded, goal, batch.items)  # [B, K, P]
        predicted = value + self.parts.pooled(advantage, batch.mask)
        loss = self.model.uncertainty_loss((predicted - target)[valid])
        value_loss = self.model.uncertainty_loss((value - target)[valid])
        self.optimiser.zero_grad()
        total = loss + self.config.value_weight * value_loss
        total = total + self.config.advantage_penalty * self.model.penalty(advantage[valid])
        total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.model.bound_variances()
        self.steps += 1
        explained = explained_variance(predicted.detach()[valid], target[valid])
        reported = {
            "loss": total,
            "model_loss": loss,
            "value_loss": value_loss,
            "mean_abs_advantage": advantage[valid].abs().mean(),
            **{f"explained_{name}": explained[j] for j, name in enumerate(self.parts.names) if name in REPORTED},
        }
        return dict(zip(reported, torch.stack(list(reported.values())).tolist(), strict=True))

    def _relabelled(self, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """Measurements and goals, [B, K, D] each; at discount 0 those of a session that ends with this page."""
        if self.discount:
            return batch.measurement, batch.goal
        item = self.parts.without_future(batch.items[..., None], batch.feedback[..., None], batch.terminated)
        page = self.parts.without_future(batch.items[:, None], batch.feedback[:, None], batch.terminated)  # [B, 1, D]
        reached = torch.where(batch.hindsight[:, None, None], item, page)
        return item, normalize(reached / self.parts.scale, dim=2) * batch.mask[..., None]

    def _mixed(self, goal: Tensor) -> Tensor:
        """The goals [B, K, D], those of a share of the pages replaced by a random one."""
        drawn = torch.randn(len(goal), 1, goal.shape[2], generator=self.random)
        chosen = torch.rand(len(goal), 1, 1, generator=self.random) < self.config.goal_mix
        mixed = normalize(drawn.abs().to(goal.device) * self.parts.signs, dim=2)
        return torch.where(chosen.to(goal.device), mixed, goal)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ModelError where names or shapes differ from this agent's."""
        try:
            self.model.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"These weights do not fit GoalRec as configured: {reason}. Load them with the settings and the "
                "catalogue they were trained with."
            ) from None

    def training_state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "steps": self.steps, "random": self.random.get_state()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = int(state["steps"])
        self.random.set_state(state["random"])


class Parts:
    """A measurement m [D] taken apart into P parts, of one item or of all that came after its page: m = C·parts.

    The item's own purchase is a part more; its own click is the measurement's ``click``. Split, the clicks and
    purchases are those of later pages only. Not split, they are the measurement's.
    """

    def __init__(self, task: Task, split: bool) -> None:
        names = task.measurement_names
        self.index = {name: j for j, name in enumerate(names)}
        self.split = split
        self.scale = task.measurement_scale.to(task.device)  # [D]
        renamed = {"clicks": "later_clicks", "purchases": "later_purchases"} if split else {}
        self.names = (*(renamed.get(name, name) for name in names), "own_purchase")
        self.unit = torch.cat([self.scale, self.scale[self.index["purchases"]].view(1)])  # [P] raw size of 1 of a part
        compose = torch.eye(len(names), len(self.names), device=task.device)  # C [D, P]
        if split:
            compose[self.index["clicks"], self.index["click"]] = 1
            compose[self.index["purchases"], -1] = 1
        # Whether a part belongs to the page as a whole, [P].
        after = [split and name not in ("click", "own_purchase") for name in self.names]
        self.compose = compose
        self.after = torch.tensor(after, device=task.device)
        self.embedded = [j for j, name in enumerate(names) if _block(name) == "embedding"]
        self.catalogue = task.catalogue
        # One s for the whole embedding, one for each other part.
        self.blocks = sorted({_block(name) for name in self.names})
        membership = [[_block(name) == block for block in self.blocks] for name in self.names]
        self.membership = torch.tensor(membership, device=task.device).float()  # [P, J]
        signs = {"exit": -1.0, **{name: 0.0 for name in names if _block(name) == "embedding"}}
        self.signs = torch.tensor([signs.get(name, 1.0) for name in names], device=task.device)  # [D] of random goals

    @cached_property
    def embeddings(self) -> Tensor:
        """The item vectors [I+1, d_e] whose mean a measurement holds."""
        return principal_components(self.catalogue.embeddings, len(self.embedded)).to(self.scale.device)

    def of(self, measured: Tensor, feedback: Tensor) -> Tensor:
        """Measurements [B, K, D] in raw units → parts [B, K, P] in the model's units."""
        bought = (feedback == Feedback.PURCHASE).float()
        measured = torch.cat([measured, bought[..., None]], dim=2)
        if self.split:
            measured[..., self.index["clicks"]] -= measured[..., self.index["click"]]
            measured[..., self.index["purchases"]] -= bought
        return measured / self.unit

    def without_future(self, items: Tensor, feedback: Tensor, left: Tensor) -> Tensor:
        """Measurements [B, N, D] of N groups of items [B, N, G] as if their page were the last; ``left`` [B].

        A group is one item, or all of a page for the measurement of the session that is this page alone.
        """
        clicked = (feedback >= FIRST_POSITIVE).float()  # [B, N, G]
        clicks = clicked.sum(dim=2)
        scalars = {
            "click": clicked.amax(dim=2),
            "exit": left[:, None].float().expand_as(clicks),
            "clicks": clicks,
            "click_ratio": clicks / (feedback > 0).sum(dim=2).clamp(min=1),
            "steps": torch.ones_like(clicks),
            "purchases": (feedback == Feedback.PURCHASE).float().sum(dim=2),
        }
        measured = clicks.new_zeros(*clicks.shape, len(self.index))
        for name, values in scalars.items():
            measured[..., self.index[name]] = values
        liked = (clicked[:, :, None] @ self.embeddings[items]).squeeze(2)  # [B, N, 1, G] @ [B, N, G, d_e]
        measured[..., self.embedded] = liked / clicks.clamp(min=1)[..., None]
        return measured

    def pooled(self, advantage: Tensor, mask: Tensor) -> Tensor:
        """Advantages [B, K, P] as they enter a prediction: each item's own parts, the page's sum for what is after."""
        page = (advantage * mask[..., None]).sum(dim=1, keepdim=True)
        return torch.where(self.after, page, advantage)

    def decompose(self, goal: Tensor) -> Tensor:
        """The weights [P] of the parts that gᵀ(m/σ) gives them, for a goal [D]."""
        return self.unit * (self.compose.T @ (goal / self.scale))

    def worth(self, rewards: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Reward of 1 of each part, [P] both: of the item's own parts, and of those that come after its page."""
        click, more = reward_goal(rewards).values()
        own = self._weights({"click": click, "own_purchase": more})
        if self.split:
            return own, self._weights({"later_clicks": click, "later_purchases": more})
        return own, self._weights({"clicks": click, "purchases": more}) - own

    def _weights(self, worth: Mapping[str, float]) -> Tensor:
        return torch.tensor([worth.get(name, 0.0) for name in self.names], device=self.unit.device) * self.unit


def _block(name: str) -> str:
    return "embedding" if name.startswith("embedding_") else name


class WorldModel(nn.Module):
    """S, E, G, V and A; sizes as in the config. B states, K items and goals each, P parts."""

    inputs: Tensor
    membership: Tensor
    after: Tensor

    def __init__(self, config: GoalRecConfig, task: Task, parts: Parts) -> None:
        super().__init__()
        # The catalogue comes with the task; weights without it stay small.
        self.register_buffer("inputs", item_inputs(task), persistent=False)  # [I+1, X]
        self.register_buffer("membership", parts.membership, persistent=False)  # [P, J]
        self.register_buffer("after", parts.after, persistent=False)  # [P]
        self.page_size = task.page_size
        item, state = self.inputs.shape[1], config.state_width
        self.history = nn.GRU(item + len(Feedback), config.gru, batch_first=True)
        self.query = nn.Linear(item, config.gru)
        seen = task.user_width + 2 * config.gru + item + len(Feedback) - 1 + 1
        self.state = mlp(seen, state, state)
        self.ids = nn.Embedding(len(task.catalogue), config.id_width, padding_idx=0) if config.id_width else None
        if self.ids is not None:
            nn.init.normal_(self.ids.weight[1:], std=0.01)
        self.item = mlp(item + config.id_width, config.item_width, config.item_width)
        self.goal = mlp(len(task.measurement_names), config.goal_width, config.goal_width)
        self.value_hidden = mlp(state + config.goal_width, state)
        self.value_head = nn.Linear(state, len(parts.names))
        # A's first layer on [S; G; E; S×E], a matrix for each, so that S and G are multiplied once and not per item.
        self.from_state = nn.Linear(state, state)
        self.from_goal = nn.Linear(config.goal_width, state, bias=False)
        self.from_item = nn.Linear(config.item_width, state, bias=False)
        self.from_cross = nn.Linear(config.item_width, state, bias=False)
        self.cross_state = nn.Linear(state, config.item_width)
        self.cross_item = nn.Linear(item, config.item_width)
        self.advantage_head = nn.Linear(state, len(parts.names))
        self.log_variance = nn.Parameter(torch.zeros(len(parts.blocks)))  # s_j [J]

    def encode(self, state: StateBatch) -> Tensor:
        """S [B, S]: the user, the history as the last clicked item asks for it, and the session so far."""
        items = self.inputs[state.history_items]  # [B, N, X]
        hidden, _ = self.history(torch.cat([items, one_hot(state.history_feedback, len(Feedback))], dim=2))
        known = state.history_feedback > 0  # [B, N]
        logits = (hidden @ self.query(items[:, -1])[..., None]).squeeze(2) / hidden.shape[2] ** 0.5  # [B, N]
        attention = logits.masked_fill(~known, torch.finfo(logits.dtype).min).softmax(dim=1)
        attended = (attention[:, None] @ hidden).squeeze(1)  # [B, gru]
        shown = state.page_feedback > 0  # [B, P, K]
        age = torch.arange(shown.shape[1] - 1, -1, -1, device=shown.device)
        weight = (shown * DECAY ** age[:, None]).flatten(1) / self.page_size  # [B, P·K]
        recent = (weight[:, None] @ self.inputs[state.page_items.flatten(1)]).squeeze(1)  # [B, X] what was shown lately
        last = one_hot(state.page_feedback[:, -1], len(Feedback))[..., 1:].sum(dim=1) / self.page_size  # [B, 5]
        pages = state.pages_seen.float().log1p()[:, None]
        seen = torch.cat([state.user_features, hidden[:, -1], attended, recent, last, pages], dim=1)
        encoded: Tensor = self.state(seen)
        return encoded

    def value(self, encoded: Tensor, goal: Tensor) -> Tensor:
        """V(s, g), [B, K, P], for states [B, S] and goals [B, K, D]."""
        goals = self.goal(goal)  # [B, K, G]
        joined = torch.cat([encoded[:, None].expand(*goals.shape[:2], -1), goals], dim=2)
        value: Tensor = self.value_head(self.value_hidden(joined))
        return value

    def advantage(self, encoded: Tensor, goal: Tensor, items: Tensor) -> Tensor:
        """A(s, g, a), [B, K, P], for states [B, S], goals [B or 1, K or 1, D] and items [B, K]."""
        inputs = self.inputs[items]  # [B, K, X]
        embedded = self.item(inputs if self.ids is None else torch.cat([inputs, self.ids(items)], dim=2))
        crossed = self.cross_state(encoded)[:, None] * self.cross_item(inputs)  # [B, K, E]
        of_request = self.from_state(encoded)[:, None] + self.from_goal(self.goal(goal))
        hidden = torch.relu(of_request + self.from_item(embedded) + self.from_cross(crossed))
        advantage: Tensor = self.advantage_head(hidden)
        return advantage

    def uncertainty_loss(self, error: Tensor) -> Tensor:
        """Σ_j [exp(−s_j)·‖e_j‖² + s_j], the mean over rows of errors [n, P] (eq. 9)."""
        squared = error.square() @ self.membership  # [n, J]
        return ((-self.log_variance).exp() * squared + self.log_variance).sum(dim=1).mean()

    def penalty(self, advantage: Tensor) -> Tensor:
        """Σ exp(−s)·K·A² of the parts that come after the page, the mean over items [n, P]."""
        precision = self.membership @ (-self.log_variance.detach()).exp()  # [P]
        return self.page_size * (advantage.square() * precision * self.after).sum(dim=1).mean()

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        """Start V at the mean of targets [n, P], and s_j at their log variance, 0 (the paper's) where none vary."""
        variance = target.var(dim=0, correction=0) @ self.membership  # [J]
        self.log_variance.copy_(torch.where(variance > 1e-3, variance, 1.0).log())
        self.bound_variances()
        self.value_head.bias.copy_(target.mean(dim=0))

    @torch.no_grad()
    def bound_variances(self) -> None:
        # The parameter and not its use: outside, a clamped one would have no gradient to come back by.
        self.log_variance.clamp_(-LOG_VARIANCE, LOG_VARIANCE)


def item_inputs(task: Task) -> Tensor:
    """What the model is told of an item, [I+1, X]: its standardised vector and its training click rate.

    The rate is a standardised logarithm, drawn to the catalogue's by PRIOR_IMPRESSIONS; the unknown item is zeros.
    """
    catalogue = task.catalogue
    overall = catalogue.popularity.sum() / catalogue.impressions.sum().clamp(min=1)
    smooth = (catalogue.popularity + PRIOR_IMPRESSIONS * overall) / (catalogue.impressions + PRIOR_IMPRESSIONS)
    rate = (smooth / overall.clamp(min=1e-9)).clamp(min=1e-3).log()
    rate = (rate / rate[1:].std(correction=0).clamp(min=1e-3)).clamp(-CLIP, CLIP)
    rate[0] = 0
    return torch.cat([item_vectors(catalogue), rate[:, None]], dim=1)


def principal_components(embeddings: Tensor, count: int) -> Tensor:
    """``fit_pca`` of pipeline/hindsight.py, which models may not import: [I+1, count], row 0 and missing axes zeros."""
    known = embeddings[1:].double()
    known = known - known.mean(dim=0)
    axes = torch.linalg.eigh(known.T @ known).eigenvectors.T.flip(0)[:count]  # [≤ count, E], largest variance first
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()  # the largest loading is positive
    components = torch.zeros(len(embeddings), count)
    components[1:, : len(axes)] = (known @ axes.T).float()
    return components


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers, each followed by a ReLU."""
    layers = [(nn.Linear(width, after), nn.ReLU()) for width, after in pairwise(widths)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def reward_goal(rewards: tuple[float, ...]) -> dict[str, float]:
    """The goal that adds up to the reward: each click, and what a purchase brings on top of its click."""
    click, purchase = rewards[Feedback.CLICK], rewards[Feedback.PURCHASE]
    return {"clicks": click, "purchases": purchase - click}


def explained_variance(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − mean squared error / variance of each part, [P], for rows [n, P]; 0 where the target does not vary."""
    variance = target.var(dim=0, correction=0)
    error = (predicted - target).square().mean(dim=0)
    return torch.where(variance > 1e-6, 1 - error / variance.clamp(min=1e-6), 0.0)
