"""The storefront's logs that estimators are proved on: propensities, truth, and a model of who made them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.simulators.storefront import Storefront
from pipeline.evaluation.ope.logged import Floats
from pipeline.evaluation.ope.policies import ConditionalLogit, conditional_propensities, marginal_propensities
from pipeline.evaluation.ope.slates import RIPS, CascadeDR
from pipeline.evaluation.proof_logs import (
    FIRST_PAGES,
    LOGGING,
    ONE_ITEM,
    Pages,
    Ranker,
    judged_pages,
    judged_sessions,
    judged_steps,
    play,
    resized,
    session_value,
    users,
    with_fitted_model,
    with_true_model,
)

torch.set_num_threads(1)
COOL = Ranker("cool", temperature=0.7)
RATED = Ranker("rated", rating=0.4)


@pytest.fixture(scope="module")
def pages() -> Pages:
    return next(play(Storefront(FIRST_PAGES), 3_000, seed=2))


@pytest.fixture(scope="module")
def played() -> list[Pages]:
    return list(play(Storefront(ONE_ITEM), 2_000, seed=3))


def test_the_logged_propensities_are_those_of_the_formula(pages: Pages) -> None:
    found = conditional_propensities(pages.logits(LOGGING), pages.slates)
    np.testing.assert_allclose(found, pages.propensities, rtol=1e-5)


def test_another_rankers_pages_are_worth_what_they_earn() -> None:
    shop = Storefront(FIRST_PAGES)
    seen = next(play(shop, 8_000, seed=4))
    for ranker in (COOL, RATED):
        earned = next(play(shop, 8_000, seed=5, ranker=ranker)).reward.sum(axis=1)
        error = earned.std() / np.sqrt(len(earned))
        assert seen.value(ranker, seed=1) == pytest.approx(earned.mean(), abs=4 * error)
    assert seen.value(COOL, seed=1) > seen.reward.sum(axis=1).mean() + 0.1  # it is no copy of the log


def test_the_value_of_sessions_is_what_users_earn_before_they_leave() -> None:
    shop = Storefront(ONE_ITEM)
    earned = sum(page.reward[:, 0] * page.here.numpy() for page in play(shop, 20_000, 6, COOL))
    assert session_value(shop, 20_000, 7, COOL) == pytest.approx(earned.mean(), abs=4 * earned.std() / np.sqrt(20_000))


def test_the_value_of_single_decisions_is_exact(played: list[Pages]) -> None:
    page = played[0]
    logged, logits = judged_steps(page, COOL), page.logits(COOL)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)  # [n, R]
    worth = [page.worth(np.full((len(page), 1), item))[:, 0] for item in range(logits.shape[1])]
    np.testing.assert_allclose(logged.target, page.shown(chances)[:, 0], rtol=1e-12)
    np.testing.assert_allclose(logged.q_logged, page.worth(page.slates)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(logged.v_target, (chances * np.stack(worth, axis=1)).sum(axis=1), rtol=1e-6)


def test_the_true_model_is_consistent_down_the_page(pages: Pages) -> None:
    """Of the ranker that made the log, the first slot's v is the page's value and each q is the next v and a reward."""
    logged = with_true_model(judged_pages(pages, LOGGING), pages, LOGGING, seed=8)
    assert logged.q_logged is not None
    assert logged.v_target is not None
    value = pages.worth(pages.slates).sum(axis=1).mean()
    assert logged.v_target[:, 0].mean() == pytest.approx(value, rel=0.03)
    onwards = pages.worth(pages.slates)[:, ::-1].cumsum(axis=1)[:, ::-1]  # what the rest of the page is worth
    np.testing.assert_allclose(logged.q_logged.mean(axis=0), onwards.mean(axis=0), atol=0.04)
    np.testing.assert_allclose(logged.q_logged[:, -1], onwards[:, -1], rtol=1e-6)  # nothing is left to draw


def test_a_fitted_model_takes_noise_away(pages: Pages) -> None:
    logged = with_fitted_model(judged_pages(pages, COOL), pages, COOL)
    assert CascadeDR().estimate(logged).value == pytest.approx(pages.value(COOL, seed=0), abs=0.15)
    assert CascadeDR().terms(logged).influence().std() < 0.95 * RIPS().terms(logged).influence().std()


def test_marginals_are_of_both_rankers(pages: Pages) -> None:
    few = next(play(pages.shop, 40, seed=1))
    logged = judged_pages(few, COOL, marginals=True)
    np.testing.assert_array_equal(logged.behaviour_marginal, marginal_propensities(few.logits(LOGGING), few.slates))
    np.testing.assert_array_equal(logged.target_marginal, marginal_propensities(few.logits(COOL), few.slates))


def test_users_who_have_left_are_in_no_session(played: list[Pages]) -> None:
    logged = judged_sessions(played, COOL)
    assert len(logged) == sum(int(page.here.sum()) for page in played)
    left = ~played[1].here.numpy()
    assert not set(np.flatnonzero(left)) & set(logged.user_key[logged.step >= 1])
    np.testing.assert_array_equal(logged.reward[logged.step == 0], played[0].reward[:, 0])


@pytest.mark.parametrize("size", [25, 100, 400])
def test_logs_of_another_size_hold_the_same_rows(size: int, played: list[Pages]) -> None:
    logs = [judged_sessions(list(play(played[0].shop, 100, seed)), COOL) for seed in range(4)]
    cut = resized(logs, size)
    assert [users(log) for log in cut] == [size] * (400 // size)
    np.testing.assert_array_equal(np.concatenate([log.reward for log in cut]), np.concatenate([x.reward for x in logs]))
    assert len(np.unique(np.concatenate([log.user_key for log in cut]))) == 400


def test_a_fitted_behaviour_policy_is_calibrated_but_page_weights_tell_that_it_is_not_the_true_one(
    pages: Pages,
) -> None:
    """The bucket is hidden from it, as is the ranker's fixed error but for how often an item was shown."""
    items, half = pages.candidates.numpy(), len(pages) // 2
    shown_items = np.take_along_axis(items, pages.slates, axis=1)
    offered, shown = (np.bincount(x[:half].ravel(), minlength=600) for x in (items, shown_items))
    popularity = np.log((shown + 1) / (offered + 5))[items]
    features, mask = np.stack([popularity, pages.known()[:, :, 0]], axis=2), np.ones(items.shape, bool)
    fitted = ConditionalLogit().fit(features[:half], pages.slates[:half], mask[:half])
    found = fitted.propensities(features[half:], pages.slates[half:], mask[half:])
    candidates, slots = items.shape[1], pages.slates.shape[1]
    uniform = -np.log(np.arange(candidates, candidates - slots, -1))
    exact: Floats = np.log(pages.propensities[half:])
    assert ((np.log(found) - exact) ** 2).mean() < 0.3 * ((uniform - exact) ** 2).mean()
    rows = fitted.calibration(features[half:], pages.slates[half:], mask[half:])
    assert max(abs(row["predicted"] - row["observed"]) for row in rows) < 0.02
    logged = judged_pages(pages, COOL)
    believed = fitted.propensities(features, pages.slates, mask)
    assert RIPS().estimate(logged).supported
    assert "and not 1" in RIPS().estimate(replace(logged, behaviour=believed)).reason
