"""Temporal differences, once for every agent: the target value and the slowly moving target network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def td_target(rewards: Tensor, discount: float, terminated: Tensor, next_q: Tensor) -> Tensor:
    """``y = r + γ·(1 − terminated)·Q⁻(s′, a′)``, [B], without a gradient (Sutton & Barto 2018, eq. 6.3).

    ``terminated`` means that the user left. A session cut by a length cap (truncated) is not terminated: it keeps its
    bootstrap. For n-step returns pass ``discount ** n``.
    """
    return (rewards + discount * next_q.masked_fill(terminated, 0.0)).detach()


@torch.no_grad()
def soft_update(target: nn.Module, source: nn.Module, rate: float) -> None:
    """``θ⁻ ← τθ + (1 − τ)θ⁻`` with ``rate`` τ (Lillicrap et al. 2016, section 3)."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast, rate)
