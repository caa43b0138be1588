"""Page estimators against the sum over all pages of 2 of 4 items, hand-worked tables, and the truth over many logs."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluation.ope.estimate import Estimator
from pipeline.evaluation.ope.logged import LoggedSlates
from pipeline.evaluation.ope.slates import (
    IIPS,
    RIPS,
    SIPS,
    SLATE_ESTIMATORS,
    CascadeDR,
    PseudoInverse,
    empirical_second_moment,
    projection,
    uniform_second_moment,
)
from pipeline.evaluation.ope_proof import coverage
from tests.pipeline.evaluation.ope.proofs import estimates, rate
from tests.pipeline.evaluation.ope.worlds import PAGES, Slates, slot_marginals

WORTH = np.array([0.1, 0.7, 0.3, 0.5])
INDEPENDENT = Slates.make(lambda above, below: (WORTH[above], WORTH[below] / 2))
CASCADE = Slates.make(lambda above, below: (WORTH[above], WORTH[below] * (1 - WORTH[above])))
WHOLE_PAGE = Slates.make(lambda above, below: (WORTH[above] * (0.2 + WORTH[below]), WORTH[below] * WORTH[above] ** 2))
WORLDS = {"independent": INDEPENDENT, "cascade": CASCADE, "whole page": WHOLE_PAGE}
UNBIASED = {
    "sips": {"independent", "cascade", "whole page"},
    "rips": {"independent", "cascade"},
    "cascade_dr": {"independent", "cascade"},
    "iips": {"independent"},
    "pseudo_inverse": {"independent"},
}


def with_projection(world: Slates, logged: LoggedSlates, page: np.ndarray) -> LoggedSlates:
    marginals = np.broadcast_to(slot_marginals(world.target), (len(page), 2, 4))
    return replace(logged, projection=projection(PAGES[page], marginals, world.second_moment()))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", UNBIASED)
def test_it_is_unbiased_exactly_where_its_assumption_holds(name: str, world: str) -> None:
    shop = WORLDS[world]
    logged = with_projection(shop, shop.enumerated(), np.arange(12))
    if name == "cascade_dr":  # with a model that knows nothing
        logged = replace(logged, q_logged=0 * logged.q_logged, v_target=0 * logged.v_target)
    error = abs(SLATE_ESTIMATORS[name].terms(logged).value - shop.value)
    assert (error < 1e-10) == (world in UNBIASED[name]), error


def test_cascade_dr_is_unbiased_with_either_nuisance_wrong() -> None:
    right = CASCADE.enumerated()
    wrong = np.full((12, 2), 0.4)
    assert CascadeDR().terms(replace(right, behaviour=wrong)).value == pytest.approx(CASCADE.value, rel=1e-12)
    assert abs(RIPS().terms(replace(right, behaviour=wrong)).value - CASCADE.value) > 0.05


def test_the_pseudo_inverse_sees_only_the_sum_of_the_rewards() -> None:
    logged = with_projection(INDEPENDENT, INDEPENDENT.enumerated(), np.arange(12))
    summed = replace(logged, reward=np.stack([logged.reward.sum(axis=1), np.zeros(12)], axis=1))
    assert PseudoInverse().terms(summed).value == pytest.approx(INDEPENDENT.value, rel=1e-10)
    assert abs(IIPS().terms(summed).value - INDEPENDENT.value) > 0.02


def test_second_moments_of_uniform_pages() -> None:
    by_hand = np.array(
        [
            [1 / 3, 0, 0, 0, 1 / 6, 1 / 6],
            [0, 1 / 3, 0, 1 / 6, 0, 1 / 6],
            [0, 0, 1 / 3, 1 / 6, 1 / 6, 0],
            [0, 1 / 6, 1 / 6, 1 / 3, 0, 0],
            [1 / 6, 0, 1 / 6, 0, 1 / 3, 0],
            [1 / 6, 1 / 6, 0, 0, 0, 1 / 3],
        ]
    )
    np.testing.assert_allclose(uniform_second_moment(3, 2), by_hand, rtol=1e-12)
    pages = PAGES[np.random.default_rng(0).permutation(12)]  # all pages once
    np.testing.assert_allclose(empirical_second_moment(pages, 4), uniform_second_moment(4, 2), atol=1e-12)


def test_a_second_moment_of_each_page_is_as_good_as_a_shared_one() -> None:
    marginals = np.broadcast_to(slot_marginals(CASCADE.target), (12, 2, 4))
    shared = projection(PAGES, marginals, CASCADE.second_moment())
    own = projection(PAGES, marginals, np.broadcast_to(CASCADE.second_moment(), (12, 8, 8)))
    np.testing.assert_allclose(own, shared, rtol=1e-9)
    assert (CASCADE.behaviour.prod(axis=1) * shared).sum() == pytest.approx(1)


# two pages: ratios (2, 0.5) and (1, 3), marginal ratios (2, 1) and (1, 0.5), rewards (1, 1) and (0, 2)
TABLE = LoggedSlates(
    reward=np.array([[1.0, 1.0], [0.0, 2.0]]),
    behaviour=np.array([[0.25, 0.5], [0.5, 0.25]]),
    target=np.array([[0.5, 0.25], [0.5, 0.75]]),
    mask=np.ones((2, 2), bool),
    user_key=np.array([1, 2]),
    behaviour_marginal=np.array([[0.25, 0.4], [0.5, 0.4]]),
    target_marginal=np.array([[0.5, 0.4], [0.5, 0.2]]),
    q_logged=np.array([[1.0, 0.5], [1.0, 1.0]]),
    v_target=np.array([[1.5, 0.5], [1.0, 1.5]]),
    projection=np.array([1.5, -0.5]),
)


@pytest.mark.parametrize(
    ("estimator", "value"),
    [
        (SIPS(), (1 * 2 + 3 * 2) / 2),
        (SIPS(self_normalised=True), 8 / 4),
        (SIPS(clip=2.0), (1 * 2 + 2 * 2) / 2),
        (RIPS(), (2 * 1 + 1 * 1 + 1 * 0 + 3 * 2) / 2),
        (RIPS(self_normalised=True), 2 / 3 + 7 / 4),
        (IIPS(), (2 + 1 + 0 + 0.5 * 2) / 2),
        (IIPS(self_normalised=True), 2 / 3 + 2 / 1.5),
        (CascadeDR(), ((1.5 + 0 + 2 * 0.5 + 1 * 0.5) + (1.0 - 1 + 1 * 1.5 + 3 * 1)) / 2),
        (CascadeDR(self_normalised=True), (0 - 1) / 3 + 3.5 / 4 + 2.5 / 2 + (2 * 0.5 + 1 * 1.5) / 3),
        (PseudoInverse(), (1.5 * 2 - 0.5 * 2) / 2),
        (PseudoInverse(self_normalised=True), 2 / 1),
    ],
)
def test_the_hand_worked_table(estimator: Estimator[LoggedSlates], value: float) -> None:
    assert estimator.estimate(TABLE).value == pytest.approx(value, rel=1e-12)


def test_a_page_is_clipped_once_and_slots_each() -> None:
    assert SIPS(clip=2.0).estimate(TABLE).clipped_share == 1 / 2
    assert RIPS(clip=1.5).estimate(TABLE).clipped_share == 2 / 4


@pytest.mark.parametrize("self_normalised", [False, True])
@pytest.mark.parametrize("kind", [SIPS, IIPS, RIPS, CascadeDR])
def test_intervals_cover_the_truth(kind: type[Estimator[LoggedSlates]], self_normalised: bool) -> None:
    world = INDEPENDENT if kind is IIPS else CASCADE
    estimator = kind(self_normalised=self_normalised)  # type: ignore[call-arg]
    found = estimates(estimator, lambda seed: world.log(400, seed), range(300))
    assert 0.90 <= coverage(found, world.value) <= 0.98


@pytest.mark.parametrize("estimator", [SIPS(), RIPS(), CascadeDR()])
def test_the_error_falls_like_one_over_the_root_of_n(estimator: Estimator[LoggedSlates]) -> None:
    assert -0.6 < rate(estimator, CASCADE.log, (200, 800, 3200), CASCADE.value) < -0.4


@pytest.mark.parametrize(
    ("missing", "estimator", "message"),
    [
        ("target_marginal", IIPS(), "IIPS needs behaviour_marginal and target_marginal"),
        ("q_logged", CascadeDR(), "cascade-DR needs q_logged and v_target"),
        ("projection", PseudoInverse(), "compute it with slates.projection"),
    ],
)
def test_what_is_missing_is_named(missing: str, estimator: Estimator[LoggedSlates], message: str) -> None:
    with pytest.raises(DataError, match=message):
        estimator.estimate(replace(TABLE, **{missing: None}))


def test_second_moments_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match=r"a second moment \(6, 6\) do not fit the marginals \(12, 2, 4\)"):
        projection(PAGES, np.ones((12, 2, 4)), uniform_second_moment(3, 2))
    with pytest.raises(DataError, match="Pages of 4 different items cannot be drawn from 3 candidates"):
        uniform_second_moment(3, 4)
