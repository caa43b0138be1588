"""The contracts' own logic: how a state goes on, how ties and padding rank, how batches are cut and moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.base import AgentConfig, Candidates, StateBatch, rank, rank_page
from models.feedback import FIRST_POSITIVE, Feedback
from tests.models.builders import (
    HISTORY,
    PAGES,
    empty_state,
    make_candidates,
    make_state,
    make_task,
    make_transitions,
    random_page,
)

TASK = make_task()


# ---- StateBatch.advance


def _reference(pages: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """The state of one new user after ``pages`` of (items, feedback), with lists, one item at a time."""
    positives, skipped = [], []
    for items, feedback in pages:
        for item, code in zip(items, feedback, strict=True):
            if code >= FIRST_POSITIVE:
                positives.append((item, code))
            elif code == Feedback.SKIP:
                skipped.append(item)

    def padded(values: list[Any], width: int, filler: Any) -> list[Any]:
        return ([filler] * width + values)[-width:]

    empty = [0] * TASK.page_size
    return {
        "history_items": padded([item for item, _ in positives], HISTORY, 0),
        "history_feedback": padded([code for _, code in positives], HISTORY, 0),
        "skipped_items": padded(skipped, HISTORY, 0),
        "page_items": padded([items for items, _ in pages], PAGES, empty),
        "page_feedback": padded([feedback for _, feedback in pages], PAGES, empty),
        "pages_seen": len(pages),
    }


def test_a_state_goes_on_like_a_slow_reference() -> None:
    users, random = 20, torch.Generator().manual_seed(4)
    state, logs = empty_state(users), [[] for _ in range(users)]  # type: ignore[var-annotated]
    for _ in range(7):  # more pages than a state keeps
        items, feedback = random_page(users, TASK, random)
        feedback[:3, 6:] = Feedback.NONE  # pages with empty slots
        items[:3, 6:] = 0
        items[feedback == Feedback.PURCHASE] = 0  # unknown items can be bought
        state = state.advance(items, feedback)
        for user, log in enumerate(logs):
            log.append((items[user].tolist(), feedback[user].tolist()))
            for name, expected in _reference(log).items():
                assert getattr(state, name)[user].tolist() == expected, (name, user)


def test_the_past_before_the_session_stays_as_it_was() -> None:
    state = make_state(8, TASK)
    after = state.advance(*random_page(8, TASK, torch.Generator().manual_seed(1)))
    for name in ("user_features", "initial_items", "initial_feedback"):
        assert torch.equal(getattr(after, name), getattr(state, name))


def test_the_state_keeps_the_newest_positives() -> None:
    state = empty_state(1)
    clicked = torch.full((1, 10), int(Feedback.CLICK))
    state = state.advance(torch.arange(1, 11)[None], clicked).advance(torch.arange(11, 21)[None], clicked)
    assert state.history_items[0].tolist() == list(range(21 - HISTORY, 21))


# ---- rank


def _candidates(mask: list[bool], tie: list[int]) -> Candidates:
    return Candidates(torch.ones(1, len(tie), dtype=torch.int64), torch.tensor([mask]), torch.tensor([tie]))


INF = float("inf")
RANKINGS = [
    ("best first", [0.1, 0.9, 0.5], [True] * 3, [1, 2, 3], [1, 2, 0]),
    ("ties by the hash", [0.5, 0.5, 0.5, 0.9], [True] * 4, [30, -10, 20, 99], [3, 1, 2, 0]),
    ("padding last, whatever its score", [0.1, 9.0, 0.5], [True, False, True], [1, 2, 3], [2, 0, 1]),
    ("-inf before padding", [-INF, 0.0, -INF, 0.3], [True, False, True, True], [5, 0, 4, 9], [3, 2, 0, 1]),
    ("nothing but padding", [0.1, 0.2], [False, False], [2, 1], [1, 0]),
]


@pytest.mark.parametrize(("scores", "mask", "tie", "expected"), [r[1:] for r in RANKINGS], ids=[r[0] for r in RANKINGS])
def test_candidates_rank(scores: list[float], mask: list[bool], tie: list[int], expected: list[int]) -> None:
    assert rank(torch.tensor([scores]), _candidates(mask, tie))[0].tolist() == expected


def test_a_ranking_does_not_know_the_order_of_the_candidates() -> None:
    candidates = make_candidates(3, TASK, padded=False)
    scores = (candidates.items % 4).float()  # many ties
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    shuffled = Candidates(candidates.items[:, order], candidates.mask[:, order], candidates.tie[:, order])
    ranked = candidates.items.gather(1, rank(scores, candidates))
    assert torch.equal(ranked, shuffled.items.gather(1, rank(scores[:, order], shuffled)))


# ---- rank_page


class _ByItem:
    """Scores an item by its number."""

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return candidates.items.float()


class _LastFirst(_ByItem):
    """Composes a page of its own: the candidates from the last to the first."""

    def rank_page(self, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
        return torch.arange(candidates.items.shape[1]).flip(0)[: rows * cols].expand(len(state), -1)


def test_an_item_wise_agent_shows_its_best_items() -> None:
    candidates = make_candidates(2, TASK, padded=False)
    page = rank_page(_ByItem(), empty_state(2), candidates, 5, 2)
    expected = candidates.items.sort(dim=1, descending=True).values[:, :10]
    assert torch.equal(candidates.items.gather(1, page), expected)


def test_slots_stay_empty_where_candidates_run_out() -> None:
    candidates = make_candidates(2, TASK, size=8)  # the second row has 3 candidates
    page = rank_page(_ByItem(), empty_state(2), candidates, 5, 2)
    assert (page >= 0).sum(dim=1).tolist() == [8, 3]
    assert (page[0, 8:] == -1).all()
    assert (page[1, 3:] == -1).all()


def test_a_page_wise_agent_composes_its_own_page() -> None:
    page = rank_page(_LastFirst(), empty_state(2), make_candidates(2, TASK), 2, 2)
    assert page.tolist() == [[29, 28, 27, 26]] * 2


# ---- batches


@pytest.mark.parametrize("rows", [slice(2, 5), torch.tensor([4, 0, 0]), torch.arange(9) % 2 == 0])
def test_rows_are_taken_from_every_tensor_of_a_batch(rows: Any) -> None:
    batch = make_transitions(9, TASK)
    part = batch[rows]
    assert len(part) == len(batch.terminated[rows])
    for name in ("items", "measurement", "terminated"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[rows])
    for name in StateBatch.__dataclass_fields__:
        assert torch.equal(getattr(part.state, name), getattr(batch.state, name)[rows])


def test_a_batch_moves_with_all_that_is_in_it() -> None:
    moved = make_transitions(3, TASK).to("meta")
    tensors = [value for part in (moved, moved.state) for value in vars(part).values() if isinstance(value, Tensor)]
    assert len(tensors) == 19  # 10 of the transition, 9 of its state
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_what_is_no_tensor_stays_with_the_candidates() -> None:
    candidates = replace(make_candidates(4, TASK), truth="a secret")
    part = candidates[1:3]
    assert (len(part.items), part.truth, part.rewards) == (2, "a secret", None)


def test_empty_slots_are_not_part_of_a_page() -> None:
    batch = make_transitions(8, TASK)
    assert batch.mask[0].tolist() == [True] * 8 + [False] * 2
    assert batch.mask[1].all()


def test_a_config_without_an_agent_says_so() -> None:
    class Nothing(AgentConfig):
        pass

    with pytest.raises(TypeError, match=r"Nothing must define build\(task, seed\)"):
        Nothing().build(TASK, 11)


def test_the_unknown_item_has_no_vector() -> None:
    vectors = TASK.catalogue.vectors
    assert vectors.shape == (61, 11)
    assert len(TASK.catalogue) == 61
    assert not vectors[0].any()
