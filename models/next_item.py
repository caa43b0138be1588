"""What the next-item models GRU4Rec and SASRec share: how they see items, what they learn from a page, the contract.

A user's last positives become one vector q(s), and an item is worth its inner product with it. Nothing looks beyond
the page at hand: this is the supervised control, with the data, the features and the budget of the agents beside it.

    score(s, i) = ⟨q(s), e(i)⟩,   q(s) = W·[h(e(i₁) + f₁ … e(i_N) + f_N); u],   e(i) = id(i) + W·x(i)

    BCE:      Σ_p −w_p·log σ(r_p) + Σ_n −log(1 − σ(r_n))                                  (SASRec)
    BPR-max:  Σ_p w_p·[−log Σ_n s_n·σ(r_p − r_n) + λ·Σ_n s_n·r_n²],   s = softmax(r_n)    (GRU4Rec of 2018)

Deviations from both papers, which saw lists of clicks and no pages:
- `page_targets`: the targets are all positives of the page that was shown, not the one next item; a history trains its
  last position alone, because its earlier ones were the last of earlier pages.
- `page_negatives`: the skipped items of the same page are negatives, and beside them ``negatives`` items drawn with
  impressions^0.75, the same for all pages of a step (SASRec: one a positive; GRU4Rec: the batch's and 2,048 more).
- `same_features`: x(i) are the item's vector and its training click rate, u the user's features, f_n the kind of
  feedback: what the other agents see as well. The papers know ids alone; ``ids: false`` leaves those out.
- `reward_weights`, where switched on: a positive counts by its reward in clicks, w_p, and not 1.

The defaults were chosen on the demo's storefront, by NDCG@20 with rewards, paged, of 300 validation sessions after at
most 250 steps of 128 pages, with seed 11; in brackets what that gives on 800 test sessions. Popularity reaches 0.428
(0.413) there; seed 13 of GRU4Rec 0.420 (0.421) and of SASRec after 750 steps 0.425 (0.430).

    GRU4Rec  as it is                0.437 (0.429)        SASRec  as it is             0.394 (0.413)
             λ = 1                   0.400 (0.392)                after 750 steps      0.436 (0.437)
             no sampled negatives    0.434 (0.415)                BCE                  0.390 (0.389)
             weights by reward       0.424 (0.427)
             BCE                     0.396 (0.399)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from models.base import AgentConfig, Candidates, StateBatch, Task, TransitionBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.goalrec import item_inputs
from pipeline.errors import DataError, ModelError

SCORED_PAIRS = 131_072  # (state, candidate) pairs scored at a time: bounds the memory of a large pool
SAMPLING_POWER = 0.75  # α of GRU4Rec's sampled negatives


class NextItemConfig(AgentConfig):
    """What the two have in common."""

    width: int = Field(64, ge=1)  # of items, and of what is known of a user
    dropout: float = Field(0.2, ge=0, lt=1)
    loss: Literal["bce", "bpr_max"] = "bpr_max"
    negatives: int = Field(20, ge=0)  # sampled items a step, besides each page's skipped ones
    ids: bool = True  # learn an embedding of each item's id
    weight_by_reward: bool = False  # a purchase counts as many clicks as its reward is worth; False: all count 1
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    score_penalty: float = Field(0.0, ge=0)  # λ of BPR-max

    def encoder(self) -> nn.Module:
        """From the last positives [B, N, width], left-padded, and which are there [B, N], to one vector [B, width]."""
        raise TypeError(f"{type(self).__name__} must define encoder()")

    def build(self, task: Task, seed: int) -> NextItemAgent:
        return NextItemAgent(self, task, seed)


class NextItemNetwork(nn.Module):
    """q and e; B states, N history items, X features of an item, d width."""

    inputs: Tensor

    def __init__(self, config: NextItemConfig, task: Task) -> None:
        super().__init__()
        # The catalogue comes with the task; weights without it stay small.
        self.register_buffer("inputs", item_inputs(task), persistent=False)  # [I+1, X]
        self.item = nn.Linear(self.inputs.shape[1], config.width, bias=False)
        self.ids = nn.Embedding(len(task.catalogue), config.width, padding_idx=0) if config.ids else None
        if self.ids is not None:
            nn.init.normal_(self.ids.weight[1:], std=0.01)
        self.feedback = nn.Embedding(len(Feedback), config.width, padding_idx=0)
        self.encoder = config.encoder()
        self.query = nn.Linear(config.width + task.user_width, config.width)

    def items(self, items: Tensor) -> Tensor:
        """e(i) of any shape of items, [..., d]."""
        vectors: Tensor = self.item(self.inputs[items])
        return vectors if self.ids is None else vectors + self.ids(items)

    def logits(self, query: Tensor, items: Tensor) -> Tensor:
        """⟨q, e(i)⟩ of each user's own items: queries [B, d] and items [B, K] → [B, K]."""
        return (self.items(items) @ query[..., None])[..., 0]

    def forward(self, state: StateBatch) -> Tensor:
        """q(s), [B, d]."""
        known = state.history_feedback > 0  # [B, N]
        history = self.items(state.history_items) + self.feedback(state.history_feedback)  # [B, N, d]
        encoded = self.encoder(history, known)  # [B, d]
        query: Tensor = self.query(torch.cat([encoded, state.user_features], dim=1))
        return query


class NextItemAgent:
    """A supervised ranker behind the contract of gradient agents; only original rows are learnt from."""

    def __init__(self, config: NextItemConfig, task: Task, seed: int) -> None:
        self.config, self.task, self.seed, self.steps = config, task, seed, 0
        with self._own_randomness():
            network = NextItemNetwork(config, task)
        self.network = network.to(task.device).eval()
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        click = task.rewards[Feedback.CLICK]
        worth = [reward / click if config.weight_by_reward and click > 0 else 1.0 for reward in task.rewards]
        self.worth = torch.tensor(worth, device=task.device)  # [6] w of each feedback code
        self.sampling = task.catalogue.impressions.double().pow(SAMPLING_POWER).cumsum(dim=0)  # [I+1]

    @torch.no_grad()
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        """⟨q(s), e(i)⟩ of each candidate, [B, K]."""
        rows = max(1, SCORED_PAIRS // max(1, candidates.items.shape[1]))
        scores = [
            self.network.logits(self.network(state[at : at + rows]), candidates.items[at : at + rows])
            for at in range(0, len(state), rows)
        ]
        return torch.cat(scores) if scores else candidates.items.float()

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One gradient step on the original rows of ``batch``; raises DataError where there is none."""
        batch = batch[~batch.hindsight & batch.mask.any(dim=1)]
        if not len(batch):
            raise DataError(f"A batch without original rows came to {type(self.config).__name__}'s agent, which learns "
                            "from no others. Give it batches of rows with hindsight = False.")  # fmt: skip
        self.steps += 1
        with self._own_randomness():
            self.network.train()
            loss = self._loss(batch)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            self.network.eval()
        return {"loss": float(loss.detach())}

    def _loss(self, batch: TransitionBatch) -> Tensor:
        query = self.network(batch.state)  # [B, d]
        on_page = self.network.logits(query, batch.items)  # [B, K]
        drawn = self._negatives().to(query.device)  # [M]
        sampled = query @ self.network.items(drawn).T  # [B, M]
        elsewhere = (drawn[:, None] != batch.items[:, None]).all(dim=2)  # [B, M], not on this page
        positive = batch.feedback >= FIRST_POSITIVE  # [B, K]
        weight = self.worth[batch.feedback] * positive  # [B, K]
        negative = torch.cat([batch.mask & ~positive, elsewhere], dim=1)  # [B, K+M]
        logits = torch.cat([on_page, sampled], dim=1)  # [B, K+M]
        if self.config.loss == "bce":
            return bce(on_page, weight, logits, negative)
        return bpr_max(on_page, weight, logits, negative, self.config.score_penalty)

    def _negatives(self) -> Tensor:
        """``negatives`` items [M] drawn with impressions^α, with replacement."""
        draws = torch.rand(self.config.negatives, dtype=torch.float64) * self.sampling[-1]
        return torch.searchsorted(self.sampling, draws, right=True).clamp(max=len(self.sampling) - 1)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ModelError where names or shapes differ from this agent's."""
        try:
            self.network.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"These weights do not fit {type(self.config).__name__}: {reason}. Load them with the "
                             "settings and the catalogue they were trained with.") from None  # fmt: skip

    def training_state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "steps": self.steps}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = int(state["steps"])

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Dropout draws from torch's global generator: seeded by (seed, step), a resumed run draws the same."""
        device = torch.device(self.task.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(1_000_003 * self.seed + self.steps)
            yield


def bce(positives: Tensor, weight: Tensor, logits: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy: logits [B, K] of positives with their weights (0 elsewhere), [B, J] and who is negative.

    The mean over both, a positive counting by its weight.
    """
    total = (weight * softplus(-positives)).sum() + (negative * softplus(logits)).sum()
    return total / (weight.sum() + negative.sum()).clamp(min=1)


def bpr_max(positives: Tensor, weight: Tensor, logits: Tensor, negative: Tensor, penalty: float) -> Tensor:
    """BPR-max with its score regularisation, the weighted mean over the positives of pages that have a negative."""
    log_share = logits.masked_fill(~negative, torch.finfo(logits.dtype).min).log_softmax(dim=1)  # [B, J] log s
    gap = logsigmoid(positives[:, :, None] - logits[:, None])  # [B, K, J]
    ranking = -(log_share[:, None] + gap).logsumexp(dim=2)  # [B, K]
    scores = (log_share.exp() * logits.square()).sum(dim=1, keepdim=True)  # [B, 1]
    weight = weight * negative.any(dim=1, keepdim=True)
    return (weight * (ranking + penalty * scores)).sum() / weight.sum().clamp(min=1)
