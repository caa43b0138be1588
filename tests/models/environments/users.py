"""A user model whose every answer is known: what the tests of the environments run on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.base import StateBatch, TensorBatch
from models.feedback import Feedback
from models.simulators.base import EMPTY, check_page


@dataclass(frozen=True)
class Memory(TensorBatch):
    """What ``PlainUsers`` remember."""

    mood: Tensor  # [B] float32, drawn at the start; each click lifts it
    pages: Tensor  # [B] int64


class PlainUsers:
    """They click item i with probability σ(z_i + mood), buy a quarter of that, and leave a page with ``exit_rate``."""

    def __init__(self, vocabulary: int, exit_rate: float = 0.2, scale: float = 1.0) -> None:
        self.logits = scale * torch.linspace(-2, 2, vocabulary)
        self.exit_rate = exit_rate
        self.shifts: list[Tensor | None] = []  # what step() was given

    def reset_width(self) -> int:
        return 1

    def step_width(self, slots: int) -> int:
        return 2 * slots + 1

    def reset(self, state: StateBatch, draws: Tensor) -> Memory:
        return Memory(draws[:, 0] - 0.5, torch.zeros_like(state.pages_seen))

    def positive_probabilities(self, hidden: Memory, items: Tensor) -> Tensor:
        return (self.logits[items] + hidden.mood[:, None]).sigmoid()

    def step(
        self, hidden: Memory, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Memory]:
        check_page(items, len(self.logits))
        self.shifts.append(shift)
        slots = items.shape[1]
        logits = self.logits[items.clamp(min=0)] + hidden.mood[:, None] + (0 if shift is None else shift[:, None])
        clicked = draws[:, :slots] < logits.sigmoid()
        kind = torch.where(draws[:, slots:-1] < 0.25, int(Feedback.PURCHASE), int(Feedback.CLICK))
        feedback = torch.where(clicked, kind, int(Feedback.SKIP)).masked_fill(items == EMPTY, int(Feedback.NONE))
        leave = (draws[:, -1] < self.exit_rate) | (items == EMPTY).all(dim=1)
        clicks = (feedback > Feedback.SKIP).sum(dim=1)
        return feedback, leave, Memory(hidden.mood + 0.1 * clicks, hidden.pages + 1)
