"""Roll-outs in a user model whose answers are known: what is counted, and that luck is common to all rankers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import Candidates, StateBatch, Task
from models.feedback import Feedback
from models.heuristics import RandomConfig
from models.simulators.base import EMPTY
from pipeline.evaluation import rollout
from pipeline.evaluation.rollout import Episodes, roll_out
from pipeline.experiment import Rollouts
from pipeline.simulation import Simulator
from tests.models.builders import ITEMS, empty_state, make_task

torch.set_num_threads(1)
TASK = make_task()
USERS = 200
LEAVE = 0.25  # a page
RATES = torch.linspace(0, 0.9, ITEMS + 1)  # P(click) of each item, the same for everybody


@dataclass
class KnownUsers:
    """Everybody clicks item i with RATES[i], times ``factor``, buys a tenth of what is clicked, leaves with LEAVE."""

    factor: float = 1.0

    def reset_width(self) -> int:
        return 0

    def step_width(self, slots: int) -> int:
        return 2 * slots + 1

    def reset(self, state: StateBatch, draws: Tensor | None = None) -> Tensor:
        return torch.zeros(len(state))

    def positive_probabilities(self, hidden: Tensor, items: Tensor) -> Tensor:
        return self.factor * RATES[items]

    def step(
        self, hidden: Tensor, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rates = self.factor * RATES[items.clamp(min=0)]
        if shift is not None:
            rates = torch.sigmoid(rates.logit() + shift[:, None])
        answers, kinds = draws[:, :-1].view(*items.shape, 2).unbind(dim=2)
        positive = torch.where(kinds < 0.1, int(Feedback.PURCHASE), int(Feedback.CLICK))
        feedback = torch.where(answers < rates, positive, int(Feedback.SKIP)).masked_fill(items == EMPTY, 0)
        return feedback, draws[:, -1] < LEAVE, hidden + 1


class Best:
    """Shows what is clicked most, or least; its critic says that a session is worth ``promise``."""

    discount = 0.5

    def __init__(self, sign: int = 1, promise: float = 7.0) -> None:
        self.sign, self.promise = sign, promise

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return self.sign * RATES[candidates.items]

    def predicted_return(self, state: StateBatch, items: Tensor) -> Tensor:
        return torch.full((len(state),), self.promise)


def simulator(*factors: float) -> Simulator:
    members: Any = [KnownUsers(factor) for factor in factors or (1.0, 1.0, 1.0)]
    shown = torch.where(torch.arange(ITEMS + 1) % 2 == 0, 100, 0)  # every other item was never shown
    return Simulator("known", "judge", members, shown)


def run(agent: Any, sessions: str = "natural", task: Task = TASK, **changes: Any) -> Episodes:
    inputs: dict[str, Any] = {"start": empty_state(USERS), "users": torch.arange(USERS) + 7, "seed": 1}
    settings = Rollouts(pool=changes.pop("pool", 30), recall="uniform")
    return roll_out(agent, task, changes.pop("simulator", simulator()), sessions, settings, **(inputs | changes))


def test_the_return_is_the_sum_of_the_rewards_of_all_pages() -> None:
    found = run(Best()).values
    np.testing.assert_allclose(found["return"], found["clicks"] + 4 * found["purchases"])
    assert found["depth"].mean() == pytest.approx(1 / LEAVE, rel=0.2)
    np.testing.assert_allclose(found["ctr"], found["clicks"] / (10 * found["depth"]))
    assert found["purchases"].sum() / found["clicks"].sum() == pytest.approx(0.1, abs=0.02)


def test_the_better_ranker_has_the_better_return_and_chance_lies_between() -> None:
    best, chance, worst = (
        run(agent).values["return"].mean() for agent in (Best(), RandomConfig().build(TASK, 1), Best(-1))
    )
    assert best > chance > worst


def test_luck_is_the_users_own_and_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    together = run(Best())
    monkeypatch.setattr(rollout, "CHUNK", 64)
    apart = run(Best())
    assert apart.items_shown == together.items_shown
    for name, values in together.values.items():
        np.testing.assert_array_equal(values, apart.values[name], err_msg=name)
    first = run(Best(), start=empty_state(3), users=torch.arange(3) + 7).values["return"]
    np.testing.assert_array_equal(first, together.values["return"][:3])


def test_rankers_meet_users_who_stay_equally_long() -> None:
    np.testing.assert_array_equal(run(Best()).values["depth"], run(Best(-1)).values["depth"])


def test_sessions_of_a_given_length_have_it_and_repeat_only_what_must_be() -> None:
    short, long = (run(Best(), length, pool=10).values for length in ("short", "long"))
    assert set(short["depth"]) == {10.0}
    assert set(long["depth"]) == {50.0}
    # 60 items: six pages of ten bring nothing twice, four of ten pages and 44 of 50 bring nothing new.
    np.testing.assert_allclose(short["repeat_rate"], 0.4)
    np.testing.assert_allclose(long["repeat_rate"], 0.88)


def test_over_estimation_is_what_was_predicted_minus_what_came_at_the_critics_discount() -> None:
    found = run(Best(promise=7.0), "short").values
    assert set(found["predicted_return"]) == {7.0}
    np.testing.assert_allclose(found["overestimation"], 7.0 - found["discounted_return"])
    # At discount 1/2 the first page is worth more than all the others together would be at most.
    assert (found["discounted_return"] < found["return"]).all()
    assert found["discounted_return"].mean() == pytest.approx(2 * 10 * 0.8 * 1.4, rel=0.2)


def test_what_needs_a_critic_is_unknown_without_one() -> None:
    found = run(RandomConfig().build(TASK, 1)).values
    for name in ("predicted_return", "discounted_return", "overestimation"):
        assert np.isnan(found[name]).all()


def test_support_and_disagreement_speak_of_the_shown_items() -> None:
    chance = run(RandomConfig().build(TASK, 1), simulator=simulator(0.5, 1.0, 1.5)).values
    assert chance["out_of_support"].mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(chance["disagreement"], 0.5, rtol=1e-5)  # the deviation of (½, 1, 1½) over their mean
    assert np.nanmax(run(Best()).values["disagreement"]) == 0


def test_diversity_is_one_minus_the_mean_cosine_on_a_page() -> None:
    pair = make_task(rows=1, cols=2)
    agent = Best()
    found = run(agent, task=pair, start=empty_state(USERS, 2), pool=ITEMS).values
    first = torch.nn.functional.normalize(pair.catalogue.vectors, dim=1)[-2:]  # the two best items open each session
    once = found["depth"] == 1
    np.testing.assert_allclose(found["diversity"][once], 1 - float(first[0] @ first[1]), rtol=1e-5)


def test_every_shown_item_counts_once_in_the_coverage() -> None:
    assert run(Best(), "long", pool=10).items_shown == list(range(1, ITEMS + 1))
    assert len(run(Best(), start=empty_state(1), users=torch.tensor([7]), pool=10).items_shown) % 10 == 0


def test_a_noisy_world_has_about_the_same_mean_and_a_larger_variance() -> None:
    calm, noisy = (run(Best(), sessions).values["return"] for sessions in ("natural", "high_variance"))
    assert not np.array_equal(calm, noisy)
    assert noisy.mean() == pytest.approx(calm.mean(), rel=0.2)
