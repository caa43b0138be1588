"""Decoders in user models whose best page is known: what each can see, and that none sees its own luck."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import Candidates, StateBatch, Task
from models.environments.recall import RECALLS
from models.environments.sessions import Sessions, SessionSettings
from models.feedback import Feedback
from models.simulators.base import EMPTY
from pipeline.evaluation import decoding
from pipeline.evaluation.decoding import DECODERS, candidate_pages, play
from pipeline.evaluation.rollout import roll_out
from pipeline.experiment import Rollouts
from pipeline.simulation import Simulator
from tests.models.builders import ITEMS, empty_state, make_task

torch.set_num_threads(1)
ONE = make_task(rows=1, cols=1)
USERS = 150
EVEN = torch.arange(ITEMS + 1) % 2 == 0


@dataclass
class Shop:
    """Items with fixed chances of a positive answer, of its being a purchase, and of driving the user away."""

    positive: Tensor  # [I+1]
    purchase: Tensor  # [I+1]
    exit: Tensor  # [I+1]; the user leaves with the mean of the page

    def reset_width(self) -> int:
        return 0

    def step_width(self, slots: int) -> int:
        return 2 * slots + 1

    def reset(self, state: StateBatch, draws: Tensor | None = None) -> Tensor:
        return torch.zeros(len(state))

    def positive_probabilities(self, hidden: Tensor, items: Tensor) -> Tensor:
        return self.positive[items]

    def step(
        self, hidden: Tensor, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        shown, ids = items != EMPTY, items.clamp(min=0)
        answers, kinds = draws[:, :-1].view(*items.shape, 2).unbind(dim=2)
        kind = torch.where(kinds < self.purchase[ids], int(Feedback.PURCHASE), int(Feedback.CLICK))
        feedback = torch.where(answers < self.positive[ids], kind, int(Feedback.SKIP)).masked_fill(~shown, 0)
        leave = draws[:, -1] < (self.exit[ids] * shown).sum(dim=1) / shown.sum(dim=1)
        return feedback, leave, hidden + 1


def everywhere(value: float) -> Tensor:
    return torch.full((ITEMS + 1,), value)


# Even items drive users away, whatever their chance of a click.
BAIT = Shop(torch.linspace(0.4, 0.6, ITEMS + 1), everywhere(0.0), torch.where(EVEN, 0.9, 0.05))
# Even items are bought when they are clicked: more than P(positive) can tell, and no page bears on the next one.
DEAR = Shop(everywhere(0.5), EVEN.float(), everywhere(0.25))
SPREAD = Shop(torch.linspace(0.05, 0.9, ITEMS + 1), everywhere(0.1), everywhere(0.25))


SETTINGS = Rollouts(pool=20, recall="uniform")


def simulator(shop: Shop) -> Simulator:
    members: Any = [shop] * 3
    return Simulator("known", "judge", members, torch.full((ITEMS + 1,), 100))


def returns(decoder: str, shop: Shop, task: Task = ONE, pool: int = 20) -> np.ndarray:
    settings, start = SETTINGS.model_copy(update={"pool": pool}), empty_state(USERS, task.page_size)
    return play(DECODERS[decoder], task, simulator(shop), settings, start, torch.arange(USERS) + 7, 1)["return"].numpy()


def sessions(shop: Shop, task: Task = ONE, pool: int = 20) -> Sessions:
    shape = SessionSettings(rows=task.rows, cols=task.cols, pool=pool)
    engine = Sessions(shop, task, RECALLS["uniform"](task), shape)
    engine.start(empty_state(USERS, task.page_size), torch.arange(USERS) + 7, 1)
    return engine


def test_only_looking_ahead_tells_bait_from_what_keeps_users() -> None:
    greedy, best_page, lookahead = (returns(decoder, BAIT).mean() for decoder in DECODERS)
    # Who shows both kinds alike loses every other user at once.
    assert greedy == pytest.approx(best_page, rel=0.2)
    assert lookahead > 2 * best_page


def test_what_one_page_earns_takes_no_foresight() -> None:
    greedy, best_page, lookahead = (returns(decoder, DEAR) for decoder in DECODERS)
    assert best_page.mean() > 1.3 * greedy.mean()
    error = (lookahead - best_page).std() / USERS**0.5
    assert lookahead.mean() == pytest.approx(best_page.mean(), abs=3 * error)


def test_greedy_is_a_roll_out_of_the_models_own_probabilities() -> None:
    class Knowing:
        def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
            return SPREAD.positive[candidates.items]

    task = make_task()
    settings = SETTINGS.model_copy(update={"pool": 30})
    users = torch.arange(USERS) + 7
    rolled = roll_out(Knowing(), task, simulator(SPREAD), "natural", settings, empty_state(USERS), users, 1).values
    np.testing.assert_allclose(returns("greedy", SPREAD, task, pool=30), rolled["return"])


def test_the_candidate_pages_are_the_greedy_one_and_others_ever_farther_from_it() -> None:
    task = make_task()
    engine = sessions(SPREAD, task, pool=30)
    pages = candidate_pages(engine)
    assert pages.shape == (USERS, decoding.PAGES, 10)
    items = engine.candidates.items[:, None].expand(-1, decoding.PAGES, -1).gather(2, pages)
    chances = SPREAD.positive[items].mean(dim=(0, 2))  # [C]
    assert (chances[1:] < chances[:-1]).all()
    assert chances[0] == pytest.approx(float(SPREAD.positive[engine.candidates.items].topk(10).values.mean()))
    ordered = pages.sort(dim=2).values
    assert (ordered[..., 1:] != ordered[..., :-1]).all()  # no item twice


def test_a_pool_that_cannot_fill_a_page_leaves_slots_empty() -> None:
    task = make_task()
    engine = sessions(SPREAD, task, pool=12)
    mask = engine.candidates.mask.clone()
    mask[:, 4:] = False
    engine.candidates = Candidates(engine.candidates.items, mask, engine.candidates.tie)
    pages = candidate_pages(engine)
    assert ((pages >= 0).sum(dim=2) == 4).all()
    assert (pages < 4).all()


def test_futures_are_common_to_all_pages_and_other_than_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, futures = sessions(SPREAD), sessions(SPREAD)
    lucks: list[Tensor] = []
    step = Sessions.step

    def spied(self: Sessions, chosen: Tensor) -> object:
        lucks.append(self.running.luck)
        return step(self, chosen)

    monkeypatch.setattr(Sessions, "step", spied)
    pages = candidate_pages(engine)[:, :1].expand(-1, 3, -1)  # three times the same page
    found = decoding._returns(engine, futures, pages, horizon=4)
    assert found.shape == (USERS, 3, decoding.FUTURES)
    assert (found == found[:, :1]).all()
    assert (found.std(dim=2) > 0).float().mean() > 0.9
    first = lucks[0].view(USERS, 3, decoding.FUTURES)
    assert len(first.unique()) == USERS * decoding.FUTURES
    assert not torch.isin(first, engine.running.luck).any()


def test_who_else_is_decoded_for_changes_nothing() -> None:
    alone = play(DECODERS["lookahead"], ONE, simulator(BAIT), SETTINGS, empty_state(3, 1), torch.arange(3) + 7, 1)
    np.testing.assert_array_equal(alone["return"], returns("lookahead", BAIT)[:3])


def test_planning_leaves_the_session_as_it_is() -> None:
    engine, futures = sessions(SPREAD), sessions(SPREAD)
    before = engine.running, engine.candidates
    decoding.lookahead(engine, futures)
    assert (engine.running, engine.candidates) == before


def test_the_same_seed_gives_the_same_sessions() -> None:
    np.testing.assert_array_equal(returns("lookahead", BAIT), returns("lookahead", BAIT))
