"""Simulated twins of logged users: what a user model does when it is shown what the log showed.

A twin is shown his user's logged pages in turn. Where he stays longer he sees those of other sessions, drawn at the
same page number from the sessions that got there (past the longest session, at its last page number). Those pages were
chosen for others, so how often he likes them says little; user and twin are exchangeable on the pages that both saw.
A page that the log left short is filled up with items that others saw, for that is what roll-outs show: a model that
tells by a short page that the session ends (as it does in logs whose pages are constructed) would otherwise look right
here and never leave there. Only the user's own slots count for the rate.
Sessions that a cap cut are censored, and so are their twins, at the same page; no other twin sees more than twice the
pages of the longest session.

Shapes: S sessions, R twins, A of them still there, P pages, K slots.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.base import StateBatch, Task
from models.feedback import FIRST_POSITIVE, Feedback
from models.hashing import uniforms
from models.simulators.base import EMPTY, SessionBatch, UserModel
from models.simulators.histories import logged_pages

TWINS = 2_000  # at least: with fewer sessions each user gets several, so that the noise is the log's alone
RESET, ANSWER, DONOR, FILL = range(4)  # what luck is drawn for

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


class JudgedModel(UserModel, Protocol):
    """A user model that also predicts logged sessions, as ``FittedUserModel`` does."""

    task: Task

    def predict(self, sessions: SessionBatch) -> dict[str, tuple[Flags, Floats]]: ...


@dataclass(frozen=True)
class Twins:
    """Simulated sessions beside the logged ones, a row a twin."""

    user: NDArray[np.int64]  # [R] the session that he is the twin of
    pages: NDArray[np.int64]  # [R]
    left: Flags  # [R] False: he was cut
    rate: Floats  # [R] share of positive answers on the pages that both saw: the twin's
    logged_rate: Floats  # [R] and the user's


@torch.no_grad()
def simulate_twins(model: JudgedModel, sessions: SessionBatch, seed: int) -> Twins:
    """All twins at once, on the model's device. The same seed gives the same twins."""
    device = model.task.device
    sessions = sessions.to(device)
    logged, positive = _pages(sessions, model.task.page_size)  # [S, P, K], [S, P]
    stock = sessions.items[sessions.feedback > 0]  # [n] what fills up short pages
    shown = (logged != EMPTY).sum(dim=2)  # [S, P]
    pages = (shown > 0).sum(dim=1)  # [S]
    user = torch.arange(len(sessions) * -(-TWINS // len(sessions)), device=device) % len(sessions)  # [R]
    limit = torch.where(sessions.terminated, 2 * logged.shape[1], pages)[user]  # [R]
    twin = torch.arange(len(user), device=device)  # [A]
    hidden = model.reset(
        _start(sessions, logged.shape[2])[user], uniforms(twin, seed, RESET, width=model.reset_width())
    )
    answers = torch.zeros_like(positive[user])  # [R, P]
    length, left = torch.zeros_like(user), torch.zeros_like(user, dtype=torch.bool)  # [R] each
    page = 0
    while len(twin):
        items = _page(logged, pages, user[twin], page, uniforms(twin, seed, page, DONOR, width=1)[:, 0])  # [A, K]
        other = stock[(uniforms(twin, seed, page, FILL, width=items.shape[1]) * len(stock)).long()]
        items = torch.where(items == EMPTY, other, items)
        draws = uniforms(twin, seed, page, ANSWER, width=model.step_width(items.shape[1]))
        feedback, leave, hidden = model.step(hidden, items, draws)
        if page < logged.shape[1]:
            own = logged[user[twin], page] != EMPTY  # [A, K]
            answers[twin, page] = ((feedback >= FIRST_POSITIVE) & own).sum(dim=1)
        page += 1
        length[twin], left[twin] = page, leave
        stay = ~leave & (page < limit[twin])
        twin, hidden = twin[stay], hidden[stay]
    both = torch.arange(logged.shape[1], device=device) < torch.minimum(length, pages[user])[:, None]  # [R, P]
    seen = (shown[user] * both).sum(dim=1).double()
    rate, logged_rate = ((counts * both).sum(dim=1) / seen for counts in (answers, positive[user]))
    return Twins(*(column.cpu().numpy() for column in (user, length, left, rate, logged_rate)))


def _pages(sessions: SessionBatch, slots: int) -> tuple[Tensor, Tensor]:
    """The items of each page, [S, P, K] with EMPTY in slots that show nothing, and its positive answers, [S, P].

    K is ``slots``, or what the longest page has.
    """
    shown = sessions.feedback > 0  # [S, L]
    pages = logged_pages(sessions)
    where = shown.nonzero()[:, 0], pages.number[pages.of_item], pages.slot
    size = len(sessions), int(where[1].max()) + 1, max(slots, int(where[2].max()) + 1)
    items, feedback = (torch.full(size, fill, device=shown.device) for fill in (EMPTY, int(Feedback.NONE)))
    items[where], feedback[where] = sessions.items[shown], sessions.feedback[shown]
    return items, (feedback >= FIRST_POSITIVE).sum(dim=2)


def _page(logged: Tensor, pages: Tensor, user: Tensor, page: int, luck: Tensor) -> Tensor:
    """What each twin of ``user`` [A] is shown next, [A, K]: his user's page, or one that another user saw then."""
    at = min(page, logged.shape[1] - 1)
    reached = (pages > at).nonzero()[:, 0]  # sessions that have such a page
    donor = reached[(luck * len(reached)).long()]  # [A]
    return logged[torch.where(pages[user] > page, user, donor), at]


def _start(sessions: SessionBatch, page_size: int) -> StateBatch:
    """The states at the sessions' starts. What was positive before them counts as clicked: sessions say no more."""
    items = sessions.initial_items
    if items is None:
        items = torch.zeros_like(sessions.items[:, :1])
    feedback = torch.where(items > 0, int(Feedback.CLICK), int(Feedback.NONE))
    return StateBatch.at_start(sessions.user_features, items, feedback, pages=1, page_size=page_size)
