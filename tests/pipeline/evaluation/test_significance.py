import numpy as np
import pytest
from scipy import stats

from pipeline.errors import DataError
from pipeline.evaluation import significance
from pipeline.evaluation.significance import (
    cluster_bootstrap,
    cluster_bootstraps,
    holm,
    paired_difference,
    paired_differences,
    ratio_of_means,
)

Sample = tuple[np.ndarray, np.ndarray]


def clustered(seed: int, n_users: int, mean: float = 0.0, between: float = 1.0) -> Sample:
    """Values [S] and users [S]: 1 to 8 sessions a user around a level of his own."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users) * 17 - 5, rng.integers(1, 9, n_users))
    level = dict(zip(np.unique(users), rng.normal(mean, between, n_users), strict=True))
    return np.array([level[user] for user in users]) + rng.normal(0, 1, len(users)), users


def by_user(values: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    groups = [values[users == user] for user in np.unique(users)]
    return np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])


def test_the_interval_is_that_of_scipy_over_users() -> None:
    values, users = clustered(1, 60)
    ours = cluster_bootstrap(values, users, 20_000, seed=1)
    theirs = stats.bootstrap(
        by_user(values, users),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        batch=2_000,
        rng=np.random.default_rng(2),
    )
    spread = theirs.standard_error
    assert ours.mean == pytest.approx(values.mean(), rel=1e-12)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * spread)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * spread)


def test_the_interval_covers_the_truth_where_one_over_sessions_does_not() -> None:
    replications = 1000
    covered = naive = 0
    for seed in range(replications):
        values, users = clustered(seed, 80, mean=0.7)
        interval = cluster_bootstrap(values, users, 400, seed)
        covered += interval.low <= 0.7 <= interval.high
        interval = cluster_bootstrap(values, np.arange(len(users)), 400, seed)
        naive += interval.low <= 0.7 <= interval.high
    assert 0.93 <= covered / replications <= 0.97
    assert naive / replications < 0.80


def test_the_interval_of_few_users_is_that_of_scipy_too() -> None:
    values, users = clustered(2, 12)
    ours = cluster_bootstrap(values, users, 20_000, seed=1)
    sums, counts = by_user(values, users)
    drawn = np.random.default_rng(2).integers(12, size=(20_000, 12))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_blocks_bound_the_memory_and_users_are_drawn_by_poisson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "CELLS", 1000)
    blocks = list(significance._poisson(301, 400, seed=3))
    assert [len(block) for block in blocks] == [3] * 133 + [1]
    weights = np.concatenate(blocks)
    assert weights.shape == (400, 301)
    observed = np.bincount(weights.ravel().astype(int), minlength=9)[:9] / weights.size
    np.testing.assert_allclose(observed, stats.poisson.pmf(np.arange(9), 1), atol=0.005)
    assert np.corrcoef(weights[:, 0], weights[:, 1])[0, 1] == pytest.approx(0, abs=0.15)


def test_resampling_is_centred_so_a_large_mean_costs_no_precision() -> None:
    values, users = clustered(3, 50)
    near, far = (cluster_bootstrap(values + shift, users, 500, seed=3) for shift in (0.0, 1e6))
    assert (far.low - 1e6, far.high - 1e6) == pytest.approx((near.low, near.high), abs=1e-4)


def test_columns_share_their_resamples_and_a_missing_value_is_left_out() -> None:
    values, users = clustered(4, 40)
    gaps = np.where(np.arange(len(values)) % 3 == 0, np.nan, values)
    both = cluster_bootstraps(np.column_stack([values, gaps, 2 * values + 1]), users, 500, seed=4)
    whole, partial, scaled = both
    single = cluster_bootstrap(values, users, 500, seed=4)
    assert (single.mean, single.low, single.high) == pytest.approx((whole.mean, whole.low, whole.high), rel=1e-9)
    assert (scaled.low, scaled.high) == pytest.approx((2 * whole.low + 1, 2 * whole.high + 1))
    kept = ~np.isnan(gaps)
    assert partial.mean == pytest.approx(values[kept].mean())
    alone = cluster_bootstrap(values[kept], users[kept], 4000, seed=5)
    assert partial.high - partial.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, users = clustered(5, 30)
    a, b, c = (cluster_bootstrap(values, users, 200, seed) for seed in (1, 1, 2))
    assert a == b != c


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    rng = np.random.default_rng(6)
    users = np.repeat(np.arange(9), [1, 2, 3, 1, 2, 3, 1, 2, 3])
    a, b = rng.normal(0.6, 1, len(users)), rng.normal(0, 1, len(users))
    sums = by_user(a - b, users)[0]
    signs = 1 - 2 * ((np.arange(2**9)[:, None] >> np.arange(9)) & 1)
    exact = np.mean(np.abs(signs @ sums) >= np.abs(sums.sum()) - 1e-9)
    assert 0.02 < exact < 0.5
    found = paired_difference(a, b, users, 20_000, seed=6)
    assert found.mean == pytest.approx((a - b).mean())
    assert found.p_value == pytest.approx(exact, abs=0.015)


def test_the_p_value_is_uniform_when_nothing_differs_and_small_when_something_does() -> None:
    p_values = []
    for seed in range(400):
        values, users = clustered(seed, 40)
        p_values.append(paired_difference(values, np.zeros(len(values)), users, 300, seed).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.02)
    values, users = clustered(7, 40, mean=3)
    assert paired_difference(values, np.zeros(len(values)), users, 300, 7).p_value == pytest.approx(1 / 301)


def test_a_pair_counts_only_where_both_have_a_value() -> None:
    a, users = clustered(8, 30)
    b = a - 0.25
    a[::4], b[1::4] = np.nan, np.nan
    found = paired_difference(a, b, users, 300, seed=8)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.p_value < 0.01


def test_effect_size_and_share_speak_of_users() -> None:
    a, users = clustered(10, 30, mean=0.5)
    b = np.where(np.arange(len(a)) % 7 == 0, np.nan, 0.0)
    found = paired_difference(a, b, users, 100)
    kept = ~np.isnan(b)
    sums, counts = by_user(a[kept], users[kept])
    means = sums / counts
    assert found.effect_size == pytest.approx(means.mean() / means.std(ddof=1))
    assert found.share_better == pytest.approx((means > 0).mean())
    tied = paired_difference([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 1.0, 1.0], [1, 2, 3, 4], 100)
    assert tied.share_better == (0.5 + 0 + 1 + 1) / 4


def test_an_effect_without_spread_has_no_size() -> None:
    found = paired_difference([2.0, 3.0], [1.0, 2.0], [1, 2], 100)
    assert np.isnan(found.effect_size)
    assert found.share_better == 1


def test_a_ratio_of_means_is_that_of_scipy_and_pairs_its_sessions() -> None:
    rng = np.random.default_rng(11)
    b = rng.gamma(4, 1, 60)
    a = 0.8 * b + rng.normal(0, 0.4, 60)
    ours = ratio_of_means(a, b, np.arange(60), 20_000)
    theirs = stats.bootstrap(
        (a, b),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    )
    assert ours.mean == pytest.approx(a.mean() / b.mean())
    spread = theirs.standard_error
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * spread)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * spread)
    gap = np.append(a, 100.0), np.append(b, np.nan), np.arange(61)
    assert ratio_of_means(*gap, 100).mean == ours.mean


ALONE = "one user: the spread between users is unknown"
DEGENERATE = {
    "one user": ([1.0, 3.0], [7, 7], (2.0, np.nan, np.nan), ALONE),
    "no value": ([np.nan, np.nan], [7, 8], (np.nan, np.nan, np.nan), "no session has a value"),
    "no session": ([], [], (np.nan, np.nan, np.nan), "no session has a value"),
    "zero variance": ([2.0, 2.0, 2.0], [7, 8, 8], (2.0, 2.0, 2.0), ""),
    "one user with a value": ([2.0, np.nan], [7, 8], (2.0, np.nan, np.nan), ALONE),
}  # fmt: skip


@pytest.mark.parametrize(("values", "users", "expected", "reason"), DEGENERATE.values(), ids=DEGENERATE)
def test_what_cannot_be_known_is_nan_with_a_reason(
    values: list[float], users: list[int], expected: tuple[float, ...], reason: str
) -> None:
    found = cluster_bootstrap(np.array(values), users, 100)
    np.testing.assert_array_equal((found.mean, found.low, found.high), expected)
    assert found.reason == reason
    pair = paired_difference(np.array(values), np.zeros(len(values)), users, 100)
    assert (pair.reason, np.isnan(pair.p_value)) == (reason, bool(reason))


def test_no_difference_at_all_has_a_p_value_of_one() -> None:
    values, users = clustered(9, 10)
    assert paired_difference(values, values, users, 100).p_value == 1


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 0.04 × 1 is lifted to 0.03 × 2
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.02, np.nan, 0.04], [0.04, np.nan, 0.04]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    np.testing.assert_allclose(holm(p_values), adjusted, rtol=1e-12)


def test_sessions_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match=r"Every session needs one user; got values \(3, 1\) and users \(2,\)"):
        cluster_bootstrap(np.zeros(3), [1, 2])
    with pytest.raises(DataError, match=r"same sessions on both sides; got \(3, 1\) and \(2, 1\)"):
        paired_differences(np.zeros((3, 1)), np.zeros((2, 1)), [1, 2, 3])
