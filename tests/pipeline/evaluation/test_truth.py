"""True values: survival-weighted, with common random numbers, blind to what a ranker may not see."""

from datetime import date
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import AgentConfig, Candidates, StateBatch
from models.heuristics import OracleFarsightedConfig, OracleMyopicConfig, RandomConfig
from models.simulators.storefront import Shoppers, Storefront, StorefrontConfig, seeded
from pipeline.errors import ConfigError, HindsightError, ModelError
from pipeline.evaluation import truth
from pipeline.evaluation.truth import Values, logging_value, true_value
from pipeline.schemas import ROLLOUT_METRICS
from pipeline.sources.storefront_log import simulate
from tests.models.builders import empty_state, make_task

torch.set_num_threads(1)
USERS = 600
VOCABULARY = torch.arange(600) % 61  # the task's 60 known items, and a few unknown ones


@pytest.fixture(scope="module")
def shop() -> Storefront:
    return Storefront(StorefrontConfig())


@pytest.fixture(scope="module")
def population(shop: Storefront) -> Shoppers:
    return shop.population(USERS, seeded(7, "users", 0))


def value(config: AgentConfig, shop: Storefront, population: Shoppers, **changes: Any) -> Values:
    task = changes.pop("task", make_task())
    inputs: dict[str, Any] = {
        "start": empty_state(len(population)),
        "users": torch.arange(len(population)),
        "vocabulary": VOCABULARY,
        "seed": 1,
    }
    agent = changes.pop("agent", None) or config.build(task, seed=0)
    return true_value(agent, config, task, shop, population, **(inputs | changes))


def surely_greater(a: np.ndarray, b: np.ndarray) -> bool:
    difference = a - b
    return bool(difference.mean() > 4 * difference.std() / np.sqrt(len(difference)))


class Recorder:
    """Shows the first candidates and keeps what it was given."""

    def __init__(self) -> None:
        self.states: list[StateBatch] = []
        self.offers: list[Candidates] = []

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        self.states.append(state)
        self.offers.append(candidates)
        return -torch.arange(candidates.items.shape[1]).expand(candidates.items.shape).float()


class FixedPage:
    """Always the same slots."""

    def __init__(self, page: list[int]) -> None:
        self.page = page

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        raise AssertionError("a page-wise agent is asked for its page")

    def rank_page(self, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
        return torch.tensor(self.page).expand(len(state), -1)


def test_seeing_far_beats_seeing_the_page_which_beats_the_logs_ranker_which_beats_chance(
    shop: Storefront, population: Shoppers
) -> None:
    farsighted = value(OracleFarsightedConfig(), shop, population)
    myopic = value(OracleMyopicConfig(), shop, population)
    logging = logging_value(shop, population, seed=1)
    random = value(RandomConfig(), shop, population)
    assert surely_greater(farsighted["return"], myopic["return"])
    assert surely_greater(myopic["return"], logging["return"])
    assert surely_greater(logging["return"], random["return"])
    assert surely_greater(farsighted["depth"], myopic["depth"])
    assert surely_greater(myopic["ctr"], farsighted["ctr"])
    for values in (farsighted, myopic, logging, random):
        assert tuple(values) == ROLLOUT_METRICS
        np.testing.assert_allclose(values["return"], values["clicks"] + 4 * values["purchases"], rtol=1e-4)
        np.testing.assert_allclose(values["ctr"], values["clicks"] / (10 * values["depth"]), rtol=1e-9)


def test_in_a_myopic_world_farsightedness_brings_nothing(population: Shoppers) -> None:
    shop = Storefront(StorefrontConfig(myopic_world=True))
    difference = (
        value(OracleFarsightedConfig(), shop, population)["return"]
        - value(OracleMyopicConfig(), shop, population)["return"]
    )
    assert difference.mean() < 2 * difference.std() / np.sqrt(USERS)


def test_the_logged_rewards_of_a_session_average_to_the_logging_value(shop: Storefront, population: Shoppers) -> None:
    pages, _ = simulate(shop, range(USERS), date(2024, 1, 1), days=30, seed=7)
    first = pages.session == 0  # of the users as ``population`` has them
    reward = np.array([0, 0, 1, 1, 1, 5])[pages.feedback[first]].sum(1)
    realised = np.bincount(pages.user[first], weights=reward, minlength=USERS)
    depth = np.bincount(pages.user[first], minlength=USERS)
    expected = logging_value(shop, population, seed=1)
    for sample, values in ((realised, expected["return"]), (depth, expected["depth"])):
        error = np.sqrt((sample.var() + values.var()) / USERS)
        assert abs(sample.mean() - values.mean()) < 3 * error
        assert error < 0.08 * values.mean()


def test_depth_is_the_geometric_series_of_a_constant_exit_probability() -> None:
    shop = Storefront(StorefrontConfig(myopic_world=True, patience_spread=0))
    stay = 1 - 1 / (1 + np.exp(1.6))
    depth = logging_value(shop, shop.population(20, seeded(1, "users")), seed=1)["depth"]
    np.testing.assert_allclose(depth, (1 - stay**25) / (1 - stay), rtol=1e-5)


def test_a_session_that_surely_ends_is_worth_its_first_page() -> None:
    shop = Storefront(StorefrontConfig(exit_bias=100.0))
    population = shop.population(30, seeded(1, "users"))
    values = value(OracleMyopicConfig(), shop, population)
    luck = truth._Luck(1, 0, shop.device)
    state = shop.start_session(population, luck("start"))
    candidates = shop.recall(state, luck("recall", 0))
    page = candidates.gather(1, shop.oracle_page(state, candidates, farsighted=False))
    np.testing.assert_allclose(values["return"], shop.expected_reward(state, page).sum(1), rtol=1e-5)
    np.testing.assert_allclose(values["depth"], 1)


def test_every_ranker_meets_the_same_users_and_candidates(shop: Storefront, population: Shoppers) -> None:
    one, two = Recorder(), Recorder()
    values = [value(RandomConfig(), shop, population[:40], agent=agent) for agent in (one, two)]
    assert all(np.array_equal(values[0][name], values[1][name], equal_nan=True) for name in ROLLOUT_METRICS)
    other = value(RandomConfig(), shop, population[:40], agent=FixedPage(list(range(40, 50))))
    assert not np.array_equal(other["return"], values[0]["return"])
    truthful = OracleMyopicConfig()
    seen = [Recorder(), Recorder()]
    for agent, config in zip(seen, (truthful, OracleFarsightedConfig()), strict=True):
        value(config, shop, population[:40], agent=agent)
    views = [agent.offers[0].truth for agent in seen]
    assert torch.equal(views[0].shop_items, views[1].shop_items)
    assert torch.equal(views[0].state.view, views[1].state.view)


def test_the_seed_is_the_users_luck(shop: Storefront, population: Shoppers) -> None:
    one, again, other = (logging_value(shop, population[:40], seed) for seed in (1, 1, 2))
    assert np.array_equal(one["return"], again["return"])
    assert not np.array_equal(one["return"], other["return"])


def test_an_agent_sees_dense_items_and_the_feedback_so_far_but_no_truth(shop: Storefront, population: Shoppers) -> None:
    agent = Recorder()
    value(RandomConfig(), shop, population[:40], agent=agent)
    assert len(agent.offers) == 25
    assert all(offer.truth is None for offer in agent.offers)
    assert int(agent.offers[0].items.max()) <= 60
    assert int(agent.offers[0].items.min()) == 0  # items outside the vocabulary are candidates all the same
    assert all(offer.mask.all() for offer in agent.offers)
    for page, state in enumerate(agent.states):
        assert (state.pages_seen == page).all()
    second = agent.states[1]
    assert torch.equal(second.page_items[:, -1], agent.offers[0].items[:, :10])
    assert set(second.page_feedback[:, -1].unique().tolist()) <= {1, 2, 4, 5}


def test_the_privileged_see_the_shop(shop: Storefront, population: Shoppers) -> None:
    agent = Recorder()
    value(OracleMyopicConfig(), shop, population[:40], agent=agent)
    view = agent.offers[3].truth
    assert view.shop is shop
    assert torch.equal(VOCABULARY[view.shop_items], agent.offers[3].items)
    half = agent.offers[3][torch.arange(20)]
    assert len(half.truth.state) == len(half.truth.shop_items) == 20


def test_ties_are_broken_by_user_page_and_item_alone(shop: Storefront, population: Shoppers) -> None:
    agent, later = Recorder(), Recorder()
    value(OracleMyopicConfig(), shop, population[:40], agent=agent)
    value(OracleMyopicConfig(), shop, population[:40], agent=later, seed=2)

    def ties(recorder: Recorder, page: int) -> dict[tuple[int, int], int]:
        offer = recorder.offers[page]
        return {
            (user, item): tie
            for user, row in enumerate(zip(offer.truth.shop_items.tolist(), offer.tie.tolist(), strict=True))
            for item, tie in zip(*row, strict=True)
        }

    first, other = ties(agent, 0), ties(later, 0)
    common = first.keys() & other.keys()
    assert len(common) > 100
    assert all(first[key] == other[key] for key in common)
    assert len(set(first.values())) == len(first)
    next_page = ties(agent, 1)
    assert all(first[key] != next_page[key] for key in first.keys() & next_page.keys())


def test_users_are_rolled_out_in_chunks(
    shop: Storefront, population: Shoppers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "CHUNK", 15)
    agent = Recorder()
    values = value(RandomConfig(), shop, population[:40], agent=agent)
    assert {len(state) for state in agent.states} == {15, 10}
    assert len(values["return"]) == 40
    assert len(logging_value(shop, population[:40], seed=1)["return"]) == 40


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": make_task(rows=4)}, ConfigError, "4 × 2 cannot be rolled out in a storefront of 5 × 2"),
        ({"start": empty_state(3)}, ModelError, "40 users, 3 states and 40 keys"),
        ({"users": torch.arange(7)}, ModelError, "40 users, 40 states and 7 keys"),
        ({"vocabulary": torch.arange(5)}, ModelError, "a vocabulary of 5 for 600 items"),
        ({"agent": FixedPage([0, 0, *range(2, 10)])}, ModelError, "one of them twice"),
        ({"agent": FixedPage([-1, *range(1, 10)])}, ModelError, "candidates -1 to 9"),
        ({"agent": FixedPage([50, *range(1, 10)])}, ModelError, "candidates 1 to 50"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused(
    shop: Storefront, population: Shoppers, changes: dict[str, Any], error: type[HindsightError], message: str
) -> None:
    with pytest.raises(error, match=message):
        value(RandomConfig(), shop, population[:40], **changes)


def test_an_agent_may_not_choose_a_page_of_another_size(shop: Storefront, population: Shoppers) -> None:
    with pytest.raises(ModelError, match="9 slots"):
        value(RandomConfig(), shop, population[:40], agent=FixedPage(list(range(9))))
