"""Small seeded builders of what agents are given, shared by the tests of models."""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Candidates, Catalogue, StateBatch, Task, TransitionBatch
from models.feedback import Feedback

ITEMS, WIDTH, FEATURES, CATEGORIES, USER_WIDTH = 60, 8, 3, 5, 4
HISTORY, PAGES, COUNTERS = 6, 3, 5
REWARDS = (0.0, 0.0, 1.0, 1.0, 1.0, 5.0)
MEASUREMENTS = ("click", "exit", "clicks", "click_ratio", "steps", "purchases", "embedding_0", "embedding_1")


def make_task(rows: int = 5, cols: int = 2, items: int = ITEMS, seed: int = 0) -> Task:
    """A task with ``items`` known items, whose vectors cluster by category."""
    random = torch.Generator().manual_seed(seed)
    category = torch.randint(1, CATEGORIES, (items + 1,), generator=random)
    embeddings = torch.randn(CATEGORIES, WIDTH, generator=random)[category]
    embeddings = torch.nn.functional.normalize(embeddings + 0.5 * torch.randn(items + 1, WIDTH, generator=random))
    features = torch.randn(items + 1, FEATURES, generator=random)
    popularity = torch.randint(0, 500, (items + 1,), generator=random).float()
    impressions = 10 * popularity + 10
    others = torch.rand(items + 1, COUNTERS - 2, generator=random)
    counters = torch.cat([impressions[:, None], popularity[:, None], others], dim=1)
    for column in (embeddings, features, category, popularity, impressions, counters):
        column[0] = 0
    counters[0, -1] = torch.nan
    return Task(
        catalogue=Catalogue(embeddings, features, category, popularity, impressions, counters, CATEGORIES),
        rows=rows,
        cols=cols,
        user_width=USER_WIDTH,
        rewards=REWARDS,
        measurement_names=MEASUREMENTS,
        measurement_scale=torch.rand(len(MEASUREMENTS), generator=random) + 0.5,
    )


def empty_state(batch: int, page_size: int = 10) -> StateBatch:
    """Users of whom nothing is known."""
    lists = torch.zeros(batch, HISTORY, dtype=torch.int64)
    pages = torch.zeros(batch, PAGES, page_size, dtype=torch.int64)
    features = torch.zeros(batch, USER_WIDTH)
    return StateBatch(features, lists, lists, lists, lists, lists, pages, pages, torch.zeros(batch, dtype=torch.int64))


def make_state(batch: int, task: Task, seed: int = 0) -> StateBatch:
    """Users with histories of all lengths, after 0 to 4 pages of a session."""
    random = torch.Generator().manual_seed(seed)
    state = empty_state(batch, task.page_size)
    lengths = torch.randint(0, HISTORY + 1, (batch, 1), generator=random)
    present = torch.arange(HISTORY) >= HISTORY - lengths  # [B, N], padded on the left
    items = torch.randint(0, len(task.catalogue), (batch, HISTORY), generator=random) * present
    feedback = torch.randint(Feedback.CLICK, len(Feedback), (batch, HISTORY), generator=random) * present
    state = StateBatch(
        torch.randn(batch, USER_WIDTH, generator=random),
        *(items, feedback, items, feedback),
        state.skipped_items,
        state.page_items,
        state.page_feedback,
        state.pages_seen,
    )
    pages_seen = torch.randint(0, 5, (batch,), generator=random)
    for page in range(4):
        later = state.advance(*random_page(batch, task, random))
        state = where(pages_seen > page, later, state)
    return state


def random_page(batch: int, task: Task, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A page of distinct items and its feedback, mostly skips, [B, K] each."""
    items = 1 + torch.rand(batch, len(task.catalogue) - 1, generator=random).argsort(dim=1)[:, : task.page_size]
    chances = torch.tensor([0.0, 0.7, 0.15, 0.05, 0.05, 0.05]).expand(batch, -1)
    return items, torch.multinomial(chances, task.page_size, replacement=True, generator=random)


def where(condition: Tensor, one: StateBatch, other: StateBatch) -> StateBatch:
    """Row by row the one state or the other."""

    def choose(name: str) -> Tensor:
        a, b = getattr(one, name), getattr(other, name)
        return torch.where(condition.view(-1, *[1] * (a.dim() - 1)), a, b)

    return StateBatch(**{name: choose(name) for name in StateBatch.__dataclass_fields__})


def make_candidates(batch: int, task: Task, size: int = 30, padded: bool = True, seed: int = 0) -> Candidates:
    """Distinct known items in random order; where ``padded``, each row has 5 fewer than the one before, at least 1."""
    random = torch.Generator().manual_seed(seed)
    items = 1 + torch.rand(batch, len(task.catalogue) - 1, generator=random).argsort(dim=1)[:, :size]
    size = items.shape[1]
    lengths = (size - 5 * torch.arange(batch)).clamp(min=1) if padded else torch.full((batch,), size)
    mask = torch.arange(size) < lengths[:, None]  # [B, K]
    tie = torch.randint(-(2**62), 2**62, (batch, size), generator=random)
    return Candidates(items * mask, mask, tie)


def make_transitions(
    batch: int, task: Task, hindsight: bool = True, empty_slots: bool = True, seed: int = 0
) -> TransitionBatch:
    """Page transitions; where ``hindsight``, every other row is one, and every fourth page has two empty slots."""
    random = torch.Generator().manual_seed(seed)
    items, feedback = random_page(batch, task, random)
    if empty_slots:
        for codes in (items, feedback):
            codes[::4, -2:] = 0
    shape = (*items.shape, len(task.measurement_names))
    goal = torch.nn.functional.normalize(torch.randn(shape, generator=random), dim=2)
    rows = torch.arange(batch)
    return TransitionBatch(
        state=make_state(batch, task, seed + 1),
        items=items,
        feedback=feedback,
        rewards=torch.tensor(task.rewards)[feedback],
        measurement=torch.rand(shape, generator=random),
        goal=goal,
        hindsight=(rows % 2 == 1) & hindsight,
        terminated=rows % 3 == 0,
        truncated=rows % 3 == 1,
        propensity=torch.rand(items.shape, generator=random),
        counters=task.catalogue.counters[items] * torch.rand(*items.shape, 1, generator=random),
    )
