"""Candidate pools: which items are in them, how often, and that they never run dry."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import StateBatch, Task
from models.environments.recall import (
    RECALLS,
    PopularRecall,
    RelatedRecall,
    SimilarRecall,
    UniformRecall,
    first_distinct,
)
from pipeline.errors import ConfigError
from tests.models.builders import ITEMS, empty_state, make_state, make_task

TASK = make_task()
NOTHING = torch.zeros(1, 0, dtype=torch.int64)
R = 20


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def positives(*items: int, users: int = 1) -> StateBatch:
    """Users whose last positives are ``items``, the newest last."""
    history = torch.zeros(users, 6, dtype=torch.int64)
    if items:
        history[:, -len(items) :] = torch.tensor(items)
    return replace(empty_state(users), history_items=history, history_feedback=(history > 0) * 2)


def nearest(item: int, count: int) -> set[int]:
    """The ``count`` items whose embeddings have the largest cosine with that of ``item``, by numpy."""
    e = TASK.catalogue.embeddings.numpy()[1:]
    cosine = e @ e[item - 1] / np.linalg.norm(e, axis=1) / np.linalg.norm(e[item - 1])
    cosine[item - 1] = -np.inf
    return set((1 + np.argsort(-cosine)[:count]).tolist())


def frequencies(recall: Any, state: StateBatch, size: int, users: int = 4000) -> Tensor:
    """How often each item is in a pool."""
    rows = state[torch.zeros(users, dtype=torch.int64)]
    items, mask = recall(rows, NOTHING.expand(users, 0), torch.arange(users), size)
    return torch.bincount(items[mask], minlength=ITEMS + 1) / users


@pytest.mark.parametrize("name", RECALLS)
def test_a_pool_holds_different_known_items_in_ascending_order(name: str) -> None:
    state = make_state(50, TASK)
    shown = torch.randint(0, ITEMS + 1, (50, 15), generator=torch.Generator().manual_seed(4))
    items, mask = RECALLS[name](TASK)(state, shown, torch.arange(50), R)
    assert items.shape == mask.shape == (50, R)
    assert mask.all()
    assert (items[:, 1:] > items[:, :-1]).all()
    assert items.min() > 0


@pytest.mark.parametrize("name", RECALLS)
def test_a_shown_item_comes_again_only_when_the_rest_does_not_fill_the_pool(name: str) -> None:
    state = make_state(8, TASK)
    orders = torch.rand(8, ITEMS, generator=torch.Generator().manual_seed(1)).argsort(dim=1) + 1
    for count in (ITEMS - R, ITEMS - R + 5, ITEMS):
        items, mask = RECALLS[name](TASK)(state, orders[:, :count], torch.arange(8), R)
        again = (items[:, :, None] == orders[:, None, :count]).any(dim=2).sum(dim=1)
        assert mask.all()
        assert (again == max(0, R - (ITEMS - count))).all()


@pytest.mark.parametrize("name", RECALLS)
def test_a_pool_larger_than_the_catalogue_is_padded(name: str) -> None:
    small = make_task(items=7)
    items, mask = RECALLS[name](small)(empty_state(3), NOTHING.expand(3, 0), torch.arange(3), 10)
    assert items.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0, 0, 0]] * 3
    assert torch.equal(mask, items > 0)


@pytest.mark.parametrize("name", RECALLS)
def test_a_users_pool_depends_on_nobody_else(name: str) -> None:
    recall, state, keys = RECALLS[name](TASK), make_state(12, TASK), torch.arange(12) * 7919
    shown = torch.randint(0, ITEMS + 1, (12, 9), generator=torch.Generator().manual_seed(2))
    together, _ = recall(state, shown, keys, R)
    for row in range(12):
        alone, _ = recall(state[row : row + 1], shown[row : row + 1], keys[row : row + 1], R)
        assert torch.equal(alone[0], together[row])
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    assert torch.equal(recall(state[shuffled], shown[shuffled], keys[shuffled], R)[0], together[shuffled])
    assert not torch.equal(recall(state, shown, keys + 1, R)[0], together)


def test_similar_items_are_the_neighbours_of_the_last_positives() -> None:
    recall = SimilarRecall(TASK, neighbours=8, cap=16)
    items, _ = recall(positives(9, 30, 4), NOTHING, torch.tensor([5]), 8)
    assert set(items[0].tolist()) <= nearest(30, 8) | nearest(4, 8)  # two of them fill the cap; 9 is the oldest
    one, _ = recall(positives(9), NOTHING, torch.tensor([5]), 4)
    assert set(one[0].tolist()) <= nearest(9, 8)


def test_an_item_is_drawn_by_its_similarity() -> None:
    shares = frequencies(SimilarRecall(TASK, neighbours=8, temperature=0.2), positives(9), 1)
    e = torch.nn.functional.normalize(TASK.catalogue.embeddings, dim=1)
    among = sorted(nearest(9, 8))
    expected = (e[among] @ e[9] / 0.2).softmax(dim=0)
    assert shares[among].sum() == pytest.approx(1)
    np.testing.assert_allclose(shares[among], expected, atol=0.04)  # tickets are 32ths, and 4000 draws


def test_users_of_whom_nothing_is_known_get_popular_items() -> None:
    popularity = torch.arange(ITEMS + 1.0) ** 2
    task = replace(TASK, catalogue=replace(TASK.catalogue, popularity=popularity))
    for recall in (SimilarRecall(task), RelatedRecall(task), PopularRecall(task)):
        np.testing.assert_allclose(
            frequencies(recall, empty_state(1), 1), popularity / popularity.sum(), atol=0.015
        )  # of 0 to 0.05


def test_without_any_popularity_and_where_asked_for_all_items_are_alike() -> None:
    unpopular = replace(TASK, catalogue=replace(TASK.catalogue, popularity=torch.zeros(ITEMS + 1)))
    for recall in (PopularRecall(unpopular), UniformRecall(TASK)):
        np.testing.assert_allclose(frequencies(recall, empty_state(1), 30)[1:], 30 / ITEMS, atol=0.05)


def test_related_items_are_those_closest_to_the_mean_positive() -> None:
    e = torch.nn.functional.normalize(TASK.catalogue.embeddings, dim=1).numpy()
    order = 1 + np.argsort(-(e[1:] @ (e[9] + e[30])))
    closest = set(order[:12].tolist())
    drawn = frequencies(RelatedRecall(TASK, related=12), positives(9, 30), 4, users=500)
    assert set(drawn.nonzero()[:, 0].tolist()) == closest
    whole, _ = RelatedRecall(TASK, related=12)(positives(9, 30), NOTHING, torch.tensor([5]), 12)
    assert set(whole[0].tolist()) == closest
    others, _ = RelatedRecall(TASK, related=12)(
        positives(9, 30), torch.from_numpy(order[None, :5]), torch.tensor([5]), 12
    )
    assert set(others[0].tolist()) == set(order[5:17].tolist())  # not counting those shown


def test_the_first_distinct_items_keep_the_order_of_the_proposals() -> None:
    shown = torch.tensor([[7, 0, 7, 2]])
    proposals = torch.tensor([[5, 7, 5, 3, 0, 2, 7, 9, 3]])
    assert first_distinct(proposals, shown, 4).tolist() == [[5, 3, 9, 0]]
    assert first_distinct(proposals, shown, 4, again=True).tolist() == [[7, 2, 0, 0]]
    assert first_distinct(proposals, shown, 2).tolist() == [[5, 3]]


def without_items() -> Task:
    none = {name: getattr(TASK.catalogue, name)[:1] for name in ("embeddings", "features", "category", "popularity")}
    return replace(TASK, catalogue=replace(TASK.catalogue, **none, impressions=torch.zeros(1)))


@pytest.mark.parametrize("name", RECALLS)
def test_a_catalogue_without_known_items_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no known item"):
        RECALLS[name](without_items())
