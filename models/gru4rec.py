"""GRU4Rec: a recurrent network reads what a user liked, one item after the other, and ranks what may come next.

    h_n = GRU(h_{n−1}, e(i_n)),  h_0 = 0;   the state is h_N; a user without history has h_0

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016, section 3. The loss BPR-max
and the sampled negatives: Hidasi & Karatzoglou, "Recurrent Neural Networks with Top-k Gains for Session-based
Recommendations", CIKM 2018; one embedding of items serves as input and as output, as their code can have it.

Deviations are those of models/next_item.py, and `across_sessions`: the sequence is the last positives of any session.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from models.next_item import NextItemConfig


class GRU4RecConfig(NextItemConfig):
    """One layer of 100 units; see the two modules' docstrings for the deviations."""

    width: int = Field(100, ge=1)  # of the embedding, and units of the GRU

    def encoder(self) -> nn.Module:
        return GRUEncoder(self.width, self.dropout)


class GRUEncoder(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, history: Tensor, known: Tensor) -> Tensor:
        """The last hidden state [B, d] of a left-padded ``history`` [B, N, d], which of it is ``known`` [B, N]."""
        length, width = known.sum(dim=1, keepdim=True), known.shape[1]  # [B, 1]
        # To the left, so that the GRU meets no padding before the first item.
        order = (torch.arange(width, device=known.device) - length) % width  # [B, N]
        moved = self.dropout(history).gather(1, order[..., None].expand_as(history))
        hidden, _ = self.gru(moved)  # [B, N, d]
        rows = torch.arange(len(known), device=known.device)
        last = hidden[rows, (length[:, 0] - 1).clamp(min=0)] * (length > 0)  # [B, d]
        encoded: Tensor = self.dropout(last)
        return encoded
