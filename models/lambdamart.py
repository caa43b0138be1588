"""LambdaMART: regression trees on hand-made features, grown for the order of each page instead of for its clicks.

    score(s, i) = Σ_t η·tree_t(x(s, i)),   tree_t fits λ_i = Σ_j ±|ΔNDCG_ij|·σ(−(r_i − r_j)) over the pairs of a page

Burges, "From RankNet to LambdaRank to LambdaMART: An Overview", MSR-TR-2010-82, section 7; trees and gradients are
LightGBM's (objective ``lambdarank``, a page is a query, the gain of an item is its reward).

Deviations:
- `a_tree_a_batch`: every gradient step grows one tree on the pages of its batch (stochastic gradient boosting, Friedman
  2002), so that it sees the pages that the other agents see, and validation chooses the number of trees. The budget may
  have more steps than ``trees``: the rest grow nothing.
- `point_in_time`: of an item, x holds what the log had counted strictly before the page: showings and positives since
  it began; showings, positives and their ratio in four windows, and the age, from the table ``features``. When it ranks
  these are as of the session's start (re-ranking) or the page (off-policy), where that table has no row for what was
  not shown; in roll-outs, whose moments no log knows, as of the training window's end. Of the user, and of user and
  item, it sees what the state says at the decision (``PairFeatures``); brand, shop, hour and weekday are not in x.
- `rate_before_the_first_tree`: without a tree it ranks by the items' click rate, drawn to that of the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from models.base import AgentConfig, Candidates, StateBatch, Task, TransitionBatch
from models.goalrec import PRIOR_IMPRESSIONS, item_inputs
from models.observation import item_vectors
from pipeline.errors import ConfigError, DataError, ModelError

SCORED_PAIRS = 131_072  # (state, candidate) pairs scored at a time: bounds the memory of a large pool
WHOLE_WINDOW = 3  # columns of ``PairFeatures`` that know the whole training window, the page at hand too
MODEL = "model"  # the only entry of the weights: LightGBM's text as bytes


def import_lightgbm() -> Any:
    try:
        return import_module("lightgbm")
    except (ImportError, OSError) as error:  # OSError: its library lacks OpenMP
        raise ConfigError(f"lambdamart: lightgbm cannot be imported ({error}). Install lightgbm>=4.5.") from None


class LambdaMARTConfig(AgentConfig):
    """Sizes and rates of LightGBM; see the module's docstring for the deviations."""

    trees: int = Field(500, ge=1)  # at most
    leaves: int = Field(15, ge=2)  # of a tree
    learning_rate: float = Field(0.1, gt=0)
    min_leaf: int = Field(20, ge=1)  # shown items in a leaf
    l2: float = Field(1.0, ge=0)
    feature_share: float = Field(0.8, gt=0, le=1)  # of the features, drawn for each tree

    def build(self, task: Task, seed: int) -> LambdaMART:
        return LambdaMART(self, task, seed)


class PairFeatures:
    """A user and a candidate in numbers; float32 [B, K, width] for B states and candidates [B, K].

    Of the item: clicks, showings and click rate of the training window (``WHOLE_WINDOW``), free features. Of the pair:
    the cosine of the item's vector with the mean and the last of the history and with the mean of the last skips, the
    largest with an item of the history; how often it, and its category, are in the history and among the skips, and it
    on the last pages. Of the user: user features, lengths of the history and of the skips, pages seen.
    """

    def __init__(self, task: Task) -> None:
        catalogue = task.catalogue
        self.directions = normalize(item_vectors(catalogue), dim=1).to(task.device)  # [I+1, V]
        self.category = catalogue.category.to(task.device)
        counts = torch.stack([catalogue.popularity, catalogue.impressions], dim=1).log1p()
        rate = item_inputs(task)[:, -1:]
        self.of_item = torch.cat([counts, rate, catalogue.features], dim=1).to(task.device)  # [I+1, 3+F]
        self.width = self.of_item.shape[1] + 9 + task.user_width + 3

    def __call__(self, state: StateBatch, items: Tensor) -> Tensor:
        shape = items.shape
        known, skipped = state.history_feedback > 0, state.skipped_items > 0  # [B, N]
        direction = self.directions[items]  # [B, K, V]
        to_history = direction @ self.directions[state.history_items].transpose(1, 2)  # [B, K, N], 0 where unknown
        to_skips = direction @ self.directions[state.skipped_items].transpose(1, 2)
        length, skips = known.sum(dim=1, keepdim=True), skipped.sum(dim=1, keepdim=True)  # [B, 1]
        of_pair = [
            to_history.sum(dim=2) / length.clamp(min=1),
            to_history[:, :, -1],
            to_history.amax(dim=2),
            to_skips.sum(dim=2) / skips.clamp(min=1),
            *(self._matches(items, state.history_items, known)),
            *(self._matches(items, state.skipped_items, skipped)),
            self._matches(items, state.page_items.flatten(1), state.page_feedback.flatten(1) > 0)[0],
        ]  # each [B, K]
        of_user = torch.cat([state.user_features, length, skips, state.pages_seen[:, None]], dim=1)  # [B, U+3]
        pair = torch.stack(of_pair, dim=2)  # [B, K, 9]
        return torch.cat([self.of_item[items], pair, of_user[:, None].expand(*shape, -1)], dim=2)

    def _matches(self, items: Tensor, listed: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """How many of ``listed`` [B, N] are each of ``items`` [B, K], and of its category, [B, K] both."""
        known = there[:, None] & (listed > 0)[:, None]  # [B, 1, N]
        same = (items[..., None] == listed[:, None]) & known  # [B, K, N]
        kind = (self.category[items][..., None] == self.category[listed][:, None]) & known
        return same.sum(dim=2).float(), kind.sum(dim=2).float()


class LambdaMART:
    """Boosted trees behind the contract of gradient agents; only original rows are learnt from."""

    def __init__(self, config: LambdaMARTConfig, task: Task, seed: int) -> None:
        self.lightgbm = import_lightgbm()
        self.config, self.task, self.seed, self.steps = config, task, seed, 0
        self.pairs = PairFeatures(task)
        catalogue = task.catalogue
        self.counters = catalogue.counters.to(task.device)  # [I+1, C]
        self.overall = float(catalogue.popularity.sum() / catalogue.impressions.sum().clamp(min=1))  # click rate
        self.width = 1 + self.counters.shape[1] + self.pairs.width - WHOLE_WINDOW
        self.booster: Any = None
        gains, labels = np.unique(np.maximum(task.rewards, 0.0), return_inverse=True)
        self.gains = torch.from_numpy(gains).float().to(task.device)  # of each label
        self.label = torch.from_numpy(labels).to(task.device)  # [6] of each feedback code: the rank of its reward

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        """The sum of the trees for each candidate, [B, K]."""
        rows = max(1, SCORED_PAIRS // max(1, candidates.items.shape[1]))
        scores = []
        for at in range(0, len(state), rows):
            items = candidates.items[at : at + rows]
            known = candidates.counters
            counters = self.counters[items] if known is None else known[at : at + rows]
            scores.append(self._predict(self._features(state[at : at + rows], items, counters)))
        return torch.cat(scores) if scores else candidates.items.float()

    def _features(self, state: StateBatch, items: Tensor, counters: Tensor) -> Tensor:
        """What the trees see, float32 [B, K, width]: click rate, ``counters`` [B, K, C] of the items, pair and user."""
        shown, positive = counters[..., :1], counters[..., 1:2]
        rate = (positive + PRIOR_IMPRESSIONS * self.overall) / (shown + PRIOR_IMPRESSIONS)
        return torch.cat([rate, counters, self.pairs(state, items)[..., WHOLE_WINDOW:]], dim=2)

    def _predict(self, features: Tensor) -> Tensor:
        if self.booster is None:
            return features[..., 0]  # the click rate
        flat = features.flatten(0, -2).cpu().numpy()
        scores = torch.from_numpy(self.booster.predict(flat, raw_score=True, num_threads=1))
        return scores.float().view(features.shape[:-1]).to(features.device)

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One more tree, of the original rows of ``batch``; raises DataError where there is none."""
        batch = batch[~batch.hindsight & batch.mask.any(dim=1)]
        if not len(batch):
            raise DataError("A batch without original rows came to LambdaMART, which learns from no others. "
                            "Give it batches of rows with hindsight = False.")  # fmt: skip
        features = self._features(batch.state, batch.items, batch.counters)  # [B, K, width]
        labels = self.label[batch.feedback]  # [B, K]
        gains = self.gains[labels] * batch.mask
        loss = 1 - mean_ndcg(self._predict(features), gains, batch.mask)
        self.steps += 1
        if self.booster is None or self.booster.num_trees() < self.config.trees:
            self._grow(features[batch.mask], labels[batch.mask], batch.mask.sum(dim=1))
        return {"loss": loss, "trees": float(self.booster.num_trees())}

    def _grow(self, features: Tensor, labels: Tensor, groups: Tensor) -> None:
        """``features`` [n, F] and ``labels`` [n] of the items of all pages, ``groups`` [B] of them on each."""
        config = self.config
        settings = {
            "objective": "lambdarank",
            "label_gain": self.gains.tolist(),
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_leaf,
            "lambda_l2": config.l2,
            "feature_fraction": config.feature_share,
            "seed": (1_000_003 * self.seed + self.steps) % 2**31,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,  # one process a seed
            "verbosity": -1,
        }
        pages = self.lightgbm.Dataset(features.cpu().numpy(), labels.cpu().numpy(), group=groups.cpu().numpy())
        self.booster = self.lightgbm.train(settings, pages, num_boost_round=1, init_model=self.booster)

    def state_dict(self) -> dict[str, Tensor]:
        """LightGBM's own text format as bytes [n] uint8; none before the first tree."""
        text = self.booster.model_to_string().encode() if self.booster is not None else b""
        return {MODEL: torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ModelError for anything but a model of as many features as this task has."""
        model = state.get(MODEL)
        if model is None or model.dtype != torch.uint8 or model.dim() != 1:
            raise ModelError(f"These weights do not fit LambdaMART: {MODEL!r} must be the bytes of LightGBM's text. "
                             "Load weights that LambdaMART saved.")  # fmt: skip
        booster = self._read(model.cpu().numpy().tobytes().decode()) if len(model) else None
        if booster is not None and booster.num_feature() != self.width:
            raise ModelError(f"These trees do not fit LambdaMART on this log: they ask for {booster.num_feature()} "
                             f"features, and it has {self.width}. Train again.")  # fmt: skip
        self.booster = booster

    def _read(self, text: str) -> Any:
        try:
            return self.lightgbm.Booster(model_str=text)
        except self.lightgbm.basic.LightGBMError as error:
            raise ModelError(f"These weights do not fit LambdaMART: LightGBM cannot read them ({error}). "
                             "Load weights that LambdaMART saved.") from None  # fmt: skip

    def training_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self.steps = int(state["steps"])


def mean_ndcg(scores: Tensor, gains: Tensor, mask: Tensor) -> float:
    """Mean NDCG of the pages [B, K] that have a gain; 1 where none has."""
    discount = torch.arange(2, scores.shape[1] + 2, device=scores.device).float().log2().reciprocal()  # [K]
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    found = (gains.gather(1, order) * discount).sum(dim=1)  # [B]
    best = (gains.sort(dim=1, descending=True).values * discount).sum(dim=1)
    return float((found / best)[best > 0].mean()) if bool((best > 0).any()) else 1.0
