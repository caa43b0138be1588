"""The state as one flat vector: what the d3rlpy baselines and other simple agents see of a user.

observation = [user features; mean and decayed mean of the last positive items; mean of the last skipped items;
               feedback counts of the last page / page size; log(1 + pages seen)]

An item is its vector standardised over the catalogue (``item_vectors``). Only items with a known vector enter a mean:
neither padding nor an item unseen in the training window pulls it towards zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.base import Catalogue, StateBatch, Task
from models.feedback import Feedback

CLIP = 3.0  # standard deviations: free item features (prices, counts) have heavy tails


def item_vectors(catalogue: Catalogue) -> Tensor:
    """Embedding and features of each item as z-scores over the known items, clipped to ±CLIP; float32 [I+1, V].

    Constant columns and row 0, the unknown item, are zeros: the average item.
    """
    raw = catalogue.vectors
    known = raw[1:]  # [I, V]
    spread = known.std(dim=0, correction=0)
    # Relative, because float32 leaves a constant column of large values a tiny spread of its own.
    constant = spread <= 1e-6 * known.abs().amax(dim=0).clamp(min=1e-6)
    scores = (raw - known.mean(dim=0)) / spread.masked_fill(constant, torch.inf)
    scores[0] = 0
    return scores.clamp(-CLIP, CLIP)


class ObservationEncoder:
    """Encodes B states into float32 [B, width]; it has no weights and is fixed once the catalogue is.

    ``decay`` is the weight of a positive item relative to the next newer one, in the decayed mean.
    """

    def __init__(self, task: Task, decay: float = 0.8) -> None:
        self.vectors = item_vectors(task.catalogue).to(task.device)  # [I+1, V]
        self.page_size = task.page_size
        self.decay = decay
        self.width = task.user_width + 3 * self.vectors.shape[1] + len(Feedback) - 1 + 1

    def __call__(self, state: StateBatch) -> Tensor:
        return torch.cat(
            [
                state.user_features,
                self._mean(state.history_items, decay=1.0),
                self._mean(state.history_items, self.decay),
                self._mean(state.skipped_items, decay=1.0),
                self._last_page_counts(state),
                state.pages_seen.float().log1p()[:, None],
            ],
            dim=1,
        )

    def _mean(self, items: Tensor, decay: float) -> Tensor:
        """Mean vector of the known ``items`` [B, N], newest last, or zeros where there is none: [B, V]."""
        age = torch.arange(items.shape[1] - 1, -1, -1, device=items.device)  # [N]
        weight = decay**age * (items > 0)  # [B, N]
        total = (weight[:, None] @ self.vectors[items])[:, 0]  # [B, 1, N] @ [B, N, V]
        return total / weight.sum(dim=1, keepdim=True).clamp(min=1e-9)

    def _last_page_counts(self, state: StateBatch) -> Tensor:
        """Share of the last page's slots that got each feedback from SKIP on, [B, 5]."""
        codes = one_hot(state.page_feedback[:, -1], len(Feedback))  # [B, K, 6]
        return codes[:, :, 1:].sum(dim=1) / self.page_size
