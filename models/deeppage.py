"""DeepPage, offline: a recurrent state over whole pages, and a decoder that dreams the next one.

The actor answers a state with a *proto page*, one vector of the item space for each slot; Algorithm 1 places the most
similar real item into each. The critic judges pages. Both see a page as a grid, so neighbours count.

    s_cur = Σ_j softmax(w·h_j)·h_j,  h_j = GRU(CNN(page_j), h_{j−1}),  h_0 = GRU(items before the session)
    y = r + γ·(1 − terminated)·Q⁻(s′, π⁻(s′)),  r = Σ rewards of the page's items             (eqs. 15, 17, 18)
    actor: first min ‖π(s) − logged page‖²_F (eq. 16), then max Q(s, π(s)) (eq. 19)

Zhao X. et al., "Deep Reinforcement Learning for Page-wise Recommendations", RecSys 2018, section 2, whose numbers
of equations and algorithms are ours. As there, a state holds items, pages and feedback, and nothing else of the user.

Deviations and choices where the paper is silent:
- `row_kernel`: the grid is rows × cols with one channel a feature; a kernel spans 3 rows and all columns.
- `six_codes`: feedback is one of our six codes, not of skip, click and purchase.
- `empty_slots`: they are zero vectors for the networks and out of eq. 16, as are items unknown to the catalogue.
- `given_candidates`: Algorithm 1 chooses among the candidates it is given, not among neighbours of the user's clicks.
- `proto_target`: y bootstraps at the target actor's proto page, not at its mapped page.
- `bounded_proto`: tanh times the largest |value| of each item dimension bounds the proto page.
- `mean_distance`: eq. 16 is averaged over the batch instead of summed, so that its size does not matter.
- `own_optimiser`: eq. 16 has an Adam of its own, so that its steps and those of eq. 19 keep their scales apart.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.base import AgentConfig, Candidates, StateBatch, Task, TransitionBatch
from models.feedback import Feedback
from models.td import soft_update, td_target
from pipeline.errors import ModelError


class DeepPageConfig(AgentConfig):
    """Sizes and rates; see the module's docstring for what they do."""

    item_width: int = Field(50, ge=1)  # |E| of the embedding layer
    category_width: int = Field(35, ge=1)  # |C|
    feedback_width: int = Field(15, ge=1)  # |F|
    channels: int = Field(64, ge=1)  # of the convolutions
    hidden: int = Field(128, ge=1)  # of the GRUs, the page vectors and the critic
    discount: float = Field(0.95, ge=0, le=1)  # γ; 0 = the same agent with the future removed
    target_rate: float = Field(0.01, gt=0, le=1)  # τ of the target networks
    supervised_lr: float = Field(1e-3, ge=0)  # of eq. 16; 0 leaves DDPG alone
    actor_lr: float = Field(1e-4, ge=0)  # of eq. 19; 0 leaves the clone of the logged pages
    critic_lr: float = Field(1e-3, ge=0)
    weight_by_reward: bool = False  # eq. 16: weight 1 + reward a slot, so that clicks outweigh skips (paper: all equal)

    def build(self, task: Task, seed: int) -> DeepPage:
        return DeepPage(self, task, seed)


class DeepPage:
    """A page-wise agent trained by gradient steps. Uses original rows only."""

    def __init__(self, config: DeepPageConfig, task: Task, seed: int) -> None:
        self.config, self.task, self.discount = config, task, config.discount
        # Initialised on the CPU from a generator of its own: the same weights on every device, and no global seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks = nn.ModuleDict({"actor": Actor(config, task), "critic": Critic(config, task)})
        self.networks = networks.to(task.device)
        self.targets = copy.deepcopy(self.networks).requires_grad_(False)
        self.embeddings = task.catalogue.embeddings.to(task.device)
        self.directions = F.normalize(self.embeddings, dim=1)
        self.optimisers = {
            "supervised": torch.optim.Adam(self.networks["actor"].parameters(), lr=config.supervised_lr),
            "actor": torch.optim.Adam(self.networks["actor"].parameters(), lr=config.actor_lr),
            "critic": torch.optim.Adam(self.networks["critic"].parameters(), lr=config.critic_lr),
        }

    @torch.no_grad()
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        """Cosine of each candidate to the slot of the proto page that resembles it most, [B, K]."""
        return self._similarities(state, candidates).amax(dim=1)

    @torch.no_grad()
    def rank_page(self, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
        """Algorithm 1 on the proto page. Raises ModelError for a page of another shape than the trained one."""
        if (rows, cols) != (self.task.rows, self.task.cols):
            raise ModelError(
                f"DeepPage was built for pages of {self.task.rows} × {self.task.cols} and was asked for "
                f"{rows} × {cols}. Ask for its own shape, or train it with sessions.rows and sessions.cols set so."
            )
        return map_page(self._similarities(state, candidates), candidates)

    @torch.no_grad()
    def predicted_return(self, state: StateBatch, items: Tensor) -> Tensor:
        """Q(s, page), [B], of pages [B, S]. Raises ModelError for a page of another size than the trained one."""
        if items.shape[1] != self.task.page_size:
            raise ModelError(
                f"DeepPage judges pages of {self.task.page_size} slots and was given {items.shape[1]}. "
                "Mark empty slots with -1, or train it with sessions.rows and sessions.cols set so."
            )
        page = self.embeddings[items.clamp(min=0)] * (items >= 0)[..., None]  # [B, S, E]
        q_values: Tensor = self.networks["critic"](state, page)
        return q_values

    def _similarities(self, state: StateBatch, candidates: Candidates) -> Tensor:
        proto = F.normalize(self.networks["actor"](state), dim=2)  # [B, S, E]
        return torch.bmm(proto, self.directions[candidates.items].transpose(1, 2))  # [B, S, K]

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One step of eq. 16, then one of DDPG: the critic on the logged pages, the actor on its proto pages."""
        batch = batch[~batch.hindsight]
        if not len(batch):
            raise ModelError("DeepPage.update: the batch holds no original row. Sample some, or a larger batch.")
        state = batch.state
        page = self.embeddings[batch.items] * batch.mask[..., None]  # [B, S, E]
        losses = {"supervised": self._step("supervised", self._imitation_loss(batch, page))}
        losses["critic"] = self._step("critic", F.mse_loss(self.networks["critic"](state, page), self._target(batch)))
        self.networks["critic"].requires_grad_(False)  # eq. 19 moves the actor alone
        losses["actor"] = self._step("actor", -self.networks["critic"](state, self.networks["actor"](state)).mean())
        self.networks["critic"].requires_grad_(True)
        soft_update(self.targets, self.networks, self.config.target_rate)
        return losses

    def _imitation_loss(self, batch: TransitionBatch, page: Tensor) -> Tensor:
        """Eq. 16 over known items: squared Frobenius distance of proto and logged page, mean over the batch."""
        proto: Tensor = self.networks["actor"](batch.state)
        distance = (proto - page).square().sum(dim=2)  # [B, S]
        weights = (batch.mask & (batch.items > 0)).float()
        if self.config.weight_by_reward:
            weights = weights * (1 + batch.rewards)
        return (weights * distance).sum(dim=1).mean()

    @torch.no_grad()
    def _target(self, batch: TransitionBatch) -> Tensor:
        after = batch.state.advance(batch.items, batch.feedback)
        next_q = self.targets["critic"](after, self.targets["actor"](after))
        return td_target(batch.rewards.sum(dim=1), self.discount, batch.terminated, next_q)

    def _step(self, name: str, loss: Tensor) -> float:
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.item()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.networks.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ModelError where names or shapes differ from this agent's."""
        try:
            self.networks.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"These weights do not fit DeepPage as configured: {reason}. Load them with the settings and the "
                "catalogue they were trained with."
            ) from None

    def training_state(self) -> dict[str, Any]:
        optimisers = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
        return {"targets": dict(self.targets.state_dict()), "optimisers": optimisers}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self.targets.load_state_dict(state["targets"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])


def map_page(similarities: Tensor, candidates: Candidates) -> Tensor:
    """Algorithm 1: slot by slot the most similar candidate that is left, [B, S, K] → indices [B, S], -1 for none.

    Equally similar candidates are taken in the order of their tie hash.
    """
    order = candidates.tie.argsort(dim=1, stable=True)  # [B, K]
    similarities = similarities.gather(2, order[:, None].expand_as(similarities))
    left = candidates.mask.gather(1, order)  # [B, K]
    slots = []
    for slot in similarities.unbind(dim=1):
        best = slot.masked_fill(~left, -torch.inf).argmax(dim=1, keepdim=True)  # the first of equals
        slots.append(torch.where(left.gather(1, best), order.gather(1, best), -1))
        left = left.scatter(1, best, False)
    return torch.cat(slots, dim=1)


class PageCNN(nn.Module):
    """A page's slot vectors on their grid → one vector of the page (eqs. 9 and 13)."""

    def __init__(self, width: int, config: DeepPageConfig, task: Task) -> None:
        super().__init__()
        self.grid = (width, task.rows, task.cols)
        self.convolution = nn.Conv2d(width, config.channels, (3, task.cols), padding=(1, 0))
        self.linear = nn.Linear(config.channels * task.rows, config.hidden)

    def forward(self, slots: Tensor) -> Tensor:  # [M, S, X] → [M, hidden]
        grid = slots.transpose(1, 2).reshape(-1, *self.grid)  # [M, X, rows, cols]
        columns = F.relu(self.convolution(grid)).flatten(1)  # [M, channels · rows]
        return torch.tanh(self.linear(columns))  # in (-1, 1), as a GRU likes it


class StateEncoder(nn.Module):
    """The user's state s_cur [B, hidden] from the items before the session and the pages in it (eqs. 3-11)."""

    embeddings: Tensor
    category: Tensor

    def __init__(self, config: DeepPageConfig, task: Task) -> None:
        super().__init__()
        catalogue = task.catalogue
        # The catalogue comes with the task; weights without it stay small and fit any vocabulary.
        self.register_buffer("embeddings", catalogue.embeddings, persistent=False)
        self.register_buffer("category", catalogue.category, persistent=False)
        self.item = nn.Linear(catalogue.embeddings.shape[1], config.item_width)
        # A linear layer on a one-hot code is a look-up.
        self.category_code = nn.Embedding(catalogue.n_categories, config.category_width)
        self.feedback_code = nn.Embedding(len(Feedback), config.feedback_width)
        self.initial_gru = nn.GRU(config.item_width, config.hidden, batch_first=True)
        self.page = PageCNN(config.item_width + config.category_width + config.feedback_width, config, task)
        self.session_gru = nn.GRU(config.hidden, config.hidden, batch_first=True)
        self.attention = nn.Linear(config.hidden, 1)

    def forward(self, state: StateBatch) -> Tensor:
        h_0 = self.initial_state(state)  # [B, hidden]
        seen = (state.page_feedback > 0).any(dim=2)  # [B, P]
        pages = h_0.new_zeros(*seen.shape, h_0.shape[1])  # [B, P, hidden]
        pages[seen] = self.page(self.slot_vectors(state.page_items[seen], state.page_feedback[seen]))
        hidden, seen, _ = masked_gru(self.session_gru, pages, seen, h_0)
        current = (self.attention_weights(hidden, seen)[..., None] * hidden).sum(dim=1)
        return torch.where(seen.any(dim=1, keepdim=True), current, h_0)

    def initial_state(self, state: StateBatch) -> Tensor:
        """Eqs. 3-6, [B, hidden]; zeros for a user without a past."""
        items = torch.tanh(self.item(self.embeddings[state.initial_items]))  # [B, N, |E|]
        h_0 = items.new_zeros(len(items), self.initial_gru.hidden_size)
        return masked_gru(self.initial_gru, items, state.initial_feedback > 0, h_0)[2]

    def slot_vectors(self, items: Tensor, feedback: Tensor) -> Tensor:
        """Eqs. 7-8, [..., |E| + |C| + |F|]; zeros for empty slots."""
        parts = (
            self.item(self.embeddings[items]),
            self.category_code(self.category[items]),
            self.feedback_code(feedback),
        )
        return torch.tanh(torch.cat(parts, dim=-1)) * (feedback > 0)[..., None]

    def attention_weights(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Eq. 11, [B, P]: from each hidden state alone, over the pages seen."""
        logits: Tensor = self.attention(hidden).squeeze(2)
        # The smallest float instead of -inf: a row without pages has finite weights, and its sum goes unused.
        return logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(dim=1)


class Actor(nn.Module):
    """State → proto page [B, S, E], by deconvolution (eq. 12)."""

    bound: Tensor

    def __init__(self, config: DeepPageConfig, task: Task) -> None:
        super().__init__()
        embeddings = task.catalogue.embeddings
        self.encoder = StateEncoder(config, task)
        self.linear = nn.Linear(config.hidden, config.channels * task.rows)
        self.deconvolution = nn.ConvTranspose2d(config.channels, embeddings.shape[1], (3, task.cols), padding=(1, 0))
        for parameter in self.deconvolution.parameters():
            parameter.data.mul_(0.1)  # a deterministic policy starts near the middle of its range
        self.columns = (config.channels, task.rows, 1)
        self.register_buffer("bound", embeddings.abs().amax(dim=0), persistent=False)  # [E]

    def forward(self, state: StateBatch) -> Tensor:
        columns = F.relu(self.linear(self.encoder(state))).view(-1, *self.columns)  # [B, channels, rows, 1]
        grid = self.deconvolution(columns)  # [B, E, rows, cols]
        return self.bound * torch.tanh(grid.flatten(2).transpose(1, 2))


class Critic(nn.Module):
    """Q(s, page) [B], with a state encoder of its own (eq. 13)."""

    def __init__(self, config: DeepPageConfig, task: Task) -> None:
        super().__init__()
        self.encoder = StateEncoder(config, task)
        self.page = PageCNN(task.catalogue.embeddings.shape[1], config, task)
        self.head = nn.Sequential(nn.Linear(2 * config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))

    def forward(self, state: StateBatch, page: Tensor) -> Tensor:
        q_values: Tensor = self.head(torch.cat([self.encoder(state), self.page(page)], dim=1))
        return q_values.squeeze(1)


def masked_gru(gru: nn.GRU, inputs: Tensor, mask: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run a GRU over the inputs [B, T, X] that ``mask`` [B, T] keeps; the others leave no trace.

    Returns the hidden states moved to the left [B, T, H], which of them are real [B, T], and the last one [B, H]
    (``h_0`` where there is none).
    """
    lengths = mask.sum(dim=1)
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    inputs = inputs.gather(1, order[..., None].expand_as(inputs))
    # A packed sequence must not be empty: such rows run one step, whose result is dropped.
    packed = nn.utils.rnn.pack_padded_sequence(
        inputs, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
    )
    outputs, last = gru(packed, h_0[None])
    hidden, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=mask.shape[1])
    return hidden, mask.gather(1, order), torch.where(lengths[:, None] > 0, last[0], h_0)
