"""GoalRec's harder worlds: what an agent sees is high-dimensional, or its rewards are noisy and late.

Trend:    y_t = a·y_{t−1} + b·y_{t−2} + ε_t, Var ε = 0.2, y = 0 before a session; it shifts the click's logit
Delay:    the reward of page t is delivered with that of page t + 3; what is owed at a session's end comes with its last
Crosses:  features in quantile buckets; each bucket, and each pair of buckets, is hashed to an index

Paper: Wang et al., AAAI 2021, the variants of its simulated environments. Deviations: as printed, a = b = 1 diverges
(its standard deviation is 3900 at step 20), and noise of this size on a click probability of 0.02 would make the click
rate twenty times what the paper reports; so the default is stationary (0.5, 0.3) and acts on the logit. ``half_half``
(0.5, 0.5, a unit root, cut at ±2) and ``literal_clipped`` (1, 1, cut at ±1) are there to compare. How features are
crossed is not stated: ours.
"""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.hashing import mix64
from pipeline.errors import DataError

TrendMode = Literal["stationary", "half_half", "literal_clipped"]
TRENDS: dict[TrendMode, tuple[float, float, float]] = {  # a, b, where y is cut
    "stationary": (0.5, 0.3, float("inf")),
    "half_half": (0.5, 0.5, 2.0),
    "literal_clipped": (1.0, 1.0, 1.0),
}
VARIANCE = 0.2  # of ε


class TrendNoise:
    """The trend as a step from its last two values to the next; sessions start from zeros."""

    def __init__(self, mode: TrendMode = "stationary") -> None:
        self.newest, self.older, self.limit = TRENDS[mode]
        if mode == "literal_clipped":
            warnings.warn(
                "trend 'literal_clipped' follows the printed formula, which diverges: cut at ±1 it is little more than "
                "a sign that rarely changes. Use 'stationary' for results.",
                stacklevel=2,
            )

    def __call__(self, last: Tensor, noise: Tensor) -> Tensor:
        """(y_t, y_{t−1}) [A, 2] from (y_{t−1}, y_{t−2}) [A, 2] and standard normal ``noise`` [A]."""
        value = self.newest * last[:, 0] + self.older * last[:, 1] + VARIANCE**0.5 * noise
        return torch.stack([value.clamp(-self.limit, self.limit), last[:, 0]], dim=1)


class DelayedRewards:
    """Rewards that come ``delay`` pages late."""

    def __init__(self, delay: int = 3) -> None:
        self.delay = delay

    def __call__(self, owed: Tensor, rewards: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """What is delivered now [A] and what is still owed [A, delay], given ``owed`` so far, the next one first.

        Where the session has ``ended`` [A], everything is delivered.
        """
        queue = torch.cat([owed, rewards[:, None]], dim=1)  # [A, delay+1]
        delivered = torch.where(ended, queue.sum(dim=1), queue[:, 0])
        return delivered, queue[:, 1:].masked_fill(ended[:, None], 0)


def normals(draws: Tensor) -> Tensor:
    """Standard normal numbers from uniform ``draws`` in [0, 1) of 24 bits, any shape."""
    middles = draws.double() + 2**-25  # never 0 or 1
    return torch.erfinv(2 * middles - 1).mul(2**0.5).float()


STATE_WIDTH, ITEM_WIDTH = 30_000, 10_000  # of GoalRec's high-dimensional variant


class CrossedFeatures:
    """Vectors as sets of indices: the quantile bucket of each feature, and crosses of two features' buckets, hashed.

    ``fitted_on`` [n, V] gives the quantiles. Where there are more than ``crosses`` pairs of features, a fixed sample of
    them is crossed. The indices run from 0 to ``width`` - 1; different crosses may share one.
    """

    def __init__(self, fitted_on: Tensor, width: int, buckets: int = 10, crosses: int = 500) -> None:
        if not len(fitted_on) or not fitted_on.isfinite().all():
            raise DataError(f"Quantiles of {len(fitted_on)} rows were asked for, or some are not finite. "
                            "Give at least one row of finite features.")  # fmt: skip
        self.width, self.buckets, device = width, buckets, fitted_on.device
        levels = np.linspace(0, 1, buckets + 1)[1:-1]
        edges = np.quantile(fitted_on.cpu().numpy(), levels, axis=0).T  # [V, buckets-1]
        self.edges = torch.from_numpy(np.ascontiguousarray(edges, dtype=np.float32)).to(device)
        pairs = torch.tensor(list(combinations(range(len(edges)), 2)), dtype=torch.int64).view(-1, 2)
        if len(pairs) > crosses:
            pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:crosses]]
        self.pairs = pairs.T.to(device)  # [2, P]

    @property
    def active(self) -> int:
        """Indices of one vector."""
        return len(self.edges) + self.pairs.shape[1]

    def __call__(self, vectors: Tensor) -> Tensor:
        """The indices of ``vectors`` [B, V], for an EmbeddingBag: [B, active] int64."""
        found = torch.searchsorted(self.edges, vectors.T.contiguous(), right=True).T  # [B, V]
        codes = (
            1 + found + self.buckets * torch.arange(len(self.edges), device=found.device)
        )  # from 1: 0 says "not crossed"
        first, second = codes[:, self.pairs[0]], codes[:, self.pairs[1]]  # [B, P]
        hashed = torch.cat([mix64(torch.zeros_like(codes), codes), mix64(first, second)], dim=1)
        return hashed % self.width  # the sign of the divisor: never below 0
