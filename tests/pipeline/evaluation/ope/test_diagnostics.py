"""Effective sample sizes, mean weights, overlaps, and the score of a choice between policies: by hand."""

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import DataError
from pipeline.evaluation.ope.diagnostics import (
    effective_sample_size,
    mean_weight,
    overlaps,
    policy_selection,
    tail_index,
)


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        ([1, 1, 1, 1], 4.0),
        ([4, 0, 0, 0], 1.0),
        ([3, 1, 0, 0], 16 / 10),
        ([0, 0], 0.0),
        ([2, -1], 1 / 5),  # of the pseudo-inverse
    ],
)
def test_the_effective_sample_size_is_that_of_kish(weights: list[float], size: float) -> None:
    assert effective_sample_size(np.array(weights, dtype=float)) == pytest.approx(size)


def test_parts_count_by_their_share_of_the_squared_reward() -> None:
    weights = np.array([[1.0, 4.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # sizes 4 and 1
    assert effective_sample_size(weights, np.array([0.5, 0.5])) == pytest.approx(1 / (0.5 / 4 + 0.5 / 1))
    assert effective_sample_size(weights, np.array([1.0, 0.0])) == pytest.approx(4)


def test_the_size_tells_the_variance_when_rewards_do_not_depend_on_weights() -> None:
    rng = np.random.default_rng(3)
    n, repeats = 400, 1_500
    weights = rng.lognormal(-0.5 * np.array([0.2, 0.8]), np.sqrt([0.2, 0.8]), (repeats, n, 2))
    rewards = rng.normal(0, [1.0, 2.0], (repeats, n, 2))
    spread = (weights * rewards).sum(axis=2).mean(axis=1).std()
    share = np.array([1.0, 4.0]) / 5
    sizes = [effective_sample_size(table, share) for table in weights]
    assert np.sqrt(5 / np.mean(sizes)) == pytest.approx(spread, rel=0.1)


def test_a_longer_product_never_seems_to_overlap_more_than_a_shorter_one() -> None:
    weights = np.array([[1.0, 4.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    last = np.array([0.0, 0.0, 1.0])
    assert effective_sample_size(weights, last) == pytest.approx(4)
    assert effective_sample_size(weights, last, nested=True) == pytest.approx(1)


def test_the_mean_weight_is_that_of_the_parts_by_share() -> None:
    mean, deviation = mean_weight(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([0.25, 0.75]))
    assert mean == pytest.approx(0.5 * (0.25 + 1.5) + 0.5 * 0.75)
    np.testing.assert_allclose(deviation, [1.75 - mean, 0.75 - mean])


def test_overlap_is_the_targets_mass_where_the_log_goes() -> None:
    target, behaviour = np.array([[0.5, 0.3, 0.2]]), np.array([[0.9, 0.1, 0.0]])
    assert overlaps(target, behaviour, floor=0).mean() == pytest.approx(0.8)
    assert overlaps(target, behaviour, floor=0.1).mean() == pytest.approx(0.5)
    with pytest.raises(DataError, match="the same candidates on both sides"):
        overlaps(target, behaviour[:, :2], floor=0)


def test_a_choice_is_scored_by_its_rank_correlation_and_what_it_misses() -> None:
    truth = [1.0, 2.0, 4.0]
    assert policy_selection([0, 1, 2], truth).rho == pytest.approx(1)
    assert policy_selection([0, 1, 2], truth).regret == 0
    worst = policy_selection([5, 1, 0], truth)
    assert (worst.rho, worst.regret) == (pytest.approx(-1), 3.0)
    with pytest.raises(DataError, match="two or more at a time"):
        policy_selection([1.0], [1.0])


@pytest.mark.parametrize("shape", [0.25, 0.5, 0.8, 1.2])
def test_the_tail_index_finds_the_shape_of_pareto_weights(shape: float) -> None:
    rng = np.random.default_rng(1)
    found = [tail_index(rng.pareto(1 / shape, (4_000, 1)), np.ones(1)) for _ in range(40)]
    fitted = [stats.genpareto.fit(_largest(rng.pareto(1 / shape, 4_000)), floc=0)[0] for _ in range(10)]
    assert np.mean(found) == pytest.approx(shape, abs=0.1)
    assert np.mean(found) == pytest.approx(np.mean(fitted), abs=0.15)  # maximum likelihood, of other draws


def _largest(weights: np.ndarray) -> np.ndarray:
    ordered = np.sort(weights)
    return ordered[-189:] - ordered[-190]


def test_bounded_weights_have_no_heavy_tail() -> None:
    rng = np.random.default_rng(2)
    for weights in (np.ones(500), rng.choice([0.5, 1.0, 4.0], 500), rng.random(500), np.ones(3)):
        assert tail_index(weights[:, None], np.ones(1)) <= 0


def test_the_tails_of_parts_count_by_their_share() -> None:
    weights = np.random.default_rng(3).pareto(2, (2_000, 2)) ** [0.5, 2.0]
    first, second = (tail_index(weights[:, [i]], np.ones(1)) for i in (0, 1))
    assert first < 0.5 < second
    assert tail_index(weights, np.array([0.75, 0.25])) == pytest.approx(0.75 * first + 0.25 * second)
