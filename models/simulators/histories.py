"""The pages of logged sessions, and what a user had skipped and liked before each: what two user models read.

Shapes: B sessions, L shown items of a session, P pages of all sessions, n shown items of all, N, H items of a history.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.base import appended
from models.feedback import FIRST_POSITIVE, Feedback
from models.simulators.base import SessionBatch, page_numbers
from pipeline.errors import DataError


@dataclass(frozen=True)
class LoggedPages:
    """The P pages of a SessionBatch, session by session, and the n items shown on them."""

    session: Tensor  # [P] int64, row of the batch
    first: Tensor  # [P] int64, column of the page's first item
    number: Tensor  # [P] int64, 0-based, in its session
    positives: Tensor  # [P] float32, positive answers on it
    shown: Tensor  # [P] float32, items on it
    of_item: Tensor  # [n] int64, page of each shown item
    slot: Tensor  # [n] int64, its place on that page


def logged_pages(batch: SessionBatch) -> LoggedPages:
    shown = batch.feedback > 0  # [B, L]
    starts = shown & pad(batch.page_end[:, :-1], (1, 0), value=True)
    session, first = starts.nonzero(as_tuple=True)
    of_item = starts[shown].cumsum(dim=0) - 1
    positive = (batch.feedback[shown] >= FIRST_POSITIVE).float()
    return LoggedPages(
        session=session,
        first=first,
        number=page_numbers(batch)[session, first],
        positives=torch.bincount(of_item, positive, minlength=len(session)).float(),
        shown=torch.bincount(of_item, minlength=len(session)).float(),
        of_item=of_item,
        slot=shown.nonzero()[:, 1] - first[of_item],
    )


def positives_before(batch: SessionBatch, pages: LoggedPages, width: int) -> Tensor:
    """The last ``width`` positive items before each page, those of earlier sessions too: [P, width], left-padded."""
    if batch.initial_items is None:
        raise DataError("SessionBatch.initial_items is missing. Give it: zeros where nothing is known of a user.")
    items = torch.cat([batch.initial_items, batch.items], dim=1)  # [B, N+L]
    liked = (batch.items > 0) & (batch.feedback >= FIRST_POSITIVE)
    keep = torch.cat([batch.initial_items > 0, liked], dim=1)
    return _kept_before(items, keep, pages.session, pages.first + batch.initial_items.shape[1], width)


def skips_before(batch: SessionBatch, pages: LoggedPages, width: int) -> Tensor:
    """The last ``width`` skipped items of the session before each page: [P, width], left-padded."""
    keep = (batch.items > 0) & (batch.feedback == Feedback.SKIP)
    return _kept_before(batch.items, keep, pages.session, pages.first, width)


def newest(history: Tensor, items: Tensor, keep: Tensor) -> Tensor:
    """The left-padded ``history`` [B, H] with the kept of ``items`` [B, K] appended; its width stays."""
    return appended((history,), (items,), keep, history > 0)[0]


def _kept_before(items: Tensor, keep: Tensor, rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """The last ``width`` kept of ``items`` [B, M] to the left of each place (row, column): [P, width]."""
    kept = items.gather(1, (~keep).int().argsort(dim=1, stable=True))  # [B, M], the kept ones first, in their order
    count = (keep.cumsum(dim=1) - keep.int())[rows, columns]  # [P]
    window = count[:, None] + torch.arange(-width, 0, device=items.device)  # [P, width]
    return kept[rows[:, None], window.clamp(min=0)].where(window >= 0, 0)
