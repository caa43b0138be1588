"""What simulated twins are shown, when they are cut, and which of their answers count."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import StateBatch
from models.feedback import Feedback
from models.simulators.base import SessionBatch
from pipeline.evaluation.twins import TWINS, Twins, simulate_twins
from tests.models.builders import make_task

PAGES_OF_USER = [
    [[1], [11, 12], [13]],  # user 0: pages of one or two items
    [[2]],
    [[3, 23], [31]],
]


class Fan:
    """User u likes the items 10·(u + 1) to 10·(u + 1) + 9 and stays ``stay[u]`` pages."""

    task = make_task()

    def __init__(self, stay: list[int]) -> None:
        self.stay = torch.tensor(stay)
        self.shown: list[list[list[int]]] = []  # of each step, the pages of the twins still there

    def reset_width(self) -> int:
        return 0

    def step_width(self, slots: int) -> int:
        return 1

    def reset(self, state: StateBatch, draws: Tensor) -> Tensor:
        user = state.user_features[:, 0].long()
        return torch.stack([user, torch.zeros_like(user)], dim=1)  # [B, 2] number and page

    def positive_probabilities(self, hidden: Tensor, items: Tensor) -> Tensor:
        return (items // 10 == hidden[:, :1] + 1).float()

    def step(
        self, hidden: Tensor, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.shown.append(items.tolist())
        liked = self.positive_probabilities(hidden, items).bool()
        feedback = torch.where(liked, int(Feedback.CLICK), int(Feedback.SKIP)).where(items >= 0, 0)
        hidden = hidden + torch.tensor([0, 1])
        return feedback, hidden[:, 1] >= self.stay[hidden[:, 0]], hidden

    def predict(self, sessions: SessionBatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        raise NotImplementedError


def window(terminated: tuple[bool, bool, bool] = (True, True, True)) -> SessionBatch:
    """The logged sessions: the last item of each page was clicked."""
    flat = [[item for page in pages for item in page] for pages in PAGES_OF_USER]
    ends = [[item is page[-1] for page in pages for item in page] for pages in PAGES_OF_USER]
    width = max(map(len, flat))
    items = torch.tensor([row + [0] * (width - len(row)) for row in flat])
    page_end = torch.tensor([row + [False] * (width - len(row)) for row in ends])
    feedback = torch.where(page_end, int(Feedback.CLICK), int(Feedback.SKIP)).where(items > 0, 0)
    return SessionBatch(torch.tensor([[0.0], [1.0], [2.0]]), items, feedback, page_end, torch.tensor(terminated))


def of_user(twins: Twins, user: int, column: str) -> list[float]:
    return sorted({float(value) for value in getattr(twins, column)[twins.user == user]})


def test_a_twin_is_shown_his_users_pages_and_then_those_of_others_at_the_same_place() -> None:
    model = Fan(stay=[4, 4, 4])
    twins = simulate_twins(model, window(), seed=0)
    begin_with = [
        [{(1,)}, {(2,)}, {(3, 23)}],
        [{(11, 12)}, {(11, 12), (31,)}, {(31,)}],  # user 1 has no second page: those of users 0 and 2
        [{(13,)}, {(13,)}, {(13,)}],
        [{(13,)}, {(13,)}, {(13,)}],  # past the longest session: the last page there is
    ]
    for step, expected in zip(model.shown, begin_with, strict=True):
        for user in range(3):
            pages = [tuple(page) for page in step[user::3]]
            assert {begin for begin in expected[user] for page in pages if page[: len(begin)] == begin} == expected[
                user
            ]
            assert all(any(page[: len(begin)] == begin for begin in expected[user]) for page in pages)
    assert of_user(twins, 0, "pages") == [4.0]
    assert twins.left.all()


def test_pages_that_the_log_left_short_are_filled_up_with_items_that_others_saw() -> None:
    model = Fan(stay=[4, 4, 4])
    simulate_twins(model, window(), seed=0)
    seen = {item for user in PAGES_OF_USER for page in user for item in page}
    for step in model.shown:
        assert {len(page) for page in step} == {Fan.task.page_size}
        assert {item for page in step for item in page} <= seen


def test_all_twins_answer_at_once() -> None:
    model = Fan(stay=[1, 3, 2])
    twins = simulate_twins(model, window(), seed=0)
    assert len(twins.user) >= TWINS
    assert np.ptp(np.bincount(twins.user)) == 0
    share = len(twins.user) // 3
    assert [len(step) for step in model.shown] == [3 * share, 2 * share, share]


def test_nobody_is_shown_more_than_twice_the_longest_session() -> None:
    twins = simulate_twins(Fan(stay=[99, 1, 99]), window(), seed=0)
    assert [of_user(twins, user, "pages") for user in range(3)] == [[6.0], [1.0], [6.0]]
    assert [of_user(twins, user, "left") for user in range(3)] == [[0.0], [1.0], [0.0]]


def test_the_twin_of_a_user_whom_a_cap_cut_is_cut_there_too() -> None:
    twins = simulate_twins(Fan(stay=[99, 99, 1]), window(terminated=(False, False, False)), seed=0)
    assert [of_user(twins, user, "pages") for user in range(3)] == [[3.0], [1.0], [1.0]]
    assert [of_user(twins, user, "left") for user in range(3)] == [[0.0], [0.0], [1.0]]


@pytest.mark.parametrize(
    ("stay", "rate", "logged_rate"),
    [
        ([99, 99, 99], [3 / 4, 0, 1 / 3], [3 / 4, 1, 2 / 3]),  # his own pages only, though he sees others
        ([2, 1, 1], [2 / 3, 0, 0], [2 / 3, 1, 1 / 2]),  # and those of his pages that he stayed for
    ],
)
def test_rates_are_compared_on_the_pages_that_both_saw(
    stay: list[int], rate: list[float], logged_rate: list[float]
) -> None:
    twins = simulate_twins(Fan(stay), window(), seed=0)
    for user in range(3):
        assert of_user(twins, user, "rate") == pytest.approx([rate[user]])
        assert of_user(twins, user, "logged_rate") == pytest.approx([logged_rate[user]])


def test_the_twins_are_fixed_by_the_seed() -> None:
    pages = []
    for seed in (0, 0, 1):
        model = Fan(stay=[4, 4, 4])
        simulate_twins(model, window(), seed)
        pages.append(model.shown)
    assert pages[0] == pages[1] != pages[2]
