"""Plackett–Luce propensities against enumeration, and a fitted behaviour policy against the one that made the log."""

import itertools

import numpy as np
import pytest

from pipeline.errors import DataError, NotFittedError
from pipeline.evaluation.ope.logged import Floats, Ints
from pipeline.evaluation.ope.policies import (
    ConditionalLogit,
    conditional_propensities,
    marginal_propensities,
    sample_slates,
    slot_distributions,
    smooth,
)
from pipeline.schemas import SCHEMAS

RNG = np.random.default_rng(0)
MILD, STEEP = RNG.normal(0, 1, 6), RNG.normal(0, 6, 6)
PADDED = np.array([0.3, -np.inf, 1.2, 0.0, -np.inf, -2.0])


def enumerate_pages(logits: Floats, slots: int) -> tuple[Ints, Floats]:
    """All pages of different candidates, and the chance of each by the definition."""
    rates = np.exp(logits)
    pages = [page for page in itertools.permutations(range(len(logits)), slots) if (rates[list(page)] > 0).all()]
    chances = []
    for page in pages:
        chance = 1.0
        for slot, item in enumerate(page):
            left = sum(rate for other, rate in enumerate(rates) if other not in page[:slot])
            chance *= rates[item] / left
        chances.append(chance)
    return np.array(pages), np.array(chances)


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("logits", [MILD, STEEP, PADDED])
def test_propensities_are_those_of_enumeration(logits: Floats, slots: int) -> None:
    pages, chances = enumerate_pages(logits, slots)
    table = np.tile(logits, (len(pages), 1))
    np.testing.assert_allclose(conditional_propensities(table, pages).prod(axis=1), chances, rtol=1e-9)
    found = marginal_propensities(table, pages)
    for slot in range(slots):
        exact = np.bincount(pages[:, slot], chances, len(logits))[pages[:, slot]]
        np.testing.assert_allclose(found[:, slot], exact, rtol=1e-6, atol=1e-14)


def test_a_page_of_all_candidates_has_marginals_too() -> None:
    pages, chances = enumerate_pages(MILD[:4], 4)
    found = marginal_propensities(np.tile(MILD[:4], (24, 1)), pages)
    for slot in range(4):
        exact = np.bincount(pages[:, slot], chances, 4)[pages[:, slot]]
        np.testing.assert_allclose(found[:, slot], exact, rtol=1e-6)


def test_slot_distributions_hold_the_conditional_propensities() -> None:
    logits = np.stack([MILD, STEEP, PADDED])
    pages = sample_slates(logits, 3, np.random.default_rng(1))
    chances = slot_distributions(logits, pages)
    np.testing.assert_allclose(chances.sum(axis=2), 1)
    shown = np.take_along_axis(chances, pages[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(shown, conditional_propensities(logits, pages), rtol=1e-9)
    assert (np.take_along_axis(chances[:, 1], pages[:, :1], axis=1) == 0).all()  # nothing is shown twice


def test_sampled_pages_have_these_propensities() -> None:
    pages, chances = enumerate_pages(MILD[:4], 2)
    drawn = sample_slates(np.tile(MILD[:4], (40_000, 1)), 2, np.random.default_rng(2))
    counts = np.array([(drawn == page).all(axis=1).sum() for page in pages])
    assert ((counts - 40_000 * chances) ** 2 / (40_000 * chances)).sum() < 31  # chi-squared, 11 d.o.f., p = 0.001


def test_an_empty_slot_is_certain_and_changes_nothing() -> None:
    logits = np.tile(MILD, (2, 1))
    full = np.array([[2, 0], [5, 1]])
    short = np.hstack([full, [[-1], [-1]]])
    for propensities in (conditional_propensities, marginal_propensities):
        expected = np.hstack([propensities(logits, full), np.ones((2, 1))])
        np.testing.assert_allclose(propensities(logits, short), expected, rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_what_a_policy_cannot_show_has_no_chance() -> None:
    logits, page = np.array([[0.0, -np.inf, 1.0]]), np.array([[0, 2, 1]])
    first = 1 / (1 + np.e)
    np.testing.assert_allclose(conditional_propensities(logits, page), [[first, 1.0, 0.0]])
    np.testing.assert_allclose(marginal_propensities(logits, page), [[first, first, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(slot_distributions(logits, page)[0].sum(axis=1), [1.0, 1.0, 0.0])
    assert (sample_slates(logits, 3, np.random.default_rng(0))[:, 2] == -1).all()


def test_smoothing_is_blind_to_the_unit_of_scores() -> None:
    scores, mask = np.array([[1.0, 2.0, 4.0, 99.0]]), np.array([[True, True, True, False]])
    logits = smooth(scores, mask, temperature=0.5)
    np.testing.assert_allclose(smooth(10 * scores - 3, mask, 0.5), logits)
    known = logits[0, :3]
    assert (known.mean(), known.std(), logits[0, 3]) == (pytest.approx(0, abs=1e-12), pytest.approx(2), -np.inf)


def test_towards_0_the_smoothed_ranker_is_the_ranker() -> None:
    scores, mask = np.array([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]]), np.ones((2, 3), bool)
    best = np.argsort(-scores, axis=1)
    assert (conditional_propensities(smooth(scores, mask, 0.02), best) > 0.999).all()
    np.testing.assert_allclose(marginal_propensities(smooth(scores, mask, 0.02), best), 1, rtol=1e-3)


def test_a_ranker_without_opinion_is_uniform() -> None:
    logits = smooth(np.ones((1, 4)), np.ones((1, 4), bool), 1.0)
    np.testing.assert_allclose(conditional_propensities(logits, np.array([[0, 1]])), [[1 / 4, 1 / 3]])


def test_there_is_no_smoothing_at_0() -> None:
    with pytest.raises(DataError, match="at a temperature above 0, not 0"):
        smooth(np.ones((1, 2)), np.ones((1, 2), bool), 0)


def pages_of(n: int, seed: int) -> tuple[Floats, Ints, np.ndarray, Floats]:
    """n pages of 4 slots from up to 9 candidates; the second feature drives the choice less from slot to slot."""
    rng = np.random.default_rng(seed)
    features, mask = rng.normal(2, [3.0, 1.0], (n, 9, 2)), np.ones((n, 9), bool)
    mask[: n // 2, 7:] = False
    pages, chances = np.full((n, 4), -1), np.ones((n, 4))
    rows, left = np.arange(n), mask.copy()
    for slot in range(4):
        logits = features @ np.array([0.25, 1.0 - 0.3 * slot])
        rates = np.where(left, np.exp(logits), 0)
        rates /= rates.sum(axis=1, keepdims=True)
        pages[:, slot] = (rates.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
        chances[:, slot] = rates[rows, pages[:, slot]]
        left[rows, pages[:, slot]] = False
    pages[-5:, 3], chances[-5:, 3] = -1, 1
    return features, pages, mask, chances


def test_the_fitted_behaviour_policy_finds_the_one_that_made_the_log() -> None:
    features, pages, mask, _ = pages_of(4_000, seed=1)
    model = ConditionalLogit().fit(features, pages, mask)
    features, pages, mask, chances = pages_of(1_000, seed=2)
    found = model.propensities(features, pages, mask)
    assert (found[-5:, 3] == 1).all()
    np.testing.assert_allclose(np.log(found), np.log(chances), atol=0.35)
    assert np.abs(np.log(found / chances)).mean() < 0.05
    np.testing.assert_allclose(model.distributions(features, pages, mask).sum(axis=2), 1)


def test_its_calibration_tells_a_right_model_from_a_wrong_one() -> None:
    features, pages, mask, _ = pages_of(4_000, seed=1)
    right = ConditionalLogit().fit(features, pages, mask)
    features, pages, mask, _ = pages_of(2_000, seed=3)

    def gap(rows: list[dict[str, float]]) -> float:
        return max(abs(row["predicted"] - row["observed"]) for row in rows)

    rows = right.calibration(features, pages, mask)
    assert gap(rows) < 0.02
    assert set(rows[0]) < set(SCHEMAS["simulator_reliability"].names)
    assert sum(row["count"] for row in rows) == sum(
        mask[i].sum() - slot for i in range(2_000) for slot in range(4) if pages[i, slot] >= 0
    )
    assert right.coefficients is not None
    right.coefficients = 2 * right.coefficients  # too sure of itself
    assert gap(right.calibration(features, pages, mask)) > 0.1


def test_the_gradient_is_that_of_the_loss() -> None:
    features, pages, mask, _ = pages_of(50, seed=4)
    model = ConditionalLogit(l2=0.7).fit(features, pages, mask)
    parts = model._choices(features, pages, mask)
    at = np.array([0.3, -0.2, 0.5, 0.1])
    _, gradient = model._loss(at, *parts)
    for i, step in enumerate(np.eye(4) * 1e-6):
        slope = (model._loss(at + step, *parts)[0] - model._loss(at - step, *parts)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-5)


def test_before_fit_there_are_no_propensities() -> None:
    with pytest.raises(NotFittedError, match="call fit before"):
        ConditionalLogit().propensities(np.ones((1, 2, 1)), np.array([[0]]), np.ones((1, 2), bool))


@pytest.mark.parametrize(
    ("features", "pages", "mask", "message"),
    [
        (np.ones((2, 3)), np.zeros((2, 1), int), np.ones((2, 3), bool), r"features \(2, 3\).*\[n, R, F\]"),
        (np.ones((2, 3, 1)), np.zeros((3, 1), int), np.ones((2, 3), bool), r"pages \(3, 1\)"),
        (np.ones((2, 3, 1)), np.array([[0], [2]]), np.array([[True] * 3, [True, True, False]]), "page 1 shows an item"),
    ],
)
def test_what_does_not_fit_is_named(features: Floats, pages: Ints, mask: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ConditionalLogit().fit(features, pages, mask)
