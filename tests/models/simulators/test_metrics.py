"""Metrics of user models against hand-worked tables, libraries and their own promises."""

import numpy as np
import pytest
from scipy.stats import ks_2samp, wasserstein_distance
from sklearn.metrics import roc_auc_score

from models.simulators.metrics import (
    auc_interval,
    calibration_by_group,
    expected_calibration_error,
    quantile_bins,
    survival,
)


def test_bins_hold_equally_many_values_and_never_part_equal_ones() -> None:
    values = np.random.default_rng(0).permutation(1000)
    assert np.bincount(quantile_bins(values, 10)).tolist() == [100] * 10
    tied = np.array([0, 0, 0, 0, 0, 1, 2, 2, 3, 9])
    bins = quantile_bins(tied, 4)
    assert len({*zip(tied.tolist(), bins.tolist(), strict=True)}) == len({*tied.tolist()})
    assert (np.diff(bins) >= 0).all()


# ---- calibration_by_group


def test_each_group_has_the_calibration_error_of_its_own_rows() -> None:
    random = np.random.default_rng(0)
    p, groups = random.uniform(0, 0.3, 3000), random.choice([2, 5, 9], 3000)
    y = random.uniform(size=3000) < np.where(groups == 5, 2 * p, p)
    found = calibration_by_group(y, p, groups)
    assert found.groups.tolist() == [2, 5, 9]
    for index, group in enumerate(found.groups):
        rows = groups == group
        assert found.ece[index] == pytest.approx(expected_calibration_error(y[rows], p[rows]))
        assert found.rate[index] == pytest.approx(y[rows].mean())
        assert found.count[index] == rows.sum()
    assert (found.ece > found.chance).tolist() == [False, True, False]


@pytest.mark.parametrize("n_groups", [1, 10])
def test_calibrated_predictions_stay_below_chance_in_all_groups_at_once_in_95_of_100_cases(n_groups: int) -> None:
    random = np.random.default_rng(1)
    above, replications = 0, 200
    for seed in range(replications):
        p = random.beta(1, 9, 600)
        found = calibration_by_group(random.uniform(size=600) < p, p, np.arange(600) % n_groups, bins=5, seed=seed)
        above += (found.ece > found.chance).any()
    assert 0.02 <= above / replications <= 0.10


# ---- auc_interval


def test_with_independent_rows_the_interval_is_delongs() -> None:
    random = np.random.default_rng(2)
    y = np.arange(300) % 3 == 0
    p = (random.normal(size=300) + y).round(1)  # with ties
    auc, low, high = auc_interval(y, p, np.arange(300))
    wins = (p[y][:, None] > p[~y]) + 0.5 * (p[y][:, None] == p[~y])  # [positives, negatives]
    variance = wins.mean(axis=1).var(ddof=1) / y.sum() + wins.mean(axis=0).var(ddof=1) / (~y).sum()
    assert auc == pytest.approx(roc_auc_score(y, p)) == pytest.approx(wins.mean())
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.01)
    assert (low + high) / 2 == pytest.approx(auc)


def test_with_dependent_rows_the_interval_is_that_of_a_bootstrap_over_sessions() -> None:
    random = np.random.default_rng(3)
    session = np.repeat(np.arange(80), 10)
    level = random.normal(size=80)[session]
    y = random.uniform(size=800) < 1 / (1 + np.exp(1 - level))
    p = level + random.normal(size=800)
    auc, low, high = auc_interval(y, p, session)
    draws = []
    for _ in range(400):
        rows = (10 * random.integers(80, size=80)[:, None] + np.arange(10)).ravel()
        draws.append(roc_auc_score(y[rows], p[rows]))
    assert high - low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.12)
    naive = auc_interval(y, p, np.arange(800))
    assert naive[2] - naive[1] < 0.9 * (high - low)
    assert naive[0] == auc


def test_one_class_has_no_auc() -> None:
    assert np.isnan(auc_interval([1, 1], [0.2, 0.3], [0, 1])).all()


# ---- survival


def test_without_censoring_the_distances_of_survival_curves_are_those_of_scipy() -> None:
    random = np.random.default_rng(4)
    a, b = random.geometric(0.2, 150), random.geometric(0.3, 230)
    horizon = int(max(a.max(), b.max()))
    curves = [survival(lengths, np.ones_like(lengths), horizon) for lengths in (a, b)]
    assert np.abs(curves[0] - curves[1]).max() == pytest.approx(ks_2samp(a, b).statistic)
    assert np.abs(curves[0] - curves[1]).sum() == pytest.approx(wasserstein_distance(a, b))
    assert curves[0].sum() == pytest.approx(a.mean())


def test_survival_with_censoring_is_that_of_the_hand_worked_table() -> None:
    lengths, ended = [1, 1, 2, 2, 3, 4], [True, True, True, False, True, False]
    # at risk: 6 4 2 1 after 1, 2, 3, 4 pages; left: 2 1 1 0
    expected = [1, 4 / 6, 4 / 6 * 3 / 4, 4 / 6 * 3 / 4 * 1 / 2]
    np.testing.assert_allclose(survival(lengths, ended, 3), expected)
    np.testing.assert_allclose(survival(lengths, ended, 6), [*expected, *[expected[-1]] * 3])


def test_censoring_hides_nothing_of_what_happens_before_it() -> None:
    random = np.random.default_rng(5)
    lengths, cap = random.geometric(0.2, 20_000), random.integers(1, 12, 20_000)
    curve = survival(np.minimum(lengths, cap), lengths <= cap, 10)
    np.testing.assert_allclose(curve, 0.8 ** np.arange(11), atol=0.02)
