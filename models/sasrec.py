"""SASRec: self-attention over what a user liked, each item asking the earlier ones, ranks what may come next.

    x = [start; e(i_1) + p_1 … e(i_N) + p_N];   x ← x + MHA(LN(x)),  x ← x + FFN(LN(x)), causal, twice;   LN(x)_N

Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, section III: two blocks, learnt positions,
dropout 0.2 and one embedding of items as input and as output. Deviations are those of models/next_item.py and
- `bpr_max`, where the paper has BCE; models/next_item.py has the numbers of both.
- `start_token`: a learnt vector stands before the first item, so that a user without history has something to read.
- `newest_first`: positions are counted from the newest item, so that padding shifts none of them.
- `two_heads`, where the paper has one.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.next_item import NextItemConfig


class SASRecConfig(NextItemConfig):
    """Two blocks of 64; see the two modules' docstrings for the deviations."""

    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    longest: int = Field(50, ge=1)  # history: only so many of the newest items are read

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads cannot share a width of {self.width}; take a divisor of it")
        return self

    def encoder(self) -> nn.Module:
        return AttentionEncoder(self)


class AttentionEncoder(nn.Module):
    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.width
        self.longest = config.longest
        self.start = nn.Parameter(0.01 * torch.randn(width))
        self.positions = nn.Embedding(config.longest, width)  # 0 = the newest item
        nn.init.normal_(self.positions.weight, std=0.01)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.heads, dim_feedforward=width, dropout=config.dropout, batch_first=True, norm_first=True
            )
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, history: Tensor, known: Tensor) -> Tensor:
        """The newest position [B, d] of a left-padded ``history`` [B, N, d], which of it is ``known`` [B, N]."""
        history, known = history[:, -self.longest :], known[:, -self.longest :]
        age = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
        x = torch.cat([self.start.expand(len(history), 1, -1), history + self.positions(age)], dim=1)  # [B, 1+N, d]
        x, length = self.dropout(x), x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(diagonal=1)
        padding = torch.nn.functional.pad(~known, (1, 0))  # [B, 1+N], never the start
        for block in self.blocks:
            x = block(x, src_mask=later, src_key_padding_mask=padding)  # [B, 1+N, d]
        encoded: Tensor = self.norm(x[:, -1])
        return encoded
