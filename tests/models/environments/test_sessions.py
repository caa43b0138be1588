"""Sessions of many users: whose luck is whose, when they end, and what is delivered."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models.base import StateBatch, rank_page
from models.environments.recall import PopularRecall, SimilarRecall, UniformRecall
from models.environments.sessions import Outcome, Sessions, SessionSettings, checked
from models.feedback import Feedback
from models.hashing import mix64
from models.heuristics import PopularityConfig
from models.simulators.base import EMPTY
from models.simulators.rnn import RNNConfig
from pipeline.errors import ConfigError, ModelError
from tests.models.builders import ITEMS, make_task
from tests.models.environments.users import PlainUsers

TASK = make_task()
K, R = TASK.page_size, 30
Choice = Callable[[Sessions], Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def starts(users: int, seed: int = 0) -> StateBatch:
    """Users before a session, with histories of all lengths."""
    random = torch.Generator().manual_seed(seed)
    present = torch.arange(6) >= torch.randint(0, 7, (users, 1), generator=random)
    items = torch.randint(1, ITEMS + 1, (users, 6), generator=random) * present
    return StateBatch.at_start(torch.randn(users, 4, generator=random), items, items.sign() * 2, 3, K)


def engine(**changes: Any) -> Sessions:
    model = changes.pop("model", None) or PlainUsers(ITEMS + 1, changes.pop("exit_rate", 0.2))
    recall = changes.pop("recall", None) or SimilarRecall(TASK, neighbours=20)
    return Sessions(model, TASK, recall, SessionSettings(**({"pool": R} | changes)))


def begun(sessions: Sessions, users: int = 40, seed: int = 1) -> Sessions:
    sessions.start(starts(users), torch.arange(users) * 104_729, seed)
    return sessions


def first_candidates(sessions: Sessions) -> Tensor:
    return torch.arange(sessions.settings.page_size).expand(len(sessions.users), -1)


def finished(sessions: Sessions, choose: Choice = first_candidates) -> list[Outcome]:
    outcomes = []
    while not sessions.done:
        outcomes.append(sessions.step(choose(sessions)))
    return outcomes


def of_user(outcomes: list[Outcome], user: int, *names: str) -> list[Any]:
    """Page by page what happened to one user."""
    return [
        [getattr(outcome, name)[outcome.users == user][0].tolist() for name in names]
        for outcome in outcomes
        if (outcome.users == user).any()
    ]


EVERYTHING = ("items", "feedback", "rewards", "delivered", "terminated", "truncated")


def test_a_users_session_is_the_same_alone_in_a_batch_and_in_any_order() -> None:
    together = finished(begun(engine(high_variance=True)))
    state, keys = starts(40), torch.arange(40) * 104_729
    for row in (0, 7, 39):
        alone = engine(high_variance=True)
        alone.start(state[row : row + 1], keys[row : row + 1], 1)
        assert of_user(finished(alone), 0, *EVERYTHING) == of_user(together, row, *EVERYTHING)
    backwards = engine(high_variance=True)
    backwards.start(state[torch.arange(39, -1, -1)], keys.flip(0), 1)
    others = finished(backwards)
    for row in range(40):
        assert of_user(others, 39 - row, *EVERYTHING) == of_user(together, row, *EVERYTHING)


def test_users_who_enter_later_have_the_session_they_would_have_had() -> None:
    state, keys, together = starts(40), torch.arange(40) * 104_729, finished(begun(engine(high_variance=True)))
    sessions = engine(high_variance=True)
    sessions.start(state[:20], keys[:20], 1)
    outcomes = [sessions.step(first_candidates(sessions)) for _ in range(3)]
    sessions.enter(state[20:], keys[20:], 1, torch.arange(20, 40))
    outcomes += finished(sessions)
    for row in range(40):
        assert of_user(outcomes, row, *EVERYTHING) == of_user(together, row, *EVERYTHING)


def test_rankers_who_choose_the_same_get_the_same_answers_up_to_where_they_part() -> None:
    def part_on_page_two(sessions: Sessions) -> Tensor:
        later = (sessions.page >= 2).long()[:, None]
        return first_candidates(sessions) + 5 * later

    one = finished(begun(engine(exit_rate=0.05)))
    other = finished(begun(engine(exit_rate=0.05)), part_on_page_two)
    parted = 0
    for user in range(40):
        a, b = of_user(one, user, "items", "feedback"), of_user(other, user, "items", "feedback")
        assert a[:2] == b[:2]
        parted += a[2:] != b[2:]
    assert parted > 20


def test_another_seed_is_other_luck_and_the_same_seed_the_same() -> None:
    runs = [of_user(finished(begun(engine(), seed=seed)), 3, *EVERYTHING) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_what_a_ranker_is_told_is_the_state_advanced_by_what_was_shown() -> None:
    sessions = begun(engine(exit_rate=0.0))
    before, candidates, chosen = sessions.state, sessions.candidates, first_candidates(sessions).clone()
    chosen[:, -1] = -1
    outcome = sessions.step(chosen)
    shown = candidates.items[:, : K - 1]
    assert torch.equal(outcome.items, torch.nn.functional.pad(shown, (0, 1), value=EMPTY))
    assert (outcome.feedback[:, -1] == Feedback.NONE).all()
    expected = before.advance(torch.nn.functional.pad(shown, (0, 1)), outcome.feedback)
    assert all(torch.equal(getattr(expected, name), getattr(sessions.state, name)) for name in vars(expected))
    assert torch.equal(outcome.rewards, torch.tensor(TASK.rewards)[outcome.feedback].sum(dim=1))
    assert torch.equal(outcome.delivered, outcome.rewards)
    assert (sessions.page == 1).all()
    keys = mix64(torch.arange(40) * 104_729, sessions.page)
    assert torch.equal(sessions.candidates.tie, mix64(keys[:, None], sessions.candidates.items))
    assert not (sessions.candidates.items[:, :, None] == shown[:, None]).any()  # not shown again


def test_only_those_who_stay_are_kept() -> None:
    sessions, pages = begun(engine(exit_rate=0.3), 200), 0
    left = torch.zeros(200, dtype=torch.bool)
    while not sessions.done:
        assert torch.equal(sessions.users, (~left).nonzero()[:, 0])
        assert len(sessions.state) == len(sessions.candidates.items) == len(sessions.hidden.mood)
        assert (sessions.hidden.pages == pages).all()
        outcome = sessions.step(first_candidates(sessions))
        left[outcome.users[outcome.terminated]] = True
        assert not outcome.truncated.any()
        pages += 1
    assert left.all()


def test_users_answer_and_leave_at_their_models_rates() -> None:
    model = PlainUsers(ITEMS + 1, exit_rate=0.3)
    sessions = begun(engine(model=model, recall=UniformRecall(TASK)), 4000)
    expected = model.positive_probabilities(sessions.hidden, sessions.candidates.items)[:, :K]
    outcome = sessions.step(first_candidates(sessions))
    positive = (outcome.feedback >= Feedback.CLICK).float()
    assert outcome.terminated.float().mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(positive.mean(dim=0), expected.mean(dim=0), atol=0.04)
    assert (outcome.feedback[positive > 0] == Feedback.PURCHASE).float().mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "pages"),
    [
        ({"length": "natural", "max_pages": 4}, 4),
        ({"length": "short"}, 10),
        ({"length": "long"}, 50),
        ({"length": "short", "rows": 1, "cols": 1}, 50),
        ({"length": "long", "rows": 1, "cols": 1}, 200),
    ],
)
def test_a_session_of_fixed_length_is_cut_and_never_left(settings: dict[str, Any], pages: int) -> None:
    rate = 0.0 if settings["length"] == "natural" else 0.9
    sessions = engine(exit_rate=rate, recall=PopularRecall(TASK), **settings)
    state = StateBatch.at_start(torch.zeros(2, 4), *2 * [torch.zeros(2, 6).long()], 1, sessions.settings.page_size)
    sessions.start(state, torch.arange(2), 0)
    outcomes = finished(sessions)
    assert len(outcomes) == pages
    assert [bool(outcome.truncated.all()) for outcome in outcomes] == [False] * (pages - 1) + [True]
    assert not any(outcome.terminated.any() for outcome in outcomes)


def test_who_leaves_on_the_last_page_is_not_cut() -> None:
    outcome = begun(engine(exit_rate=0.5, max_pages=1), 200).step(torch.arange(K).expand(200, K))
    assert 50 < outcome.terminated.sum() < 150
    assert torch.equal(outcome.truncated, ~outcome.terminated)


def test_late_rewards_add_up_to_the_true_ones_and_come_three_pages_later() -> None:
    outcomes = finished(begun(engine(high_variance=True, exit_rate=0.1, max_pages=8), 100))
    assert outcomes[-1].truncated.sum() > 20  # and the others left
    for user in range(100):
        pages = np.array(of_user(outcomes, user, "rewards", "delivered"))
        rewards, delivered = pages.T
        assert delivered.sum() == rewards.sum()
        assert (delivered[:3][: len(pages) - 1] == 0).all()
        assert (delivered[3:-1] == rewards[: max(0, len(pages) - 4)]).all()


def test_the_trend_reaches_the_users_and_starts_anew_with_each_session() -> None:
    model = PlainUsers(ITEMS + 1, exit_rate=0.0)
    finished(begun(engine(model=model, high_variance=True, length="short"), 3000))
    shifts = torch.stack([shift for shift in model.shifts if shift is not None])  # [10, B]
    assert shifts[0].var() == pytest.approx(0.2, abs=0.03)  # of ε alone
    noise = shifts[2:] - 0.5 * shifts[1:-1] - 0.3 * shifts[:-2]
    assert noise.var() == pytest.approx(0.2, abs=0.02)
    plain = PlainUsers(ITEMS + 1)
    finished(begun(engine(model=plain)))
    assert set(plain.shifts) == {None}


def test_any_agent_can_be_rolled_out_in_a_fitted_user_model() -> None:
    model = RNNConfig(hidden=8, layers=(8,)).build(TASK)
    torch.manual_seed(0)
    model._network = model.new_network().eval()
    agent = PopularityConfig().build(TASK, seed=0)

    def best_page(sessions: Sessions) -> Tensor:
        return rank_page(agent, sessions.state, sessions.candidates, TASK.rows, TASK.cols)

    def run() -> list[Outcome]:
        return finished(begun(engine(model=model, max_pages=5)), best_page)

    first = run()[0]
    popularity = TASK.catalogue.popularity[first.items]
    assert (popularity[:, 1:] <= popularity[:, :-1]).all()
    for one, two in zip(run(), run(), strict=True):
        assert_close(one.feedback, two.feedback)


MASK = torch.tensor([[True, True, True, False]])


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: checked(torch.tensor([[0, 0]]), MASK, 2), ModelError, "one of them twice"),
        (lambda: checked(torch.tensor([[0, 4]]), MASK, 2), ModelError, "0 to 4, one outside of the pool"),
        (lambda: checked(torch.tensor([[-2, 1]]), MASK, 2), ModelError, "outside of the pool"),
        (lambda: checked(torch.tensor([[0, 3]]), MASK, 2), ModelError, "one that is padding"),
        (lambda: checked(torch.tensor([[0, 1, 2]]), MASK, 2), ModelError, r"shape \(1, 3\) .* Give \[1, 2\]"),
        (lambda: engine(pool=9), ConfigError, "5 × 2 needs 10 candidates, but the pool has 9"),
        (lambda: engine(rows=40, cols=2, pool=90), ConfigError, "the catalogue 60 items"),
        (lambda: begun(engine(rows=4)), ModelError, "pages of 10 slots.*pages of 8 slots"),
        (lambda: engine().start(starts(3), torch.arange(2), 0), ModelError, "3 states .* 2 keys"),
        (lambda: begun(engine(), users=0), ModelError, "at least one user"),
    ],
)
def test_what_cannot_be_played_is_refused(action: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        action()


def test_empty_slots_may_be_many() -> None:
    assert checked(torch.tensor([[-1, -1]]), MASK, 2).tolist() == [[-1, -1]]
